"""An image that exists is edited in place: one appliance start, an interruption, real boot code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import p2v
from fixtures import boot
from fixtures.qemu import boot_text
from fixtures.servers import build_nt4_ntfs
from p2v import inplace, planning
from p2v.errors import DriftError, GuestError
from p2v.model import Filesystem

pytestmark = pytest.mark.appliance


@pytest.mark.qemu
def test_adapt_survives_a_power_cut_and_boots(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = build_nt4_ntfs(tmp_path / "server", corpus, real_boot_code=True)
    image = tmp_path / "rescued.img"
    shutil.copy(server.disks[0], image)
    assert server.supplied

    whole = inplace._entries

    def torn(path: Path):
        """The power goes after the first piece was written."""
        pieces = list(whole(path))
        yield from pieces
        monkeypatch.setattr(inplace, "_entries", lambda path: cut(pieces))

    def cut(pieces):
        yield pieces[0]
        raise OSError("the power went")

    monkeypatch.setattr(inplace, "_entries", torn)
    with pytest.raises(OSError, match="the power went"):
        p2v.adapt([image], drivers=[server.supplied])
    monkeypatch.undo()
    folder = Path(f"{image}.p2v")
    assert (folder / "run" / "disk0.journal").exists()
    torn_bytes = image.read_bytes()
    assert torn_bytes != server.disks[0].read_bytes()

    # The next run finishes what the journal says, and then finds nothing left to do.
    plan, result = p2v.adapt([image], drivers=[server.supplied])
    assert plan.changes == () and result.done_before
    assert not (folder / "run" / "disk0.journal").exists()
    assert image.read_bytes() != torn_bytes
    assert boot.LOADED in boot_text(image)
    p2v_plan = p2v.load_plan(folder)
    with planning.opened([image]) as disks:
        seen = planning.view(disks, [str(server.supplied)])
        filesystem: Filesystem = seen.filesystems["disk0p1"]
        assert filesystem.version == "1.2", "an NT 4 volume stays what NT 4 can check"
        assert len(p2v_plan.changes) > 5
        from p2v.changes import state_of
        from p2v.model import State
        assert {state_of(change, seen.known_guest) for change in p2v_plan.changes} == {State.DONE}


def test_a_journal_for_another_image_writes_nothing(tmp_path: Path) -> None:
    from p2v.model import Range
    from p2v.testing import MemorySource

    before, after = bytes(1 << 20), b"\x01" * 512 + bytes((1 << 20) - 512)
    journal = tmp_path / "journal"
    inplace.write_journal(journal, MemorySource(before, "a"), MemorySource(after, "b"), [Range(0, 1024)])
    image = tmp_path / "image.raw"
    image.write_bytes(b"\x07" * (1 << 20))
    with pytest.raises(DriftError, match="changed while"):
        inplace.replay(journal, str(image), "raw")
    assert image.read_bytes() == b"\x07" * (1 << 20)
    image.write_bytes(before)
    inplace.replay(journal, str(image), "raw")
    inplace.replay(journal, str(image), "raw")
    assert image.read_bytes() == after


def test_a_missing_driver_leaves_the_image_alone(corpus: Path, tmp_path: Path) -> None:
    server = build_nt4_ntfs(tmp_path / "server", corpus)
    before = server.disks[0].read_bytes()
    with pytest.raises(GuestError) as error:
        p2v.adapt([server.disks[0]])
    assert "atapi.sys" in str(error.value) and "--drivers" in str(error.value)
    assert server.disks[0].read_bytes() == before
    assert not Path(f"{server.disks[0]}.p2v").exists()
