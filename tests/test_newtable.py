"""The table of a disk that is put together: entries kept, retyped, dropped and made."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from p2v import newtable
from p2v.errors import PlanError
from p2v.model import Partition, Source, read
from p2v.newtable import Seat, fitting_type, new_signature, standard_code
from p2v.source.assembled import Assembled, Part
from p2v.testing import MemorySource
from p2v.volume import mbr

SIZE = 4000 * 512


def disk_with(entries: Sequence[tuple[int, int, int, int]], *, code: bool = True, signature: int = 77) -> MemorySource:
    """A disk with these (flag, type, start, count)."""
    data = bytearray(SIZE)
    data[:440] = b"\x90" * 440 if code else bytes(440)
    struct.pack_into("<I", data, 0x1B8, signature)
    for slot, (flag, kind, start, count) in enumerate(entries):
        struct.pack_into("<B3xB3xII", data, 0x1BE + 16 * slot, flag, kind, start, count)
    data[510:512] = b"\x55\xaa"
    return MemorySource(bytes(data), "disk")


def partitions_of(source: Source) -> list[Partition]:
    return [found for found in mbr.find({"disk0": source}) if isinstance(found, Partition)]


def after(source: Source, seats: Sequence[Seat], gone: Sequence[int] = (), *, starts: bool = True,
          taken: Sequence[int] = ()) -> tuple[list[Partition], Source]:
    made = list(newtable.patches(source, "disk0", partitions_of(source), seats, gone, starts=starts,
                                 code=standard_code(), taken=taken))
    for patch in made:
        assert read(source, patch.offset, len(patch.before)) == patch.before and patch.why
    patched = Assembled([Part(0, source.size, source, 0)], "disk", size=source.size,
                        patches=[(patch.offset, patch.after) for patch in made])
    return partitions_of(patched), patched


def test_an_entry_for_the_whole_dynamic_disk_shrinks_to_its_volume() -> None:
    source = disk_with([(0x80, 0x42, 63, 3900)])
    (whole,) = partitions_of(source)
    seats = [Seat("C", 63 * 512, 1000 * 512, 7, True, whole), Seat("D", 1063 * 512, 500 * 512, 7)]
    found, _ = after(source, seats)
    assert [(p.type, p.active, p.offset // 512, p.length // 512) for p in found] == [
        (7, True, 63, 1000), (7, False, 1063, 500)]


def test_a_volume_of_more_than_two_tib_is_refused() -> None:
    """A spanned volume may be as large; its count of sectors would not fit into the entry."""
    for start in (2 << 11, 63):
        seat = Seat("ldm.Volume2", start * 512, (1 << 32) * 512 - 63 * 512, 7)
        with pytest.raises(PlanError, match=r"ldm.Volume2 does not fit") as caught:
            after(disk_with([]), [seat])
        assert "--layout keep" in caught.value.next


def test_a_partition_that_is_longer_than_its_volume_stays_as_long() -> None:
    source = disk_with([(0x80, 0x42, 63, 1100), (0, 0x83, 2000, 100)])
    first, _ = partitions_of(source)
    found, _ = after(source, [Seat("C", 63 * 512, 1000 * 512, 7, True, first)])
    assert [(p.type, p.length // 512) for p in found] == [(7, 1100), (0x83, 100)]


def test_the_slot_of_a_filler_is_used_again() -> None:
    source = disk_with([(0x80, 0x42, 63, 1000), (0, 0x42, 1063, 100), (0, 0x12, 1200, 10), (0, 0x12, 1300, 10)])
    first, filler, *_ = partitions_of(source)
    seats = [Seat("C", 63 * 512, 1000 * 512, 7, True, first), Seat("D", 1500 * 512, 500 * 512, 6)]
    found, _ = after(source, seats, [filler.entry_offset])
    assert [(p.type, p.number) for p in found] == [(7, 1), (6, 2), (0x12, 3), (0x12, 4)]


def test_data_behind_a_header_move_the_entry() -> None:
    source = disk_with([(0, 0xFD, 63, 3000)])
    (member,) = partitions_of(source)
    found, _ = after(source, [Seat("md", 2111 * 512, 900 * 512, 0x83, False, member)], starts=False)
    assert [(p.type, p.offset // 512, p.length // 512) for p in found] == [(0x83, 2111, 900)]


def test_exactly_the_system_volume_is_active() -> None:
    source = disk_with([(0x80, 0x12, 63, 100), (0, 0x87, 200, 1000)])
    _, shadow = partitions_of(source)
    found, _ = after(source, [Seat("C", 200 * 512, 1000 * 512, 7, True, shadow)])
    assert [p.active for p in found] == [False, True]
    kept, _ = after(source, [Seat("C", 200 * 512, 1000 * 512, 7, True, shadow)], starts=False)
    assert [p.active for p in kept] == [True, False]  # a data disk's flags are nobody's concern


@pytest.mark.parametrize("code", [False, True])
def test_boot_code_is_given_only_where_there_is_none(code: bool) -> None:
    source = disk_with([(0x80, 0x87, 63, 1000)], code=code)
    (member,) = partitions_of(source)
    _, made = after(source, [Seat("C", 63 * 512, 1000 * 512, 7, True, member)])
    assert read(made, 0, 440) == (b"\x90" * 440 if code else standard_code())


@pytest.mark.parametrize("signature", [0, 5])
def test_each_disk_has_a_signature_of_its_own(signature: int) -> None:
    source = disk_with([(0x80, 0x87, 63, 1000)], signature=signature)
    (member,) = partitions_of(source)
    seat = Seat("C", 63 * 512, 1000 * 512, 7, True, member)
    _, made = after(source, [seat], taken=[5])
    found = int.from_bytes(read(made, 0x1B8, 4), "little")
    assert found not in (0, 5) and read(after(source, [seat], taken=[5])[1], 0x1B8, 4) == read(made, 0x1B8, 4)


def test_signatures_that_are_taken_are_passed_over() -> None:
    first = int.from_bytes(new_signature(b"seed", ()), "little")
    assert int.from_bytes(new_signature(b"seed", (first,)), "little") not in (0, first)


def test_types() -> None:
    ntfs = b"\xeb\x52\x90NTFS    ".ljust(510, b"\0") + b"\x55\xaa"
    assert fitting_type(ntfs, 0x07) == 7 and fitting_type(ntfs, 0x06) == 7 and fitting_type(ntfs, 0) == 7
    assert fitting_type(bytes(512), 0x83) == 0x83


def test_the_free_code_is_whole() -> None:
    assert len(standard_code()) == 440 and b"Missing operating system" in standard_code()
