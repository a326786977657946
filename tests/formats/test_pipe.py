"""Images through a pipe: what qemu makes of them, and nothing is ever gone back to."""

from __future__ import annotations

import os
import random
import subprocess
import threading

import pytest

import p2v
from p2v.errors import Unsupported, WriteError
from p2v.formats import FORMATS, STREAMS
from p2v.formats.pipe import Pipe

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path):
    draw = random.Random(8)
    path = tmp_path / "disk.img"
    path.write_bytes(draw.randbytes(700_416) + bytes(3 * MIB) + draw.randbytes(90_112) + bytes(512 * 77))
    return path


@pytest.mark.parametrize("kind", STREAMS)
def test_what_comes_out_is_the_image(kind, disk, tmp_path, needs):
    needs("qemu-img")
    out = tmp_path / f"out{FORMATS[kind].SUFFIX}"
    reader, writer = os.pipe()

    def drain():
        with open(reader, "rb") as end, open(out, "wb") as file:
            while data := end.read(1 << 16):
                file.write(data)

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        result = p2v.image([disk], "-", format=kind, pipe=writer)
    finally:
        os.close(writer)
        thread.join()
    source = FORMATS[kind].read(str(out))
    try:
        data = bytearray(source.size)
        source.read_into(0, memoryview(data))
    finally:
        source.close()
    content = disk.read_bytes()
    assert data[: len(content)] == content and not any(data[len(content) :])
    assert sum(result.reports["disk0"].counts.values()) == len(content)
    name = {"raw": "raw", "vmdk-stream": "vmdk", "vhd-fixed": "vpc", "vhdx-fixed": "vhdx", "vdi-fixed": "vdi"}[kind]
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", name, disk, out], check=True, capture_output=True)
    whole = tmp_path / f"whole{FORMATS[kind].SUFFIX}"
    p2v.image([disk], whole, format=kind)
    assert whole.stat().st_size == out.stat().st_size


def test_the_others_name_those_that_can(disk):
    for kind in set(FORMATS) - set(STREAMS) | {"nonsense"}:
        with pytest.raises(Unsupported, match=kind) as error:
            p2v.image([disk], "-", format=kind)
        assert "vmdk-stream" in error.value.next


@pytest.mark.parametrize("kind", STREAMS)
def test_a_reader_that_has_gone_is_an_error_and_no_thread_is_left(kind, disk):
    reader, writer = os.pipe()
    os.close(reader)
    before = threading.active_count()
    try:
        with pytest.raises(WriteError, match="pipe"):
            p2v.image([disk], "-", format=kind, pipe=writer)
    finally:
        os.close(writer)
    assert threading.active_count() == before


def test_a_pipe_goes_one_way(tmp_path):
    with open(tmp_path / "out", "wb") as file:
        pipe = Pipe(file.fileno())
        pipe.write(5, b"abc")
        assert pipe.sent == 8
        with pytest.raises(ValueError):
            pipe.write(7, b"x")
    assert (tmp_path / "out").read_bytes() == bytes(5) + b"abc"
