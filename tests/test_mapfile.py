"""The map of a rescue: GNU ddrescue's own tools read ours, we read theirs, and damage is named by its line."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.errors import LayoutError
from p2v.mapfile import Activity, Block, Mapfile, Status, from_text

SIZE = 1 << 20
statuses = st.sampled_from(list(Status))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(1, 64), statuses), max_size=30))
def test_the_map_says_of_each_byte_what_was_set_last(sets):
    expected = [Status.NON_TRIED] * 64
    found = Mapfile(64)
    for offset, length, status in sets:
        length = min(length, 64 - offset)
        found.set(offset, length, status)
        expected[offset : offset + length] = [status] * length
    blocks = list(found.blocks())
    assert [b.status for b in blocks for _ in range(b.length)] == expected
    assert all(a.end == b.offset and a.status is not b.status for a, b in itertools.pairwise(blocks))
    assert list(from_text(found.to_text(), 64).blocks()) == blocks
    for status in Status:
        at = [i for i in range(5, 50) if expected[i] is status]
        first, last = found.find(status, 5, 50), found.find_last(status, 5, 50)
        assert (first is None) == (last is None) == (not at)
        if first is not None and last is not None:
            assert (first.offset, last.end - 1) == (at[0], at[-1])
        assert found.sum(status) == expected.count(status)


def test_what_lies_between_two_places():
    found = Mapfile(100)
    found.set(10, 20, Status.BAD)
    assert list(found.blocks(15, 40)) == [Block(15, 15, Status.BAD), Block(30, 10, Status.NON_TRIED)]
    with pytest.raises(ValueError):
        found.set(90, 11, Status.BAD)
    with pytest.raises(ValueError):
        Mapfile(0)


def test_ddrescue_reads_ours(tmp_path, needs):
    """ddrescuelog lists the same blocks, and ddrescue completes exactly what ours left."""
    needs("ddrescue", "ddrescuelog")
    source, image, path = tmp_path / "disk", tmp_path / "image", tmp_path / "map"
    source.write_bytes(bytes(range(1, 256)) * (SIZE // 255) + bytes(SIZE % 255))
    ours = Mapfile(SIZE)
    ours.set(0, 0x40000, Status.FINISHED)
    ours.set(0x50000, 0x200, Status.BAD)
    ours.set(0x60000, 0x10000, Status.NON_TRIMMED)
    ours.set(0x80000, 0x10000, Status.NON_SCRAPED)
    ours.position, ours.activity, ours.passes = 0x60000, Activity.TRIMMING, 1
    path.write_text(ours.to_text(["Mapfile. Created by p2v", "two\nlines"]))
    for status in Status:
        done = subprocess.run(["ddrescuelog", f"-l{status.value}", "-b512", path], capture_output=True, text=True,
                              check=True)
        sectors = [int(line) for line in done.stdout.split()]
        assert sectors == [at // 512 for b in ours.blocks() if b.status is status for at in range(b.offset, b.end, 512)]
    image.write_bytes(bytes(SIZE))
    subprocess.run(["ddrescue", "-q", "-r1", source, image, path], check=True)
    assert image.read_bytes()[0x40000:] == source.read_bytes()[0x40000:]
    assert image.read_bytes()[:0x40000] == bytes(0x40000), "what was finished is not read again"
    done = from_text(path.read_text(), SIZE)
    assert list(done.blocks()) == [Block(0, SIZE, Status.FINISHED)] and done.activity is Activity.DONE


def test_we_read_ddrescues(tmp_path, needs):
    """ddrescue's own map of a simulated bad disk, and ddrescuelog's comparison with what we write of it."""
    needs("ddrescue", "ddrescuelog")
    (tmp_path / "disk").write_bytes(bytes(SIZE))
    (tmp_path / "poor").write_text("0 ?\n0 0x30000 +\n0x30000 0x600 -\n0x30600 0xCFA00 +\n")
    subprocess.run(["ddrescue", "-q", "-H", "poor", "disk", "image", "map"], cwd=tmp_path, check=True)
    theirs = from_text((tmp_path / "map").read_text(), SIZE)
    assert list(theirs.blocks()) == [Block(0, 0x30000, Status.FINISHED), Block(0x30000, 0x600, Status.BAD),
                                     Block(0x30600, SIZE - 0x30600, Status.FINISHED)]
    (tmp_path / "again").write_text(theirs.to_text())
    subprocess.run(["ddrescuelog", "-p", "map", "again"], cwd=tmp_path, check=True, capture_output=True)


def test_old_short_and_odd_files_are_read():
    found = from_text("# from 2012\n\n  0x200   -\n0 512 + # fine\n01000\t0x200 ?\n", 4096)
    assert (found.position, found.activity, found.passes) == (512, Activity.RETRYING, 1)
    assert list(found.blocks()) == [Block(0, 512, Status.FINISHED), Block(512, 3584, Status.NON_TRIED)]
    middle = from_text("0 ? 2\n0x200 0x200 +\n", 4096)  # ddrescue keeps a domain that begins later so
    assert list(middle.blocks()) == [Block(0, 512, Status.NON_TRIED), Block(512, 512, Status.FINISHED),
                                     Block(1024, 3072, Status.NON_TRIED)]


@pytest.mark.parametrize(("text", "line", "why"), [
    ("", 0, "missing"),
    ("# nothing\n", 0, "missing"),
    ("0 ?\n", 1, "no block"),
    ("0\n0 512 +\n", 1, "missing"),
    ("0 x 1\n0 512 +\n", 1, "status"),
    ("0 ? 0\n0 512 +\n", 1, "pass"),
    ("0 ? 1 1\n0 512 +\n", 1, "missing"),
    ("0 ? 1\n0 512\n", 2, "words"),
    ("0 ? 1\n0 512 F\n", 2, "status"),
    ("0 ? 1\n0 0 +\n", 2, "no bytes"),
    ("0 ? 1\n-1 512 +\n", 2, "number"),
    ("0 ? 1\n0 0x1_0 +\n", 2, "number"),
    ("0 ? 1\n0 09 +\n", 2, "number"),
    ("0 ? 1\n0 \u0661\u0662 +\n", 2, "number"),
    ("0 ? 1\n0 0x8000000000000000 +\n", 2, "beyond"),
    ("0 ? 1\n0 512 +\n1024 512 +\n", 3, "touch"),
    ("0 ? 1\n0 512 +\n0 512 +\n", 3, "touch"),
    ("0 ? 1\n0 512 +\n# x\n512 4096 +\n", 4, "the disk at"),
])
def test_damage_is_named_by_its_line(text, line, why):
    with pytest.raises(LayoutError, match="no mapfile") as caught:
        from_text(text, 4096, "web.map")
    assert why in caught.value.why
    assert not line or f"line {line}" in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_map_or_a_layout_error(text):
    try:
        found = from_text(text, 4096)
    except LayoutError:
        return
    assert sum(block.length for block in found.blocks()) == 4096


@given(st.integers(0, 120), st.characters())
def test_any_letter_changed_is_a_map_or_a_layout_error(at, letter):
    text = "0x00000000 ? 1\n0x00000000 0x00000200 +\n0x00000200 0x00000200 -\n0x00000400 0x00000C00 ?\n"
    test_any_text_is_a_map_or_a_layout_error.hypothesis.inner_test(text[:at] + letter + text[at + 1 :])
