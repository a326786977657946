"""Copying a mirror's chosen leg with the other one beside it: what the image holds when either fails."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures import mirrors
from fixtures.ldmserver import LdmServer
from p2v import arranging
from p2v.checkpoint import tie
from p2v.copy import plan_copy, verify_copy
from p2v.errors import PlanError, Severity, Where
from p2v.filesystem import examine, open_files
from p2v.formats import FORMATS
from p2v.keeping import CopyLog, Job, copy_image
from p2v.model import Range, Source, no_progress
from p2v.pairing import COMPARED, Copying, LegOptions, Outcome, copy_both, short_names
from p2v.source.device import open_disk
from p2v.testing import FaultySource, MemorySource
from p2v.volume import find_volumes


def copied(server: LdmServer, folder: Path, options: LegOptions = COMPARED, *, format: str = "qcow2",
           more_bad: Sequence[Range] = ()) -> tuple[Outcome, Path]:
    """The server's plain disk as an image; server.bad cannot be read, and more_bad of disk 0 (from when it copies)."""
    with ExitStack() as stack:
        given: dict[str, FaultySource] = {}
        for number, path in enumerate(server.disks):
            source = open_disk(str(path))
            stack.callback(source.close)
            given[f"disk{number}"] = FaultySource(source, server.bad.get(path, ()))
        made = arranging.arrange(given, shared=options.trust_equal)
        given["disk0"].bad = tuple(sorted((*given["disk0"].bad, *more_bad), key=lambda spot: spot.offset))
        assert made.built is not None
        plain = made.built.disks["disk0"]
        extents = plan_copy(plain.source)
        job = Job(FORMATS[format], folder / f"image{FORMATS[format].SUFFIX}", CopyLog(folder, "disk0"), tie(extents))
        copying = Copying("disk0", plain, plain.source, extents, job.form, short_names(given), job.keeper())
        outcome = copy_both(copying, lambda source: copy_image(source, extents, job), options, no_progress, None)
        assert outcome.writer is not None
        outcome.writer.finish()
        image = FORMATS[format].read(str(job.path))
        stack.callback(image.close)
        verify_copy(image, outcome.report)
        return outcome, job.path


def hashes(image: Path, format: str = "qcow2") -> dict[str, str]:
    source = FORMATS[format].read(str(image))
    try:
        (volume,) = find_volumes({"disk0": source}).volumes
        files = open_files(volume.source, examine(volume.source))
        return {f"\\Data\\{name}": hashlib.sha256(files.read(f"\\Data\\{name}")).hexdigest()
                for name in files.list("\\Data")}
    finally:
        source.close()


def data_of(server: LdmServer, leg: int) -> dict[str, str]:
    return {path: digest for path, digest in server.assemblies[0].files[leg].items() if path.startswith("\\Data")}


def test_legs_in_step_with_different_bad_sectors_give_a_perfect_image(tmp_path: Path) -> None:
    server = mirrors.build_mirror_2003(tmp_path / "server", bad_sectors=(0, 1))
    outcome, image = copied(server, tmp_path)
    assert not outcome.report.bad and hashes(image) == data_of(server, 0)
    assert {one.leg for one in outcome.filled} == {"disk1.img"}
    assert sum(one.range.length for one in outcome.filled) >= 2 * 8 * 512


def test_bad_sectors_beside_the_mirror_are_read_to_the_last_one(tmp_path: Path) -> None:
    """Behind the volume nothing is mirrored: one bad sector loses one sector, not a block."""
    server = mirrors.build_mirror_2003(tmp_path / "server")
    part = server.assemblies[0].parts[0]
    spot = Range(part.offset + part.length + 100 * 512, 512)
    with open(server.disks[0], "r+b") as file:  # else it is a hole, and nobody reads it
        file.seek(spot.offset - 8192)
        file.write(b"left over" * 4096)
    outcome, _ = copied(server, tmp_path, more_bad=[spot])
    assert [Range(one.offset, one.length) for one in outcome.report.bad] == [spot]


def test_a_stale_leg_fills_nothing_unless_the_user_says_so(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror-holes"](tmp_path / "server")
    outcome, image = copied(server, tmp_path)
    lost = sum(one.length for one in outcome.report.bad)
    assert lost == sum(spot.length for spots in server.bad.values() for spot in spots)
    assert any("--rescue-from-stale" in finding.next for finding in outcome.findings)
    assert any("differ" in finding.what and finding.severity is Severity.WARNING for finding in outcome.findings)
    differing = {path for path, digest in hashes(image).items() if digest != data_of(server, 0)[path]}
    assert len(differing) == 2  # of the two holes; all else is the current leg's


def test_a_stale_leg_whose_differences_hide_in_the_holes_fills_nothing(tmp_path: Path) -> None:
    """Where both can be read they are equal, yet metadata and filesystem say that one of them is months old."""
    server = mirrors.BUILDERS["ldm-mirror-stale"](tmp_path / "server")
    part = server.assemblies[0].parts[0]
    legs = [disk.read_bytes()[part.offset:part.offset + part.length] for disk in server.disks]
    chunks = range(0, part.length, 4096)  # even the journal, once the evidence was read
    holes = [Range(part.offset + at, 4096) for at in chunks if legs[0][at:at + 4096] != legs[1][at:at + 4096]]
    assert holes
    outcome, _ = copied(server, tmp_path, more_bad=holes)
    assert outcome.report.bad and {one.leg for one in outcome.filled} <= {"disk0.img"}


def test_by_the_users_word_old_content_fills_holes_in_plain_files(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror-holes"](tmp_path / "server")
    outcome, image = copied(server, tmp_path, LegOptions(from_stale=True))
    assert not outcome.report.bad and outcome.filled
    wrong = {path for path, digest in hashes(image).items() if digest != data_of(server, 0)[path]}
    assert len(wrong) == 1  # the file that has changed since; the other hole's content was the same then
    named = {f.where.item for f in outcome.findings if f.severity is Severity.WARNING and "of the stale leg" in f.what}
    assert wrong < named and len(named) == 2
    (said,) = [f for f in outcome.findings if "come from another leg" in f.what]
    assert said.severity is Severity.WARNING and said.what.startswith(f"{2 * 8 * 512} bytes in 2 range(s)")


def test_what_is_told_of_bad_places_is_what_is_left_of_them(tmp_path: Path) -> None:
    """The copy leaves bad places in blocks of 64 KiB; their other sectors are read afterwards, from the same leg."""
    server = mirrors.BUILDERS["ldm-mirror-holes"](tmp_path / "server")
    outcome, _ = copied(server, tmp_path)
    assert not [f for f in outcome.findings if "come from another leg" in f.what]
    (said,) = [f for f in outcome.findings if "cannot be read" in f.what]
    (hole, _) = sorted(server.bad[server.disks[0]], key=lambda r: r.offset)
    start = server.assemblies[0].parts[0].offset
    assert "8.0 KiB on disk0.img" in said.what
    assert said.where == Where("disk0p1", hole.offset - start, hole.length, "on disk0.img")


def test_disks_of_one_name_in_two_folders_are_told_apart() -> None:
    def disks(*names: str) -> dict[str, Source]:
        return {f"disk{number}": MemorySource(b"", name) for number, name in enumerate(names)}

    assert short_names(disks("/old/sda.img", "/old/sdb.img")) == {"disk0": "sda.img", "disk1": "sdb.img"}
    assert set(short_names(disks("/one/sda.img", "/two/sda.img")).values()) == {"/one/sda.img", "/two/sda.img"}


def test_one_leg_alone_spares_the_other_disk(tmp_path: Path) -> None:
    server = mirrors.build_mirror_2003(tmp_path / "server", bad_sectors=(0, 1))
    outcome, _ = copied(server, tmp_path, LegOptions(single=True))
    assert outcome.report.bad and not outcome.filled and not outcome.findings


def test_legs_that_are_trusted_share_the_reading(tmp_path: Path) -> None:
    server = mirrors.build_mirror_2003(tmp_path / "server", bad_sectors=(0, 1))
    outcome, image = copied(server, tmp_path, LegOptions(trust_equal=True))
    assert not outcome.report.bad and hashes(image) == data_of(server, 0)


def test_the_users_word_does_not_mix_a_stale_leg_in(tmp_path: Path) -> None:
    """All that is on the disks says that the legs differ: half of each would be two histories in one volume."""
    server = mirrors.BUILDERS["ldm-mirror-stale"](tmp_path / "server")
    with pytest.raises(PlanError, match=r"disk1 would be mixed into disk0.*higher generation") as caught:
        copied(server, tmp_path, LegOptions(trust_equal=True))
    assert "leave --trust-equal out" in caught.value.next


@pytest.mark.parametrize("format", ["vmdk-stream", "qcow2-zstd"])
def test_a_format_that_only_streams_keeps_the_holes_and_says_so(format: str, tmp_path: Path) -> None:
    server = mirrors.build_mirror_2003(tmp_path / "server", bad_sectors=(0,))
    outcome, _ = copied(server, tmp_path, format=format)
    lost = sum(one.length for one in outcome.report.bad)
    assert lost == (8 * 512 * 2 if FORMATS[format].SEQUENTIAL else 0)
    assert not FORMATS[format].SEQUENTIAL or any("--format" in finding.next for finding in outcome.findings)
