"""Sets of NT 4, of Linux and of firmware make plain disks with the same files: for imaging, whatever the system."""

from __future__ import annotations

import lzma
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import p2v
from fixtures import firmware, ftdata, lvm, md
from p2v import arranging
from p2v.errors import PlanError
from p2v.model import Source, read
from p2v.source.device import open_disk
from p2v.volume import find_volumes
from tests.run.test_mirrors import hashes_on


def on_plain_disks(disks: tuple[Path, ...], legs: Mapping[str, str] | None = None) -> list[dict[str, str]]:
    with ExitStack() as stack:
        given: dict[str, Source] = {}
        for number, path in enumerate(disks):
            given[f"disk{number}"] = source = open_disk(str(path))
            stack.callback(source.close)
        made = arranging.arrange(given, legs)
        assert made.built is not None
        layout = find_volumes(made.disks)
        assert not layout.mirrors and all(volume.origin is None for volume in layout.volumes)
        return hashes_on(made.disks)


def test_sets_of_nt4_become_disks_of_their_own(tmp_path: Path) -> None:
    data = ftdata.build_data(tmp_path)
    found = on_plain_disks(data.server.disks)
    assert len(found) == 4  # C: and the three sets, each on a disk
    for name, files in data.files.items():
        assert any(files.items() <= one.items() for one in found), name


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, md.Content]:
    return {whole: md.make_content(tmp_path_factory.mktemp("content"), whole=whole) for whole in (False, True)}


@pytest.mark.parametrize("version", ["0.90", "0.90-big", "1.0", "1.1", "1.2"])
@pytest.mark.parametrize(("partition", "whole"), [(False, False), (False, True), (True, False)])
def test_mirrors_of_linux(
    version: str, partition: bool, whole: bool, tmp_path: Path, contents: dict[bool, md.Content]
) -> None:
    content = contents[whole]
    wanted = hashes_of(content.now, whole=whole)
    for case in ("healthy", "missing", "stale", "recovering"):
        disks = md.build_mirror(tmp_path, content, version, case, partition=partition)
        for order in {disks, disks[::-1]}:
            assert on_plain_disks(order) == wanted, case


def hashes_of(path: Path, *, whole: bool) -> list[dict[str, str]]:
    source = open_disk(str(path))
    try:
        if whole:
            return hashes_on({"disk0": source})
        from p2v.filesystem import examine, open_files
        from tests.run.test_mirrors import hashes_in

        return [hashes_in(open_files(source, examine(source)))]
    finally:
        source.close()


def test_a_split_brain_of_linux_waits_for_the_users_word(tmp_path: Path, contents: dict[bool, md.Content]) -> None:
    content = contents[True]
    disks = md.build_mirror(tmp_path, content, "1.2", "split")
    with pytest.raises(PlanError) as refused:
        on_plain_disks(disks)
    assert "--leg" in refused.value.next
    assert on_plain_disks(disks, {"": "disk1"}) == hashes_of(content.before, whole=True)


@pytest.mark.parametrize("kind", ["imsm", "ddf"])
def test_mirrors_of_firmware(kind: str, tmp_path: Path, contents: dict[bool, md.Content]) -> None:
    content = contents[True]
    made = [firmware.imsm(content.size) if kind == "imsm" else firmware.ddf(content.size, own) for own in (0, 1)]
    disks = tuple(firmware.member(tmp_path / f"{own}.img", content.now, made[own]) for own in (0, 1))
    assert on_plain_disks(disks) == hashes_of(content.now, whole=True)


def test_a_set_without_a_guest_is_imaged_and_verified(tmp_path: Path, contents: dict[bool, md.Content]) -> None:
    disks = md.build_mirror(tmp_path, contents[True], "1.0", "stale")
    p2v.image(disks, tmp_path / "vm.raw", layout="collapse", compare=True)
    p2v.verify(tmp_path / "vm.raw.p2v", source=True)
    assert hashes_of(tmp_path / "vm.raw", whole=True) == hashes_of(contents[True].now, whole=True)


def test_volumes_of_lvm_are_shown_and_their_disks_stay_as_they_are(tmp_path: Path) -> None:
    text = lvm.group({"root": lvm.volume(lvm.striped(0, 4, [("pv0", 2)]))}, physical=1)
    disk = tmp_path / "disk0.img"
    disk.write_bytes(lvm.physical_volume(0, text, bytes(range(256)) * 8192))
    seen = p2v.inspect([disk])
    assert [(one.name.split(".")[0], one.layout) for one in seen.volumes] == [("lvm", "simple")] and not seen.pieces
    p2v.image([disk], tmp_path / "copy.raw", layout="collapse")
    assert (tmp_path / "copy.raw").read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("names", [
    ("2003r2-mirrored-1", "2003r2-mirrored-2"), ("2003r2-mirrored-2",), ("2003r2-simple-1",),
    ("2003r2-raid5-1", "2003r2-raid5-2", "2003r2-raid5-3", "2003r2-striped-2", "2003r2-striped-1"),
    ("2003r2-raid5-3", "2003r2-raid5-1"), ("2008r2-striped-1", "2008r2-striped-2"),
])
def test_real_dynamic_disks(names: tuple[str, ...], tmp_path: Path, corpus: Path, needs) -> None:
    """Made by Windows: what they collapse to is whole for ntfsresize, which has never heard of sets."""
    needs("ntfsresize")
    disks = []
    for name in names:
        disks.append(tmp_path / f"{name}.img")
        disks[-1].write_bytes(lzma.decompress((corpus / "ldm" / f"ldm-{name}.img.xz").read_bytes()))
    with ExitStack() as stack:
        given: dict[str, Source] = {}
        for number, path in enumerate(disks):
            given[f"disk{number}"] = source = open_disk(str(path))
            stack.callback(source.close)
        volumes = find_volumes(arranging.arrange(given).disks).volumes
        assert volumes
        for volume in volumes:
            partition = tmp_path / "partition"
            partition.write_bytes(read(volume.source, 0, volume.source.size))
            hidden = int.from_bytes(read(volume.source, 0x1C, 4), "little")
            assert volume.partition is not None and hidden * 512 == volume.partition.offset
            done = subprocess.run(["ntfsresize", "-i", "-f", str(partition)], capture_output=True, text=True)
            assert done.returncode == 0 and "inconsistent" not in done.stdout.lower(), done.stdout
