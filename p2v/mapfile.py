"""Copy progress as text, in GNU ddrescue's form: readable and writable by ddrescue, both ways.

    # Mapfile. Created by p2v 0.1.0
    # current_pos  current_status  current_pass
    0x00120000     ?               1
    #      pos        size  status
    0x00000000  0x00120000  +
    0x00120000  0x00EE0000  ?

Blocks are contiguous from 0 on. What a copy leaves out because nobody needs it stays non-tried, so that
ddrescue can complete it. Source: the manual of GNU ddrescue 1.27, "Mapfile structure"; checked with
ddrescue and ddrescuelog.
"""

from __future__ import annotations

import bisect
import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2v.errors import LayoutError, Where

LARGEST = 64 << 20  # bytes of text: a million blocks; whoever writes more is no rescue
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,22}|[1-9][0-9]{0,19}", re.ASCII)
_END = 1 << 63  # bytes: Linux counts a disk's bytes in 63 bits


class Status(enum.Enum):
    """What became of a block."""

    NON_TRIED = "?"
    NON_TRIMMED = "*"  # a big read failed in it
    NON_SCRAPED = "/"  # its edges are known to be bad, its inside was not tried sector by sector
    BAD = "-"
    FINISHED = "+"


class Activity(enum.Enum):
    """What was being done when the map was saved."""

    COPYING = "?"
    TRIMMING = "*"
    SCRAPING = "/"
    RETRYING = "-"
    FILLING = "F"
    GENERATING = "G"
    DONE = "+"


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes offset to offset + length of one status."""

    offset: int
    length: int
    status: Status

    @property
    def end(self) -> int:
        """The first byte past the block."""
        return self.offset + self.length


class Mapfile:
    """What is known of each byte of a disk of size bytes: non-tried at first.

    position, activity, passes: where the work is. passes counts from 1.
    """

    def __init__(self, size: int) -> None:
        if not 0 < size < _END:
            raise ValueError(f"no disk has {size} bytes")
        self.size = size
        self.position, self.activity, self.passes = 0, Activity.COPYING, 1
        self._starts = [0]
        self._statuses = [Status.NON_TRIED]

    def __len__(self) -> int:
        return len(self._starts)

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[Block]:
        """What lies between start and end, ascending, touching; neighbours differ. Set nothing meanwhile."""
        stop = self.size if end is None else min(end, self.size)
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < stop:
            low, high = max(self._starts[index], start), min(self._end(index), stop)
            if low < high:
                yield Block(low, high - low, self._statuses[index])
            index += 1

    def find(self, status: Status, start: int = 0, end: int | None = None) -> Block | None:
        """The first block of a status between start and end, cut to them."""
        return next((block for block in self.blocks(start, end) if block.status is status), None)

    def find_last(self, status: Status, start: int, end: int) -> Block | None:
        """The last block of a status between start and end, cut to them."""
        index = bisect.bisect_left(self._starts, end) - 1
        while index >= 0 and self._end(index) > start:
            if self._statuses[index] is status:
                low, high = max(self._starts[index], start), min(self._end(index), end)
                return Block(low, high - low, status)
            index -= 1
        return None

    def set(self, offset: int, length: int, status: Status) -> None:
        """These bytes are of this status now."""
        end = offset + length
        if offset < 0 or length <= 0 or end > self.size:
            raise ValueError(f"bytes {offset:#x} to {end:#x} of a map of {self.size:#x}")
        low = bisect.bisect_left(self._starts, offset)
        high = bisect.bisect_right(self._starts, end) - 1  # the block that holds byte end, or ended there
        after = self._statuses[high]
        starts, statuses = [offset], [status]
        if low and self._statuses[low - 1] is status:
            starts, statuses = [], []
        high += 1
        if end < self.size and after is not status:
            starts.append(end)
            statuses.append(after)
        self._starts[low:high] = starts
        self._statuses[low:high] = statuses

    def sum(self, status: Status) -> int:
        """Bytes of this status."""
        return sum(block.length for block in self.blocks() if block.status is status)

    def to_text(self, comments: Sequence[str] = ()) -> str:
        """The file. comments: one line each; they inform people only."""
        head = [f"# {' '.join(line.split())}" for line in comments]
        lines = [f"{_hex(b.offset)}  {_hex(b.length)}  {b.status.value}" for b in self.blocks()]
        return "\n".join([
            *head,
            "# current_pos  current_status  current_pass",
            f"{_hex(self.position)}     {self.activity.value}               {self.passes}",
            "#      pos        size  status",
            *lines,
        ]) + "\n"

    def _end(self, index: int) -> int:
        return self._starts[index + 1] if index + 1 < len(self._starts) else self.size


def from_text(text: str, size: int, name: str = "the mapfile") -> Mapfile:
    """The map of a disk of size bytes.

    Numbers are C's: 0x1F, 31, 037. Old files lack current_pass. What lies before the first block or behind
    the last is non-tried. Raises LayoutError naming the line.
    """
    if len(text) > LARGEST:
        raise _wrong(name, 0, f"{len(text)} characters, more than any rescue leaves")
    rows = _rows(text)
    found = Mapfile(size)
    number, words = next(rows, (0, ()))
    _read_status(found, name, number, words)
    starts, statuses, at = [0], [Status.NON_TRIED], 0
    for number, words in rows:
        offset, length, status = _block(name, number, words)
        if at and offset != at:
            raise _wrong(name, number, f"the blocks do not touch: {offset:#x} after {at:#x}")
        at = offset + length
        if at > size:
            raise _wrong(name, number, f"a block ends at {at:#x}, the disk at {size:#x}")
        _add(starts, statuses, offset, status)
    if not at:
        raise _wrong(name, number, "there is no block")
    if at < size:
        _add(starts, statuses, at, Status.NON_TRIED)
    found._starts, found._statuses = starts, statuses
    return found


def _add(starts: list[int], statuses: list[Status], offset: int, status: Status) -> None:
    """The next block begins at offset."""
    if starts[-1] == offset:
        statuses[-1] = status
    elif statuses[-1] is not status:
        starts.append(offset)
        statuses.append(status)


def _rows(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line number, words) of the lines that hold more than a comment."""
    for number, line in enumerate(text.split("\n"), 1):
        words = tuple(line.split("#", 1)[0].split())
        if words:
            yield number, words


def _read_status(found: Mapfile, name: str, number: int, words: Sequence[str]) -> None:
    """The first line: position, status, and in newer files the pass."""
    if len(words) not in (2, 3):
        raise _wrong(name, number, "the line of current_pos, current_status, current_pass is missing")
    found.position = _number(name, number, words[0])
    try:
        found.activity = Activity(words[1])
    except ValueError as error:
        raise _wrong(name, number, f"{words[1]!r} is no current status") from error
    if len(words) == 3:
        found.passes = _number(name, number, words[2])
        if not 1 <= found.passes < 1 << 31:
            raise _wrong(name, number, f"there is no pass {words[2]}")


def _block(name: str, number: int, words: Sequence[str]) -> tuple[int, int, Status]:
    if len(words) != 3:
        raise _wrong(name, number, f"a block has pos, size and status, not {len(words)} words")
    offset, length = _number(name, number, words[0]), _number(name, number, words[1])
    if not length:
        raise _wrong(name, number, "a block of no bytes")
    try:
        return offset, length, Status(words[2])
    except ValueError as error:
        raise _wrong(name, number, f"{words[2]!r} is no status") from error


def _number(name: str, number: int, word: str) -> int:
    """A C-style number below 2^63."""
    if not _NUMBER.fullmatch(word):
        raise _wrong(name, number, f"{word[:40]!r} is no number")
    octal = word[0] == "0" and len(word) > 1 and word[1] not in "xX"
    value = int(word, 8 if octal else 0)
    if value >= _END:
        raise _wrong(name, number, f"{word} is beyond any disk")
    return value


def _hex(number: int) -> str:
    return f"0x{number:08X}"


def _wrong(name: str, number: int, why: str) -> LayoutError:
    return LayoutError(f"{name} is no mapfile of this disk", Where(name, item=f"line {number}" if number else ""),
                       why, "give the mapfile that belongs to this disk, or begin again without one")
