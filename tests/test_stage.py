"""The stage without an appliance: qemu-io edits the overlay, as qemu inside the appliance does."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from p2v import stage
from p2v.editing import within_edits
from p2v.errors import GuestError, MismatchError, Unsupported, WriteError
from p2v.model import SECTOR, BytesChange, Range, Source, read
from p2v.source.device import open_disk
from p2v.stage import Stage, digest, overlaid
from p2v.testing import FaultySource, MemorySource, check_source, numbered_sectors

SIZE = 3 << 20


@pytest.fixture(autouse=True)
def tools(needs: Callable[..., None]) -> None:
    needs("qemu-img", "qemu-io", "qemu-nbd")


def qemu_io(path: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", "-f", "qcow2", *words, str(path)], capture_output=True, text=True)
    return done.stdout + done.stderr


def edit(source: Source, path: Path, *commands: str) -> dict[str, list[Range]]:
    """Run qemu-io on a staged source. Returns the failed reads."""
    with Stage({"disk0": source}, {"disk0": path}) as staged:
        [(disk, name, format)] = staged.disks
        assert (disk, name, format) == ("disk0", str(path), "qcow2")
        said = qemu_io(path, *commands)
        assert "ops" in said, said
        return staged.failed_reads()


@pytest.mark.parametrize("size", [SIZE, SIZE + 5 * SECTOR, SIZE - 3 * SECTOR - 100], ids=["even", "sectors", "odd"])
def test_edits_are_read_back_over_an_untouched_source(tmp_path: Path, size: int) -> None:
    disk, overlay = tmp_path / "disk.img", tmp_path / "edits.qcow2"
    disk.write_bytes(numbered_sectors("disk", size))
    before = hashlib.sha256(disk.read_bytes()).digest()
    source: Source = MemorySource(disk.read_bytes()) if size % SECTOR else open_disk(str(disk))
    failed = edit(source, overlay, "write -P 0x5a 512 512", f"write -P 0xa5 {size // 2 & ~511} 70000",
                  f"write -z {1 << 20} 4096", f"write -P 0x77 {(size - 1) & ~511} 512")
    assert failed == {"disk0": []}
    expected = bytearray(disk.read_bytes())
    expected[512:1024] = b"\x5a" * 512
    expected[size // 2 & ~511 : (size // 2 & ~511) + 70000] = b"\xa5" * 70000
    expected[1 << 20 : (1 << 20) + 4096] = bytes(4096)
    expected[(size - 1) & ~511 :] = b"\x77" * (size - ((size - 1) & ~511))
    edited = overlaid(source, overlay)
    check_source(edited, bytes(expected))
    edited.close()
    with pytest.raises(ValueError, match="closed"):
        read(edited, 0, 1)
    assert read(source, 0, 16) == expected[:16]  # closing the overlay leaves the source open
    assert hashlib.sha256(disk.read_bytes()).digest() == before


def test_raw_bytes_are_written_where_their_before_is(tmp_path: Path) -> None:
    data = numbered_sectors("disk", SIZE)
    source = FaultySource(MemorySource(data), [Range(512, 512)])  # beside both places
    overlay = tmp_path / "edits.qcow2"
    changes = [BytesChange("disk0", at, data[at : at + 3], b"new", "a test") for at in (440, 1030)]
    with Stage({"disk0": source}, {"disk0": overlay}) as staged:
        staged.write_bytes(changes)
        with pytest.raises(GuestError, match="does not show"):
            staged.write_bytes(changes)
        assert staged.failed_reads() == {"disk0": []}
    edited = overlaid(source, overlay)
    assert read(edited, 0, 512) == data[:440] + b"new" + data[443:512]
    assert read(edited, 1024, 512) == data[1024:1030] + b"new" + data[1033:1536]
    edited.close()


def test_an_edit_leaves_its_neighbours_to_the_source(tmp_path: Path) -> None:
    source, overlay = MemorySource(numbered_sectors("disk", SIZE)), tmp_path / "edits.qcow2"
    edit(source, overlay, "write 33280 512", "write 1000448 1024")
    with_edits = overlaid(source, overlay)
    assert with_edits.changed == (Range(33280, 512), Range(1000448, 1024))  # type: ignore[attr-defined]
    with_edits.close()
    assert overlay.stat().st_size < 300_000


def test_a_bad_sector_beside_an_edit_is_never_read(tmp_path: Path) -> None:
    data = numbered_sectors("disk", SIZE)
    source = FaultySource(MemorySource(data), [Range(1024, 512), Range(2048, 512)])
    overlay = tmp_path / "edits.qcow2"
    failed = edit(source, overlay, "write -P 0x5a 1536 512")
    assert failed == {"disk0": []}
    edited = overlaid(source, overlay)
    assert read(edited, 1536, 512) == b"\x5a" * 512
    assert read(edited, 2560, 512) == data[2560:3072]
    edited.close()


def test_a_bad_sector_inside_an_edit_is_told(tmp_path: Path) -> None:
    source = FaultySource(MemorySource(numbered_sectors("disk", SIZE)), [Range(4096, 512), Range(1 << 20, 512)])
    overlay = tmp_path / "edits.qcow2"
    with Stage({"disk0": source}, {"disk0": overlay}) as staged:
        assert "Input/output error" in qemu_io(overlay, "read 0 8192", f"read {1 << 20} 512")
        qemu_io(overlay, "write -P 0x5a 3584 1024")  # what was read as zeroes might be written back
        failed = staged.failed_reads()
    assert failed == {"disk0": [Range(4096, 512), Range(1 << 20, 512)]}
    [inside] = within_edits(failed, {"disk0": overlay})
    assert (inside.source, inside.offset, inside.length) == ("disk0", 4096, 512)


def test_an_overlay_that_exists_is_used_further(tmp_path: Path) -> None:
    source, overlay = MemorySource(numbered_sectors("disk", SIZE)), tmp_path / "edits.qcow2"
    edit(source, overlay, "write -P 0x11 0 512")
    first = digest(overlay)
    assert first == hashlib.sha256(overlay.read_bytes()).hexdigest() == digest(overlay)
    edit(source, overlay, "read -P 0x11 0 512", "write -P 0x22 4096 512")  # over another socket
    assert digest(overlay) != first
    edited = overlaid(source, overlay)
    assert (read(edited, 0, 1), read(edited, 4096, 1)) == (b"\x11", b"\x22")
    edited.close()


def test_an_overlay_of_another_disk_is_refused(tmp_path: Path) -> None:
    overlay, other = tmp_path / "edits.qcow2", MemorySource(bytes(SIZE + SECTOR))
    edit(MemorySource(bytes(SIZE)), overlay, "write 0 512")
    kept = overlay.read_bytes()
    with pytest.raises(MismatchError, match="another disk"), Stage({"disk0": other}, {"disk0": overlay}):
        pass
    with pytest.raises(MismatchError, match="another disk"):
        overlaid(other, overlay)
    assert overlay.read_bytes() == kept


@pytest.mark.parametrize("offset", [0, 0x30, 1 << 16])
def test_a_damaged_overlay_is_refused(tmp_path: Path, offset: int) -> None:
    source, overlay = MemorySource(bytes(SIZE)), tmp_path / "edits.qcow2"
    edit(source, overlay, "write -P 1 0 65536")
    tables = overlay.read_bytes()
    with open(overlay, "r+b") as file:  # the header, the refcount table's place, or an L2 entry
        file.seek(offset)
        file.write(b"\xff" * 16)
    assert overlay.read_bytes() != tables
    with pytest.raises(MismatchError, match="damaged"):
        overlaid(source, overlay)


def test_several_disks_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / ("run, of: 'a b'=%20 ü" * 8)  # too long for a socket's path, too
    folder.mkdir()
    sources = {f"disk{n}": MemorySource(numbered_sectors(f"disk{n}", SIZE)) for n in range(3)}
    overlays = {disk: folder / f"{disk}.qcow2" for disk in ("disk2", "disk0")}
    with Stage(sources, overlays) as staged:
        assert [disk for disk, _, _ in staged.disks] == ["disk2", "disk0"]
        for disk, path, _ in staged.disks:
            assert "ops" in qemu_io(Path(path), f"read -P {ord('d')} 0 1", f"write -P {disk[-1]} 512 512")
    for disk, path in overlays.items():
        edited = overlaid(sources[disk], path)
        assert read(edited, 512, 1) == bytes([int(disk[-1])])
        assert read(edited, 1024, 8) == sources[disk]._data[1024:1032]
        edited.close()
    assert digest(overlays["disk0"]) != digest(overlays["disk2"])


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "LIMIT", SIZE - 1)
    source, overlay = MemorySource(bytes(SIZE)), tmp_path / "edits.qcow2"
    with pytest.raises(Unsupported, match="too large"), Stage({"disk0": source}, {"disk0": overlay}):
        pass
    with pytest.raises(WriteError, match="cannot be made"), \
            Stage({"disk0": MemorySource(bytes(SECTOR))}, {"disk0": tmp_path / "nowhere" / "edits.qcow2"}):
        pass
    with pytest.raises(WriteError, match="cannot be written"):
        digest(overlay)
    assert os.listdir(tmp_path) == []


def test_sockets_go_with_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(sockets))
    with pytest.raises(KeyboardInterrupt), \
            Stage({"disk0": MemorySource(bytes(SIZE))}, {"disk0": tmp_path / "edits.qcow2"}):
        assert len(list(sockets.rglob("*"))) == 3  # a folder, its lock, the socket
        raise KeyboardInterrupt
    assert list(sockets.iterdir()) == []
