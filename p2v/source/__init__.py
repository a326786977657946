"""All that can be read: disks, images, and layers around them.

Three rules that every source here keeps, beyond the protocol in model.py:
- a ReadError names a range inside the read that failed, in this source's own bytes; a layer translates
  what the source below it says;
- a layer does not close what it was given: who opened a source closes it;
- after close(), reading is a ValueError.
"""
