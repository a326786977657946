"""Built servers, seen through the reading door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from fixtures.servers import Server
from p2v.guest.guest import ReadingGuest, open_guest

Opener = Callable[[Server], ReadingGuest]


@pytest.fixture
def see() -> Iterator[Opener]:
    """see(server): the server's disks through the reading door; closed after the test."""
    from p2v.filesystem import examine
    from p2v.source.device import open_disk
    from p2v.volume import find_volumes

    with ExitStack() as stack:
        def opened(server: Server) -> ReadingGuest:
            disks = {f"disk{number}": open_disk(str(path)) for number, path in enumerate(server.disks)}
            for disk in disks.values():
                stack.callback(disk.close)
            layout = find_volumes(disks)
            filesystems = {volume.name: examine(volume.source) for volume in layout.volumes}
            drivers = [str(server.supplied)] if server.supplied else []
            return open_guest(disks, layout, filesystems, drivers)

        yield opened
