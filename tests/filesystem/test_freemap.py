"""Bits → ranges, whatever the chunks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from p2v.filesystem.freemap import FreeRanges, overlap
from p2v.model import Range


@settings(deadline=None)
@given(chunks=st.lists(st.lists(st.booleans(), max_size=20), max_size=8), least=st.integers(1, 4))
def test_ranges_are_the_long_runs(chunks: list[list[bool]], least: int) -> None:
    ranges = FreeRanges(100, 10, least=10 * least)
    for chunk in chunks:
        ranges.add(np.array(chunk, bool))
    bits = "".join("1" if free else "0" for chunk in chunks for free in chunk)
    expected, at = [], 0
    while (at := bits.find("1", at)) >= 0:
        end = (bits + "0").index("0", at)
        if end - at >= least:
            expected.append(Range(100 + 10 * at, 10 * (end - at)))
        at = end
    assert list(ranges.finish()) == expected


def test_the_number_of_ranges_is_bounded() -> None:
    """The longest are kept: 1000 of one cluster and 3 of eight."""
    ranges = FreeRanges(0, 1, least=1, most=100)
    for _ in range(10):
        ranges.add(np.array([True, False] * 100))
    for _ in range(3):
        ranges.add(np.array([True] * 8 + [False]))
    assert [piece.length for piece in ranges.finish()] == [8, 8, 8]


def test_overlap() -> None:
    ranges = (Range(10, 10), Range(40, 5))
    assert overlap(ranges, [Range(0, 10), Range(20, 20), Range(45, 100)]) is None
    for candidate in (Range(0, 11), Range(19, 1), Range(0, 100), Range(44, 1), Range(12, 2)):
        assert overlap(ranges, [candidate]) == candidate
    assert overlap((), [Range(0, 1)]) is None
