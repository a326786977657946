"""An image that exists is edited in place: one appliance start, an interruption, real boot code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import p2v
from fixtures import boot
from fixtures.qemu import boot_text
from fixtures.servers import Server, build_nt4_ntfs
from p2v import inplace, planning
from p2v.errors import DriftError, GuestError
from p2v.formats import FORMATS, QEMU_DRIVERS
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
    other, moved = p2v.adapt([image], target="virtualbox")  # the guest is fit for it: the VM is another one
    assert other.changes == () and not moved.done_before and p2v.load_plan(f"{image}.p2v").target == "virtualbox"
    _, defined = p2v.adapt([image], target="kvm")
    assert any(file.endswith(".xml") for file in defined.files) and not defined.done_before
    assert p2v.load_plan(f"{image}.p2v").changes  # one undo still takes all of them back
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


@pytest.mark.parametrize("written", [512, 4096, 33 * 512, 65536 - 512, 65536, 65536 + 512, 2 * 65536 - 512])
def test_a_power_cut_inside_a_piece_is_finished(tmp_path: Path, written: int) -> None:
    """The medium keeps sectors: any prefix of them may have been written when the power goes."""
    from p2v.model import Range
    from p2v.testing import MemorySource

    before, after = b"o" * (2 * 65536), b"n" * (2 * 65536)
    journal, image = tmp_path / "journal", tmp_path / "image.raw"
    inplace.write_journal(journal, MemorySource(before, "a"), MemorySource(after, "b"), [Range(0, len(before))])
    image.write_bytes(after[:written] + before[written:])
    inplace.replay(journal, str(image), "raw")
    assert image.read_bytes() == after


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"",
                                    lambda data: data[:100] + b"?" + data[101:]])
def test_a_damaged_journal_is_not_replayed(tmp_path: Path, damage) -> None:
    from p2v.errors import MismatchError
    from p2v.model import Range
    from p2v.testing import MemorySource

    journal, image = tmp_path / "journal", tmp_path / "image.raw"
    inplace.write_journal(journal, MemorySource(bytes(4096), "a"), MemorySource(b"x" * 4096, "b"), [Range(0, 4096)])
    journal.write_bytes(damage(journal.read_bytes()))
    image.write_bytes(bytes(4096))
    with pytest.raises(MismatchError, match="damaged"):
        inplace.replay(journal, str(image), "raw")
    assert image.read_bytes() == bytes(4096)


def test_foreign_state_cannot_name_a_file_to_write(tmp_path: Path) -> None:
    """A run's folder from a stranger: its state, its plan and its journal may say anything."""
    import json

    from p2v.errors import PlanError
    from p2v.planfile import to_json
    from tests.test_planfile import a_plan

    victim = tmp_path / "elsewhere" / "victim"
    victim.parent.mkdir()
    victim.write_bytes(b"precious")
    folder = tmp_path / "deep" / "run.p2v"
    (folder / "run").mkdir(parents=True)
    plan = to_json(a_plan([]))
    plan["disks"][0]["image"] = str(victim)
    (folder / "plan.json").write_text(json.dumps(plan))
    for state in ({"writing": ["disk0"]}, {"writing": ["../disk0"]}, {"writing": ["disk7"]}):
        (folder / "run" / "state.json").write_text(json.dumps(state))
        with pytest.raises(PlanError):
            p2v.undo(folder)
    assert victim.read_bytes() == b"precious"


def test_a_missing_driver_leaves_the_image_alone(corpus: Path, tmp_path: Path) -> None:
    server = build_nt4_ntfs(tmp_path / "server", corpus)
    before = server.disks[0].read_bytes()
    with pytest.raises(GuestError) as error:
        p2v.adapt([server.disks[0]])
    assert "atapi.sys" in str(error.value) and "--drivers" in str(error.value)
    assert server.disks[0].read_bytes() == before
    assert not Path(f"{server.disks[0]}.p2v").exists()


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.EDITABLE])
def test_every_editable_format_is_edited_in_place(tmp_path: Path, name: str) -> None:
    """What the formats say of themselves is true: the journal goes in, and nothing else changes."""
    from p2v.copy import plan_copy, run_copy
    from p2v.model import Range, read
    from p2v.testing import MemorySource, numbered_sectors

    before = numbered_sectors("disk0", 4 << 20)
    after = before[:65536] + b"edited" * 1000 + before[65536 + 6000:]
    source = MemorySource(before, "disk0")
    image = tmp_path / f"disk0{FORMATS[name].SUFFIX}"
    writer = FORMATS[name].create(str(image), source.size)
    run_copy(source, plan_copy(source), writer)
    writer.finish()
    journal = tmp_path / "journal"
    inplace.write_journal(journal, source, MemorySource(after, "b"), [Range(0, 1 << 20)])
    inplace.replay(journal, str(image), QEMU_DRIVERS[FORMATS[name].SUFFIX])
    edited = FORMATS[name].read(str(image))
    assert read(edited, 0, len(after)) == after
    edited.close()


def test_a_stream_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    from p2v.adaptation import _refuse_uneditable
    from p2v.errors import Unsupported
    from p2v.model import DiskPlan

    for name in FORMATS:
        if FORMATS[name].EDITABLE:
            continue
        image = tmp_path / f"{name}{FORMATS[name].SUFFIX}"
        writer = FORMATS[name].create(str(image), 1 << 20)
        writer.write_at(0, memoryview(b"x" * 65536))
        writer.finish()
        format = planning.format_by_name(image)
        with pytest.raises(Unsupported, match="cannot be edited in place"):
            _refuse_uneditable([DiskPlan("disk0", str(image), 1 << 20, 512, "", format, str(image), format)])


def test_an_image_that_p2v_image_has_made_can_be_adapted(
    xp_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of a failing disk: rescued first, then edited. Both keep their run in IMAGE.p2v."""
    from p2v import adaptation

    p2v.image(xp_server.disks, tmp_path / "rescued.img")
    monkeypatch.setattr(adaptation, "rewrite", lambda *words, keep: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        p2v.adapt([tmp_path / "rescued.img"])
