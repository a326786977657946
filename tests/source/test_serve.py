"""Our NBD server: other people's clients read it, nobody writes, and garbage hurts only its sender."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2v.errors import PlanError, ReadError, Unsupported
from p2v.model import Extent, Kind, Range, read
from p2v.source import nbdsession, serve
from p2v.source.nbd import allocated, open_image
from p2v.source.nbdclient import NbdSource
from p2v.source.overlaid import Overlaid
from p2v.source.serve import Server
from p2v.source.window import Window
from p2v.testing import FaultySource, MemorySource, numbered_sectors

SIZE = 1 << 20
DATA = numbered_sectors("disk0", SIZE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(MemorySource(DATA), f"{tmp_path}/socket") as running:
        yield running


def run(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **more)


# -- a client of a few lines, to say what no honest client says


class Raw:
    """A connection byte by byte, with its handshake done as asked."""

    def __init__(self, server: Server, flags: int = 3) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(server.socket)
        assert self.take(18) == b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3"
        self.send(struct.pack(">I", flags))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                return data
            data += more
        return data

    def option(self, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """The replies to an option, up to the last one: an ACK or an error."""
        self.send(struct.pack(">QII", 0x49484156454F5054, number, len(data)) + data)
        replies = []
        while not replies or 1 < replies[-1][0] < 1 << 31:
            magic, echoed, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, echoed) == (0x3E889045565A9, number)
            replies.append((kind, self.take(length)))
        return replies

    def go(self) -> None:
        assert self.option(7, struct.pack(">IH", 0, 0))[-1][0] == 1

    def request(self, kind: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> None:
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, kind, 77, offset, length) + payload)

    def simple(self, kind: int, offset: int, length: int, flags: int = 0, payload: bytes = b"") -> int:
        """The error of a simple reply without data."""
        self.request(kind, offset, length, flags, payload)
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (0x67446698, 77)
        return error

    def ended(self) -> bool:
        """Has the server hung up?"""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


def still_serves(server: Server) -> bool:
    with contextlib.closing(NbdSource(server.socket, "again")) as client:
        return read(client, 1000, 2000) == DATA[1000:3000]


# -- other people's clients


def test_nbdinfo(server: Server, needs: Callable[..., None]) -> None:
    needs("nbdinfo")
    said = run("nbdinfo", server.uri).stdout
    assert f"export-size: {SIZE}" in said and "is_read_only: true" in said and "base:allocation" in said
    assert run("nbdinfo", "--list", server.uri).returncode == 0


def test_nbdcopy_and_qemu_img_get_the_same_bytes(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("nbdcopy", "qemu-img")
    data = bytearray(DATA)
    data[300_000:700_000] = bytes(400_000)
    extents = [Extent(0, 300_032, Kind.DATA), Extent(300_032, 399_872, Kind.ZERO),
               Extent(699_904, SIZE - 699_904, Kind.DATA)]
    source = MemorySource(bytes(data), extents=extents)
    with Server(source, f"{tmp_path}/a socket, with: signs") as server:
        (tmp_path / "source").write_bytes(data)
        assert run("nbdcopy", server.uri, f"{tmp_path}/nbdcopy").returncode == 0
        assert (tmp_path / "nbdcopy").read_bytes() == data
        assert run("qemu-img", "convert", "-O", "raw", "-f", "raw", server.uri, f"{tmp_path}/qemu").returncode == 0
        assert (tmp_path / "qemu").read_bytes() == data
        compare = ("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri, f"{tmp_path}/source")
        assert run(*compare).returncode == 0
        (tmp_path / "source").write_bytes(b"?" + data[1:])
        assert run(*compare).returncode == 1
        assert server.failed_reads == []


def test_a_size_that_is_no_multiple_of_a_sector(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("nbdcopy")
    with Server(Window(MemorySource(DATA), 1, 9999), f"{tmp_path}/s") as server:
        assert run("nbdcopy", server.uri, f"{tmp_path}/copy").returncode == 0
        assert (tmp_path / "copy").read_bytes() == DATA[1:10_000]


def test_several_clients_at_once(server: Server, tmp_path: Path) -> None:
    clients = [NbdSource(server.socket, f"client {number}") for number in range(4)]
    wrong = []

    def work(client: NbdSource, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(100):
            start = chance.randrange(SIZE)
            length = chance.randrange(1, 1 + min(100_000, SIZE - start))
            if read(client, start, length) != DATA[start : start + length]:
                wrong.append((start, length))

    threads = [threading.Thread(target=work, args=(client, number)) for number, client in enumerate(clients * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert wrong == []


# -- an overlay over a lent source


def overlay_over(server: Server, path: Path, *commands: str) -> None:
    assert run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k",
               "-b", server.uri, "-F", "raw", str(path)).returncode == 0
    done = run("qemu-io", "-f", "qcow2", *(word for c in commands for word in ("-c", c)), str(path))
    assert done.returncode == 0 and "error" not in done.stdout.lower() + done.stderr.lower(), done


def test_edits_on_an_overlay_come_back(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("qemu-img", "qemu-io", "qemu-nbd")
    source, path = MemorySource(DATA), tmp_path / "an overlay, thin.qcow2"
    with Server(source, f"{tmp_path}/socket") as server:
        overlay_over(server, path, "write -P 7 512 512", "write -P 8 40000 100000", "write -z 512k 5k",
                     f"write -P 9 {SIZE - 512} 512")
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), f"{tmp_path}/whole", check=True)
    expected = (tmp_path / "whole").read_bytes()
    assert expected[512:1024] == b"\7" * 512 and expected[:512] == DATA[:512]
    changed = allocated(str(path))
    assert changed == (Range(512, 512), Range(39936, 100_352), Range(512 << 10, 5 << 10), Range(SIZE - 512, 512))
    with contextlib.closing(open_image(str(path), "qcow2", backing=False)) as top:
        both = Overlaid(source, top, changed)
        assert read(both, 0, SIZE) == expected
        assert read(top, 2048, 512) == bytes(512)  # not the backing's


def test_a_bad_sector_beside_an_edit_is_not_read(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("qemu-img", "qemu-io")
    bad = Range(10 * 512, 512)
    path = tmp_path / "overlay.qcow2"
    with Server(FaultySource(MemorySource(DATA), [bad]), f"{tmp_path}/socket") as server:
        overlay_over(server, path, f"write -P 7 {9 * 512} 512", f"write -P 8 {11 * 512} 2048")
        assert server.failed_reads == []  # whole sectors beside it: nothing of the source is read
        for command in ("write -P 9 5200 100", "read 4096 4096", "read 4096 4096"):
            done = run("qemu-io", "-f", "qcow2", "-c", command, str(path))
            assert "Input/output error" in done.stdout + done.stderr
        assert server.failed_reads == [bad]  # once, and exactly


def test_without_subclusters_the_same_edit_would_fail(tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("qemu-img", "qemu-io")
    path = tmp_path / "overlay.qcow2"
    with Server(FaultySource(MemorySource(DATA), [Range(5120, 512)]), f"{tmp_path}/socket") as server:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", server.uri, "-F", "raw", str(path), check=True)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 7 4608 512", str(path))
        assert server.failed_reads == [Range(5120, 512)]  # the reason for extended_l2: it is recorded at least


def test_a_failed_read_names_its_sector_to_our_client(tmp_path: Path) -> None:
    source = FaultySource(MemorySource(DATA), [Range(51_200, 1024)])
    with Server(source, f"{tmp_path}/s") as server, contextlib.closing(NbdSource(server.socket, "lent")) as lent:
        with pytest.raises(ReadError) as caught:
            read(lent, 0, SIZE)
        assert (caught.value.where.offset, caught.value.where.length) == (51_200, 1024)
        assert read(lent, 0, 51_200) == DATA[:51_200]  # the connection goes on
        failed = server.failed_reads
        assert {part.offset // 512 for part in failed} <= {100, 101} and failed


class Counting(NbdSource):
    connects = 0

    def _connect(self) -> object:
        self.connects += 1
        return super()._connect()


def test_a_failed_read_keeps_its_connection_a_broken_one_is_replaced(tmp_path: Path) -> None:
    source = FaultySource(MemorySource(DATA), [Range(51_200, 512)])
    with Server(source, f"{tmp_path}/s"):
        client = Counting(f"{tmp_path}/s", "lent")
        for _ in range(20):
            with pytest.raises(ReadError, match="512 bytes cannot be read"):
                read(client, 51_200, 512)
        assert client.connects == 1
    with pytest.raises(ReadError):
        read(client, 0, 512)
    with Server(source, f"{tmp_path}/s"):
        assert read(client, 0, 512) == DATA[:512]
        client.close()


def test_any_error_of_ours_is_eio_and_recorded(tmp_path: Path) -> None:
    class Odd(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise Unsupported("this part of the disk", self.name, "a test said so", "nothing")

        def extents(self) -> list[Extent]:
            raise ReadError("no extents", self.name, "a test said so", "nothing")

    with Server(Odd(DATA), f"{tmp_path}/s") as server, \
            contextlib.closing(NbdSource(server.socket, "lent")) as lent:
        with pytest.raises(ReadError):
            read(lent, 0, 512)
        assert server.failed_reads == [Range(0, 512)]
        with pytest.raises(ReadError):
            list(lent.extents())


# -- the protocol, honestly


def test_the_old_way_to_begin(server: Server) -> None:
    for flags, padding in ((3, 0), (1, 124)):
        with Raw(server, flags) as client:
            client.send(struct.pack(">QII", 0x49484156454F5054, 1, 0))
            assert client.take(10 + padding) == struct.pack(">QH", SIZE, 0x103) + bytes(padding)
            client.request(0, 512, 1024)
            assert client.take(16 + 1024) == struct.pack(">IIQ", 0x67446698, 0, 77) + DATA[512:1536]
            client.request(2, 0, 0)
            assert client.ended()


def test_options(server: Server) -> None:
    name = struct.pack(">I", 3) + b"abc"
    with Raw(server) as client:
        assert client.option(3) == [(2, bytes(4)), (1, b"")]
        assert client.option(3, b"x") == [(0x80000003, b"")]
        for unknown in (0, 4, 5, 11, 99, 0xFFFFFFFF):
            assert client.option(unknown, b"data") == [(0x80000001, b"")]
        assert client.option(6, name + b"\0\0") == [(0x80000006, b"")]  # no such export
        for torn in (b"", b"\0\0", struct.pack(">I", 4) + b"abc", name, name + b"\0\1", name + b"\0\0\0"):
            assert client.option(7, torn) == [(0x80000003, b"")]
        query = struct.pack(">IIII", 0, 1, 15, 0)[:12] + b"base:allocation"
        assert client.option(10, query) == [(0x80000003, b"")]  # structured replies first
        assert client.option(8) == [(1, b"")]
        for torn in (b"", bytes(4), bytes(4) + b"\0\0\0\2" + query[8:], query[:-1], query + b"x",
                     bytes(4) + b"\xff" * 4):
            assert client.option(10, torn) == [(0x80000003, b"")]
        assert client.option(9, bytes(8)) == [(4, bytes(4) + b"base:allocation"), (1, b"")]
        assert client.option(10, bytes(4) + struct.pack(">II", 1, 4) + b"qemu") == [(1, b"")]
        assert client.option(10, query) == [(4, struct.pack(">I", 1) + b"base:allocation"), (1, b"")]
        info = client.option(6, struct.pack(">IHH", 0, 1, 3))
        assert info == [(3, struct.pack(">HQH", 0, SIZE, 0x183)), (3, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
                        (1, b"")]
        client.send(struct.pack(">QII", 0x49484156454F5054, 2, 0))
        assert client.take(20)[12:16] == b"\0\0\0\1"
        assert client.ended()


def test_requests_that_are_refused(server: Server) -> None:
    eperm, einval = 1, 22
    with Raw(server) as client:
        client.go()
        assert client.simple(1, 0, 4096, payload=b"w" * 4096) == eperm
        assert client.simple(1, 0, 512, flags=1, payload=b"w" * 512) == eperm
        assert client.simple(4, 0, 512) == client.simple(6, 0, 512) == eperm
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (2**64 - 1, 1), (2**63, 2**32 - 1), (0, 0),
                               (0, (32 << 20) + 1)):
            assert client.simple(0, offset, length) == einval
        assert client.simple(0, 0, 512, flags=4) == einval  # DF without structured replies
        for unknown in (3, 5, 7, 8, 99, 65535):
            assert client.simple(unknown, 0, 512) == einval
        client.request(0, SIZE - 1, 1)
        assert client.take(17)[16:] == DATA[-1:]
    assert still_serves(server)
    assert server.failed_reads == []  # these are the client's mistakes


def test_qemu_cannot_write(server: Server, needs: Callable[..., None]) -> None:
    needs("qemu-io")
    done = run("qemu-io", "-f", "raw", "-c", "write 0 512", server.uri)
    assert done.returncode == 1
    assert still_serves(server)


@pytest.mark.parametrize("flags", [0, 4])
def test_block_status(flags: int, tmp_path: Path) -> None:
    extents = [Extent(0, 4096, Kind.ZERO), Extent(4096, 512, Kind.DATA), Extent(4608, 512, Kind.FREE),
               Extent(5120, 4096, Kind.ZERO)]
    with Server(MemorySource(bytes(9216), extents=extents), f"{tmp_path}/s") as server, Raw(server) as client:
        client.option(8)
        client.option(10, struct.pack(">III", 0, 1, 15) + b"base:allocation")
        client.go()
        client.request(7, 1000, 5000)
        head, data = client.take(20), client.take(4 + 3 * 8)
        assert head == struct.pack(">IHHQI", 0x668E33EF, 1, 5, 77, 28)
        assert struct.unpack(">7I", data) == (1, 3096, 3, 1024, 0, 880, 3)
        client.request(7, 1000, 5000, flags=8)
        assert struct.unpack(">3I", client.take(32)[20:]) == (1, 3096, 3)
        client.request(7, 0, 9217)
        assert client.take(26)[20:] == struct.pack(">IH", 22, 0)


def test_a_source_in_very_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_MAX_EXTENTS", 7)
    monkeypatch.setattr(nbdsession, "_MAX_STATUS", 3)
    pieces = [Extent(at, 512, (Kind.ZERO, Kind.DATA)[at // 512 % 2]) for at in range(0, 512 * 20, 512)]
    with Server(MemorySource(bytes(512 * 20), extents=pieces), f"{tmp_path}/s") as server, \
            contextlib.closing(NbdSource(server.socket, "lent")) as lent:
        shown = [(e.offset, e.end, e.kind) for e in lent.extents()]
        assert shown[:2] == [(0, 512, Kind.ZERO), (512, 1024, Kind.DATA)]
        assert shown[-1] == (5 * 512, 20 * 512, Kind.DATA)  # what is not remembered is data


# -- the protocol, dishonestly


OPTION = struct.pack(">I", 3) + b"IHAVEOPT"
CHOSEN = OPTION + struct.pack(">II", 1, 0)  # the export with the empty name, the old way


@pytest.mark.parametrize("garbage", [
    pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="a browser"),
    pytest.param(struct.pack(">I", 0xFFFFFFFF), id="unknown flags"),
    pytest.param(OPTION + struct.pack(">II", 7, 0xFFFFFFFF), id="an endless option"),
    pytest.param(OPTION + struct.pack(">II", 1, 5) + b"other", id="another export"),
    pytest.param(CHOSEN + bytes(28), id="no request"),
    pytest.param(CHOSEN + struct.pack(">IHHQQI", 0x25609513, 0, 1, 7, 0, 0xFFFFFFFF), id="an endless write"),
])
def test_garbage_ends_its_own_connection_only(garbage: bytes, server: Server) -> None:
    with contextlib.closing(NbdSource(server.socket, "beside")) as beside:
        hears_the_end(server, garbage, hang_up=False)  # it is the server that ends it
        assert read(beside, 0, 512) == DATA[:512]
    assert still_serves(server)


@pytest.mark.parametrize("beginning", [
    b"", b"\0\0", OPTION, OPTION + struct.pack(">II", 7, 100) + b"cut", CHOSEN, CHOSEN + b"\x25\x60",
    CHOSEN + struct.pack(">IHHQQI", 0x25609513, 0, 1, 7, 0, 4096) + b"half a payload",
])
def test_a_client_that_leaves_early(beginning: bytes, server: Server) -> None:
    hears_the_end(server, beginning, hang_up=True)
    assert still_serves(server)


def hears_the_end(server: Server, data: bytes, hang_up: bool) -> None:
    """Send data, perhaps say that nothing follows, and read until the server ends the connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)  # which fails the test
        client.connect(server.socket)
        client.sendall(data)
        if hang_up:
            client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while client.recv(4096):
                pass


def test_random_bytes_at_any_stage(server: Server) -> None:
    chance = random.Random(8)
    for number in range(150):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(server.socket)
            opening = [b"", b"\0\0\0\3", b"\0\0\0\3IHAVEOPT" + struct.pack(">II", chance.randrange(12), 16),
                       b"\0\0\0\3IHAVEOPT" + struct.pack(">II", 1, 0) + b"\x25\x60\x95\x13"][number % 4]
            with contextlib.suppress(ConnectionError):
                client.sendall(opening + chance.randbytes(chance.randrange(200)))
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
    assert still_serves(server)


def test_a_client_that_leaves_in_the_middle_of_an_answer(server: Server) -> None:
    for _ in range(5):
        with Raw(server) as client:
            client.go()
            for _ in range(4):
                client.request(0, 0, SIZE)
    assert still_serves(server)


def test_too_many_clients_wait_outside(server: Server) -> None:
    clients = [Raw(server) for _ in range(serve._MAX_CLIENTS)]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(server.socket)
        assert client.recv(1) == b""
    for connected in clients:
        connected.socket.close()
    for _ in range(100):
        with contextlib.suppress(ReadError):
            assert still_serves(server)
            return
        time.sleep(0.02)
    pytest.fail("no connection is taken after the others have left")


# -- beginning and end


def nbd_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("p2v-nbd")]


def test_afterwards_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    before = set(os.listdir("/proc/self/fd"))
    with Server(MemorySource(DATA), str(path)) as server:
        assert path.stat().st_mode & 0o777 == 0o600
        idle, gone = Raw(server), Raw(server)
        idle.go()
        gone.socket.close()
        assert len(nbd_threads()) >= 2
    assert nbd_threads() == []
    assert not path.exists()
    assert idle.ended()
    idle.socket.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_it_ends_while_a_read_is_under_way(tmp_path: Path) -> None:
    reading, release = threading.Event(), threading.Event()

    class Slow(MemorySource):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            reading.set()
            release.wait(10)
            super().read_into(offset, buffer)

    with Server(Slow(DATA), f"{tmp_path}/s") as server, Raw(server) as client:
        client.go()
        client.request(0, 0, 512)
        assert reading.wait(10)
        threading.Timer(0.1, release.set).start()
    assert nbd_threads() == []


def test_an_error_in_the_block_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Server(MemorySource(DATA), f"{tmp_path}/s"):
        raise KeyboardInterrupt
    assert nbd_threads() == [] and not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["taken", "no/folder", "n" * 120])
def test_a_socket_that_cannot_be(name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(PlanError, match="the socket cannot be made") as caught, \
            Server(MemorySource(DATA), f"{tmp_path}/{name}"):
        pytest.fail("it serves")
    assert caught.value.why and caught.value.next
    assert (tmp_path / "taken").read_text() == "mine"
    assert nbd_threads() == []
