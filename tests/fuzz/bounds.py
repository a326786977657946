"""What fuzz targets share: damage to bytes, and the bounds within which every answer must come.

`make fuzz` runs the targets (marker `fuzz`); P2V_FUZZ says how many inputs each of them gets.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("P2V_FUZZ", "300"))
SECONDS = 5.0  # of processor time, for one input
GROWTH = 128 << 20  # bytes that one input may add to the most that the process ever held
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1,
           1 << 63, (1 << 64) - 1)

fuzz = pytest.mark.fuzz
many = settings(max_examples=EXAMPLES, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


@contextmanager
def bounded() -> Iterator[None]:
    """Fails what takes longer than SECONDS, hangs included, or grows by more than GROWTH."""

    def late(*_: object) -> None:
        raise AssertionError(f"no answer after {SECONDS} s of processor time")

    held, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    usual = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, usual)
    assert time.process_time() - started < SECONDS  # a library may have swallowed the alarm
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) << 10
    assert grown < GROWTH, f"one input took {grown >> 20} MiB"


@st.composite
def damaged(draw: st.DrawFn, data: bytes, spans: Sequence[tuple[int, int]], most: int = 6) -> bytearray:
    """The same bytes with some of those in the spans (first, length) overwritten, moved, blanked or swapped."""
    copy = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        start, length = draw(st.sampled_from(spans))
        at = start + draw(st.integers(0, length - 1))
        kind = draw(st.sampled_from("bbnnnmz"))
        if kind == "b":
            new = bytes([draw(st.integers(0, 255))])
        elif kind == "n":
            number = draw(st.sampled_from(NUMBERS) | st.integers(0, 1 << 16))
            width = draw(st.sampled_from([1, 2, 4, 8]))
            new = (number & ((1 << 8 * width) - 1)).to_bytes(width, draw(st.sampled_from(["little", "big"])))
        elif kind == "m":
            other, room = draw(st.sampled_from(spans))
            other += draw(st.integers(0, room - 1))
            new = bytes(copy[other:other + draw(st.sampled_from([1, 4, 8, 16, 64, 128, 512]))])
        else:
            new = draw(st.sampled_from([b"\0", b"\xff"])) * draw(st.sampled_from([4, 16, 128, 512]))
        new = new[:len(copy) - at]
        copy[at:at + len(new)] = new
    return copy
