"""Images through a private qemu-nbd: safe names, no guessing, and no process or folder left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v.errors import LayoutError, MissingTool, P2VError, PlanError, ReadError, Unsupported
from p2v.model import Kind, Range, read
from p2v.source import nbd
from p2v.source.nbd import allocated, open_image
from p2v.source.nbdclient import NbdSource
from p2v.testing import numbered_sectors

DATA = numbered_sectors("disk0", 1 << 20)
PROJECT = Path(nbd.__file__).parents[2]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch,
                         needs: Callable[..., None]) -> Iterator[Path]:
    """Whatever a test opens, no socket folder stays."""
    needs("qemu-nbd", "qemu-img", "qemu-io")
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL, cwd="/")


def serving(path: Path) -> list[int]:
    """The qemu-nbd processes that were told of a path."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            told = entry.name.isdigit() and path.name in (entry / "cmdline").read_text(errors="replace")
            if told and (entry / "comm").read_text().strip() == "qemu-nbd":
                found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", [
    "plain.img", "with space.img", "a,b=c,,d.img", "nbd:unix:x.img", "json:{}", "file:x.img", "%20\"'\\.img",
    "Käse 日本.img", "-r", "fat:rw:x",
])
def test_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(DATA)
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(open_image(name, "raw")) as image:
        assert (image.name, image.size) == (name, len(DATA))
        assert read(image, 0, image.size) == DATA


def test_the_format_is_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    qemu_img("create", "-f", "qcow2", path, "64M")
    with contextlib.closing(open_image(str(path), "raw")) as image:
        assert image.size < 1 << 20
        assert read(image, 0, 4) == b"QFI\xfb"  # a guest's bytes that look like a qcow2 stay a guest's bytes


def test_a_backing_file_whose_format_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(DATA)
    path = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "base", path)
    header = bytearray(path.read_bytes())
    at = header.index(bytes.fromhex("e2792aca00000003"))  # the header extension "backing format"
    header[at : at + 4] = b"junk"  # an unknown extension is skipped
    path.write_bytes(header)
    with pytest.raises(Unsupported, match="which format its backing file has") as caught:
        open_image(str(path), "qcow2")
    assert "qemu-img rebase" in caught.value.next
    with contextlib.closing(open_image(str(path), "qcow2", backing=False)) as image:
        assert read(image, 0, 512) == bytes(512)


@pytest.mark.parametrize("form", ["qcow2", "vpc", "vmdk", "vdi", "vhdx"])
def test_formats(form: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(DATA)
    qemu_img("convert", "-f", "raw", "-O", form, tmp_path / "base", tmp_path / "image")
    with contextlib.closing(open_image(str(tmp_path / "image"), form)) as image:
        assert read(image, 0, len(DATA)) == DATA


def test_a_backing_chain(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(DATA)
    path = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", "base", path)
    with contextlib.closing(open_image(str(path), "qcow2")) as image:
        assert read(image, 0, len(DATA)) == DATA
    assert allocated(str(path)) == ()
    (tmp_path / "base").unlink()
    with pytest.raises(LayoutError, match="cannot be opened as qcow2"):
        open_image(str(path), "qcow2")
    with contextlib.closing(open_image(str(path), "qcow2", backing=False)) as image:
        assert read(image, 0, image.size) == bytes(len(DATA))
        assert {extent.kind for extent in image.extents()} == {Kind.ZERO}


@pytest.mark.parametrize(("cluster", "options", "expected"), [
    (65536, "", (Range(0, 65536), Range(131072, 65536), Range(524288, 131072))),
    (16384, "extended_l2=on,", (Range(512, 512), Range(131072, 1024), Range(524800, 70144))),
])
def test_allocated(cluster: int, options: str, expected: tuple[Range, ...], tmp_path: Path) -> None:
    path = tmp_path / "a, b.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"{options}cluster_size={cluster}", path, "1M")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 512 512", "-c", "write -z 128k 1k",
                    "-c", "write 524900 70000", str(path)], check=True, stdout=subprocess.DEVNULL)
    assert allocated(str(path)) == expected


def test_a_large_image_is_asked_in_pages(tmp_path: Path) -> None:
    path = tmp_path / "large.qcow2"
    qemu_img("create", "-f", "qcow2", path, "2T")
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write {2**39} 64k", str(path)], check=True,
                   stdout=subprocess.DEVNULL)
    with contextlib.closing(open_image(str(path), "qcow2")) as image:
        shown = [(e.offset, e.length, e.kind) for e in image.extents()]
    end = 2**39 + 65536
    assert shown == [(0, 2**39, Kind.ZERO), (2**39, 65536, Kind.DATA), (end, 2**41 - end, Kind.ZERO)]


# -- bad input


def torn(path: Path) -> None:
    qemu_img("create", "-f", "qcow2", path, "1M")
    os.truncate(path, 100)


@pytest.mark.parametrize(("make", "kind"), [
    pytest.param(lambda path: None, PlanError, id="nothing"),
    pytest.param(Path.touch, LayoutError, id="empty"),
    pytest.param(Path.mkdir, LayoutError, id="folder"),
    pytest.param(lambda path: path.write_bytes(DATA), LayoutError, id="another format"),
    pytest.param(torn, LayoutError, id="torn"),
])
def test_refused(make: Callable[[Path], object], kind: type[P2VError], tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    make(path)
    for call in (lambda: open_image(str(path), "qcow2"), lambda: allocated(str(path)),
                 lambda: open_image(str(path), "qcow2", backing=False)):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.why and caught.value.next
    assert serving(path) == []


def test_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(DATA)
    with pytest.raises(LayoutError, match="as ghost"):
        open_image(str(tmp_path / "image"), "ghost")


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.img")
    Path(path).write_bytes(DATA)
    with pytest.raises(PlanError, match="UTF-8"):
        open_image(path, "raw")


def test_every_flipped_header_byte_is_an_answer_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", path, "1M")
    whole = path.read_bytes()
    for at in (0, 5, 7, 20, 23, 24, 35, 39, 47, 72, 95, 103):  # magic, version, cluster bits, size, L1, flags …
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(P2VError):
            allocated(str(path))


def test_missing_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(DATA)
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (lambda: open_image(str(tmp_path / "image"), "raw"), lambda: allocated(str(tmp_path / "image"))):
        with pytest.raises(MissingTool, match="qemu-") as caught:
            call()
        assert "qemu-utils" in caught.value.next
    monkeypatch.setitem(sys.modules, "nbd", None)
    with pytest.raises(MissingTool, match="libnbd") as caught:
        open_image(str(tmp_path / "image"), "raw")
    assert "python3-libnbd" in caught.value.next


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="does not answer"):
        NbdSource(f"{tmp_path}/nothing", "image")


# -- the process behind it


def test_read_only_and_out_of_reach_of_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    with contextlib.closing(open_image(str(path), "raw")):
        (pid,) = serving(path)
        assert os.getsid(pid) == os.getpgid(pid) == pid
        flags = [int(line.split()[1], 8) for number in os.listdir(f"/proc/{pid}/fd")
                 if os.readlink(f"/proc/{pid}/fd/{number}") == str(path)
                 for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines()
                 if line.startswith("flags:")]
        assert flags and all(flag & os.O_ACCMODE == os.O_RDONLY for flag in flags)
        (folder,) = Path(tempfile.gettempdir()).iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
    assert serving(path) == []


def test_dropped_without_close(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    image = open_image(str(path), "raw")
    assert serving(path)
    del image
    gc.collect()
    assert serving(path) == []


def test_the_program_ends_without_close(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    script = f"from p2v.source.nbd import open_image; kept = open_image({str(path)!r}, 'raw'); print(kept.size)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{len(DATA)}\n", "")
    assert serving(path) == []


def test_the_program_is_killed(tmp_path: Path, own_temporary_folder: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    script = (f"from p2v.source.nbd import open_image; kept = open_image({str(path)!r}, 'raw')\n"
              "print(kept.size, flush=True); import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.readline()
        assert serving(path)
        running.send_signal(signal.SIGKILL)
    wait_for(lambda: serving(path) == [])  # no process stays to hold the image's lock
    for left in own_temporary_folder.iterdir():
        os.utime(left, (1, 1))
    open_image(str(path), "raw").close()  # whoever comes next clears away what is left
    assert not list(own_temporary_folder.iterdir())


def test_the_server_dies(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    image = open_image(str(path), "raw")
    (pid,) = serving(path)
    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        with pytest.raises(ReadError) as caught:
            read(image, 4096, 512)
        assert (caught.value.where.offset, caught.value.where.length) == (4096, 512)
    with pytest.raises(ReadError):
        list(image.extents())
    image.close()
    image.close()


def test_two_at_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(DATA)
    with contextlib.closing(open_image(str(path), "raw")) as one, \
            contextlib.closing(open_image(str(path), "raw")) as other:
        assert read(one, 0, 512) == read(other, 0, 512) == DATA[:512]
    assert serving(path) == []
