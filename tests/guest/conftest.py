"""Built servers, seen through the reading door."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures import guests, trees
from fixtures.servers import Server
from p2v.errors import Finding
from p2v.guest.fixers import FIXERS
from p2v.guest.guest import ReadingGuest, open_guest
from p2v.testing import DirGuest

Opener = Callable[[Server], ReadingGuest]


def opened(server: Server, stack: ExitStack) -> ReadingGuest:
    """The server's disks through the reading door, until the stack is closed."""
    from p2v.filesystem import examine
    from p2v.source.device import open_disk
    from p2v.volume import find_volumes

    disks = {f"disk{number}": open_disk(str(path)) for number, path in enumerate(server.disks)}
    for disk in disks.values():
        stack.callback(disk.close)
    layout = find_volumes(disks)
    filesystems = {volume.name: examine(volume.source) for volume in layout.volumes}
    drivers = [str(server.supplied)] if server.supplied else []
    return open_guest(disks, layout, filesystems, drivers)


@pytest.fixture
def see() -> Iterator[Opener]:
    """see(server): the server's disks through the reading door; closed after the test."""
    with ExitStack() as stack:
        yield lambda server: opened(server, stack)


@pytest.fixture(scope="session")
def fitted(xp_files: list[trees.TreeFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The XP server's files after all fixers."""
    folder = guests.unpack(xp_files, tmp_path_factory.mktemp("fitted"))
    guest = DirGuest({"disk0p1": folder})
    wishes = [wish for fixer in FIXERS for wish in fixer.plan(guest, guests.PiixTarget())]
    guest.apply([wish for wish in wishes if not isinstance(wish, Finding)])
    return folder


@pytest.fixture
def fitted_tree(fitted: Path, tmp_path: Path) -> Path:
    """The same in a folder to spoil."""
    return Path(shutil.copytree(fitted, tmp_path / "fitted"))
