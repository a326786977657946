"""What cannot be converted is refused with four answers, before one byte of output exists. No appliance."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import p2v
from fixtures import disks
from fixtures.servers import Server, build_nt4_fat16, build_two_disk, build_xp
from p2v import editing, folder, planning
from p2v.errors import (
    DriftError,
    GuestError,
    LayoutError,
    P2VError,
    PlanError,
    ReadError,
    Unsupported,
    WriteError,
)
from p2v.model import Plan, Range
from p2v.rundir import RunDir
from p2v.source.window import Window
from p2v.testing import FaultySource


def answers(error: P2VError) -> None:
    assert error.what and error.next, str(error)
    assert str(error.where) or error.why


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "web01"


@pytest.fixture(scope="module")
def xp_plan(xp_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return p2v.plan(xp_server.disks, output=tmp_path_factory.mktemp("plan") / "web01")


def nothing(_path: Path) -> None:
    """There is nothing at the path."""


def looping(path: Path) -> None:
    """Two extended entries that name each other."""
    disk = bytearray(4 << 20)
    disk[510:512] = disk[63 * 512 + 510:64 * 512] = b"\x55\xaa"
    disk[0x1BE:0x1CE] = bytes([0, 0, 1, 0, 5, 0, 1, 0]) + (63).to_bytes(4, "little") + (4000).to_bytes(4, "little")
    entry = 63 * 512 + 0x1CE
    disk[entry:entry + 16] = bytes([0, 0, 1, 0, 5, 0, 1, 0]) + bytes(4) + (4000).to_bytes(4, "little")
    path.write_bytes(disk)


@pytest.mark.parametrize(("make", "error"), [
    (nothing, PlanError),
    (Path.mkdir, PlanError),
    (lambda path: path.write_bytes(b""), LayoutError),
    (lambda path: path.write_bytes(b"x" * 1000), LayoutError),
    (lambda path: path.write_bytes(bytes(1 << 20)), Unsupported),
    (lambda path: path.write_bytes(b"\xff" * (1 << 20)), Unsupported),
    (looping, Unsupported),
], ids=["nothing there", "a folder", "empty", "cut inside a sector", "all zero", "all ones", "looping table"])
def test_no_disk_at_all(make: Callable[[Path], object], error: type[P2VError], tmp_path: Path, out: Path) -> None:
    make(tmp_path / "disk")
    with pytest.raises(P2VError) as caught:
        p2v.plan([tmp_path / "disk"], output=out)
    assert isinstance(caught.value, error), repr(caught.value)
    answers(caught.value)
    assert not out.exists()


def test_inspect_tells_what_an_unknown_disk_holds(tmp_path: Path) -> None:
    looping(tmp_path / "disk")
    seen = p2v.inspect([tmp_path / "disk"])
    assert seen.facts is None
    assert any("loop" in str(finding).lower() for finding in seen.findings), [str(f) for f in seen.findings]


def test_a_truncated_disk(xp_server: Server, tmp_path: Path, out: Path) -> None:
    short = tmp_path / "short.img"
    with open(xp_server.disks[0], "rb") as whole, open(short, "wb") as cut:
        cut.write(whole.read(20 << 20))
    try:
        plan = p2v.plan([short], output=out)
    except P2VError as error:
        answers(error)
    else:
        with pytest.raises(PlanError, match="cannot be run"):
            p2v.convert(plan)
    assert not out.exists()


def test_a_hibernated_server(tmp_path: Path, out: Path) -> None:
    server = build_xp(tmp_path / "server", hibernated=True)
    with pytest.raises(GuestError, match="hibernated") as error:
        p2v.plan(server.disks, output=out)
    answers(error.value)
    assert not out.exists()


def test_a_driver_that_is_nowhere(tmp_path: Path, out: Path) -> None:
    server = build_nt4_fat16(tmp_path / "server")
    with pytest.raises(GuestError) as error:
        p2v.plan(server.disks, output=out)
    said = str(error.value)
    assert "atapi.sys" in said and "--drivers" in said and "Service Pack" in said
    assert not out.exists()


def test_a_damaged_hive(tmp_path: Path, out: Path) -> None:
    def damaged(hive: bytes) -> tuple[bytes, bytes]:
        return hive[:5000] + b"\xff" * 3000 + hive[8000:], b""

    server = build_xp(tmp_path / "server", system_hive=damaged)
    with pytest.raises((GuestError, LayoutError)) as error:
        p2v.plan(server.disks, output=out)
    assert "SYSTEM" in str(error.value)
    answers(error.value)
    assert not out.exists()


def test_bad_sectors_under_the_plan_recommend_a_rescue(
    xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = planning.open_source
    monkeypatch.setattr(planning, "open_source",
                        lambda path, format=None, **words: FaultySource(honest(path, format, **words), [Range(0, 512)]))
    with pytest.raises(ReadError) as error:
        p2v.plan(xp_server.disks, output=out)
    assert "ddrescue" in error.value.next and "p2v adapt" in error.value.next
    assert not out.exists()


def test_a_source_that_moved_since_the_plan(tmp_path: Path, out: Path) -> None:
    server = build_xp(tmp_path / "server")
    plan = p2v.plan(server.disks, output=out)
    with open(server.disks[0], "r+b") as disk:
        disk.seek(0x1B8)
        disk.write(b"new!")
    with pytest.raises(DriftError) as error:
        p2v.convert(plan)
    answers(error.value)
    assert not out.exists()


def test_files_that_are_not_ours_are_kept(xp_server: Server, out: Path) -> None:
    plan = p2v.plan(xp_server.disks, output=out)
    out.mkdir()
    (out / "disk0.qcow2").write_bytes(b"somebody's VM")
    with pytest.raises(PlanError, match="the output folder is in use"):
        p2v.convert(plan)
    assert (out / "disk0.qcow2").read_bytes() == b"somebody's VM"


def test_no_space(xp_plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(WriteError, match="not enough space") as error:
        p2v.convert(xp_plan)
    answers(error.value)
    assert not Path(xp_plan.output).exists()


def test_a_plan_with_errors_is_not_run(xp_plan: Plan, out: Path) -> None:
    from dataclasses import replace

    from p2v.errors import Finding, Severity, Where

    broken = replace(xp_plan, output=str(out), findings=(Finding("it is broken", Where("disk0"), "why", "next",
                                                                 Severity.ERROR),))
    with pytest.raises(PlanError, match="it is broken"):
        p2v.convert(broken)
    assert not out.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GuestError("the appliance could not write")])
def test_an_edit_that_is_cut_short_leaves_no_image_and_is_made_anew(
    error: BaseException, xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(changes: object, seen: object, overlays: dict[str, Path], *rest: object) -> None:
        for path in overlays.values():
            path.write_bytes(b"half an overlay")
        raise error

    plan = p2v.plan(xp_server.disks, output=out)
    monkeypatch.setattr(editing, "make_overlays", cut_short)
    with pytest.raises(type(error)):
        p2v.convert(plan)
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "run"]
    assert RunDir.of_output(out).state().get("overlays") is None, "a half-made overlay is never used"
    tries = []
    monkeypatch.setattr(editing, "make_overlays", lambda *words: tries.append(words) or cut_short(*words))
    with pytest.raises(type(error)):
        p2v.convert(p2v.load_plan(out))
    assert len(tries) == 1


class TestWithoutEdits:
    """A data disk beside a guest costs no appliance: here the copy can be cut short cheaply."""

    @pytest.fixture
    def ready(self, xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
        """A plan with nothing to change; what the server lacks for a boot is not this test's matter."""
        from dataclasses import replace

        monkeypatch.setattr(editing, "prove", lambda *words: None)
        plan = p2v.plan(xp_server.disks, output=out)
        return replace(plan, changes=())

    @staticmethod
    def stop_after(writes: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a new qcow2 image fail after so many writes."""
        from p2v.formats import FORMATS

        create = FORMATS["qcow2"].create

        class Stopping:
            def __init__(self, writer: object) -> None:
                self._writer, self._left = writer, writes

            def __getattr__(self, name: str) -> object:
                return getattr(self._writer, name)

            def write_at(self, offset: int, data: memoryview) -> None:
                if not self._left:
                    raise error
                self._left -= 1
                self._writer.write_at(offset, data)  # type: ignore[attr-defined]

        monkeypatch.setattr(FORMATS["qcow2"], "create", lambda path, size: Stopping(create(path, size)))

    def test_a_stopped_copy_goes_on_and_ends_with_the_same_image(
        self, ready: Plan, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        p2v.convert(ready)
        whole, said = (out / "disk0.qcow2").read_bytes(), json.loads((out / "manifest.json").read_text())
        shutil.rmtree(out)
        self.stop_after(6, KeyboardInterrupt(), monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            p2v.convert(ready)
        assert sorted(path.name for path in out.iterdir()) == ["disk0.qcow2.part", "plan.json", "run"]
        stopped = json.loads((out / "run" / "disk0.copy").read_text())["at"]
        assert 0 < stopped < ready.disks[0].size
        begun: list[int] = []
        result = p2v.convert(p2v.load_plan(out),
                             progress=lambda stage, done, total: begun.append(done) if "copy" in stage else None)
        assert not result.done_before and begun[0] == stopped, "it goes on where it was"
        assert not (out / "run" / "disk0.copy").exists()
        p2v.verify(out)
        assert (out / "disk0.qcow2").read_bytes() == whole
        again = json.loads((out / "manifest.json").read_text())
        for document in (said, again):
            del document["finished"], document["disks"][0]["copy"]["seconds"]
        assert said == again

    @pytest.mark.parametrize("spoil", ["tie", "state", "digests", "record"])
    def test_a_copy_of_something_else_is_not_gone_on_with(
        self, spoil: str, ready: Plan, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.stop_after(6, KeyboardInterrupt(), monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            p2v.convert(ready)
        monkeypatch.undo()
        monkeypatch.setattr(editing, "prove", lambda *words: None)
        record, digests = out / "run" / "disk0.copy", out / "run" / "disk0.digests"
        facts = json.loads(record.read_text())
        if spoil == "digests":
            digests.write_bytes(bytes(digests.stat().st_size))
        else:
            record.write_text(json.dumps(facts | {spoil: "AAAA"}) if spoil != "record" else "{")
        begun: list[int] = []
        p2v.convert(ready, progress=lambda stage, done, total: begun.append(done) if "copy" in stage else None)
        assert begun[0] == 0
        p2v.verify(out)

    def test_a_disk_that_fills_up_leaves_nothing(
        self, ready: Plan, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from p2v.formats import FORMATS

        class Full:
            def __init__(self, writer: object) -> None:
                self._writer = writer

            def __getattr__(self, name: str) -> object:
                return getattr(self._writer, name)

            def write_at(self, offset: int, data: memoryview) -> None:
                raise WriteError("cannot write the image", next="free space")

        create = FORMATS["qcow2"].create
        monkeypatch.setattr(FORMATS["qcow2"], "create", lambda path, size: Full(create(path, size)))
        with pytest.raises(WriteError):
            p2v.convert(ready)
        assert sorted(path.name for path in out.iterdir()) == ["plan.json", "run"]

    def test_force_replaces_another_plans_images(self, ready: Plan, out: Path) -> None:
        from dataclasses import replace

        p2v.convert(ready)
        other = replace(ready, disks=tuple(replace(d, format="raw", image="disk0.raw") for d in ready.disks))
        with pytest.raises(PlanError):
            p2v.convert(other)
        p2v.convert(other, force=True)
        assert (out / "disk0.raw").exists()
        assert not (out / "disk0.qcow2").exists(), "nothing of the other plan is left to be taken for this one's"

    def test_the_same_image_twice(self, ready: Plan, out: Path) -> None:
        p2v.convert(ready)
        first = hashlib.sha256((out / "disk0.qcow2").read_bytes()).hexdigest()
        shutil.rmtree(out)
        p2v.convert(ready)
        assert hashlib.sha256((out / "disk0.qcow2").read_bytes()).hexdigest() == first


def test_a_damaged_plan_or_content_is_found_out(xp_plan: Plan, out: Path) -> None:
    from dataclasses import replace

    run = RunDir.of_output(out)
    run.make()
    folder.save_plan(replace(xp_plan, output=str(out)), run)
    assert p2v.load_plan(out).changes == xp_plan.changes
    document = json.loads(run.plan.read_text())
    run.plan.write_text(json.dumps(document | {"format_version": 99}))
    with pytest.raises(PlanError, match="format version 99"):
        p2v.load_plan(out)


def test_disks_in_any_order(two_disk_server: Server, out: Path) -> None:
    plan = p2v.plan(list(reversed(two_disk_server.disks)), output=out)
    assert [disk.path for disk in plan.disks] == [str(disk) for disk in two_disk_server.disks]
    assert plan.volumes[0].members[0].offset == disks.FIRST * 512


class TestOneFolderManyPlans:
    """The folder belongs to one plan at a time; what another plan left is never taken for this one's."""

    def test_a_new_plan_does_not_take_over_finished_images(
        self, xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dataclasses import replace

        monkeypatch.setattr(editing, "prove", lambda *words: None)
        first = replace(p2v.plan(xp_server.disks, output=out), changes=())
        p2v.convert(first)
        assert p2v.convert(first).done_before
        second = replace(first, drivers=("/drivers",))
        with RunDir.of_output(out).locked(), pytest.raises(PlanError, match="in use"):
            folder.claim(second, RunDir.of_output(out))
        assert p2v.load_plan(out) == p2v.load_plan(out) and p2v.load_plan(out).drivers == ()

    def test_an_overlay_of_another_plan_is_not_used(self, xp_server: Server, out: Path) -> None:
        from dataclasses import replace

        run = RunDir.of_output(out)
        first = p2v.plan(xp_server.disks, output=out)
        with run.locked():
            folder.claim(first, run)
            run.overlay("disk0").write_bytes(b"edits of the first plan")
            run.save_state(overlays={"disk0": "ab"})
            folder.claim(first, run)
            assert run.overlay("disk0").exists(), "the same plan goes on with what it has"
            folder.claim(replace(first, changes=first.changes[:-1]), run)
        assert not run.overlay("disk0").exists() and "overlays" not in run.state()

    def test_a_moved_folder_is_the_same_run(
        self, xp_server: Server, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dataclasses import replace

        monkeypatch.setattr(editing, "prove", lambda *words: None)
        p2v.convert(replace(p2v.plan(xp_server.disks, output=out), changes=()))
        out.rename(tmp_path / "moved")
        assert p2v.convert(p2v.load_plan(tmp_path / "moved")).done_before

    @pytest.mark.parametrize("image", ["/etc/passwd", "../elsewhere.img", ""])
    def test_images_are_made_in_the_output_folder_and_nowhere_else(
        self, xp_plan: Plan, out: Path, image: str
    ) -> None:
        from dataclasses import replace

        evil = replace(xp_plan, output=str(out), disks=(replace(xp_plan.disks[0], image=image),))
        with pytest.raises(PlanError, match="does not lie in its output folder"):
            p2v.convert(evil)
        assert not out.exists()


class TestWhatIsUnderAnOverlay:
    """An overlay is used further only over the very bytes that it was made on. The appliance is played here."""

    @pytest.fixture
    def appliance(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Records what the writing door is asked for; writes nothing."""
        import contextlib

        asked: list[str] = []

        class Door:
            backend = "played"

            def recover_journal(self, volume: str) -> str:
                asked.append(f"recover {volume}")
                return ""

        @contextlib.contextmanager
        def played(seen: object, overlays: dict[str, Path], volumes: object, raw: object = ()):
            for path in overlays.values():
                asked.append("new overlay" if not path.exists() else "old overlay")
                with open(path, "ab"):
                    pass
            yield Door()

        from p2v import changes as changing

        monkeypatch.setattr(editing, "_appliance", played)
        monkeypatch.setattr(editing, "allocated", lambda path: (Range(0, 4096),))
        monkeypatch.setattr(editing, "overlaid_source", lambda source, path: Window(source, 0, source.size))
        monkeypatch.setattr(editing, "prove", lambda *words: None)
        monkeypatch.setattr(changing, "perform", lambda *words: asked.append("edit"))
        return asked

    def test_a_source_that_moves_under_the_edits_has_them_made_anew(
        self, tmp_path: Path, out: Path, appliance: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from p2v import conversion as running

        server = build_xp(tmp_path / "server")
        plan = p2v.plan(server.disks, output=out)
        monkeypatch.setattr(running, "_copy_all", lambda *words: 1 / 0)
        for expected in (["new overlay", "edit"], []):
            with pytest.raises(ZeroDivisionError):
                p2v.convert(plan)
            assert appliance == expected, "the second run goes on with the overlay of the first"
            appliance.clear()
        with open(server.disks[0], "r+b") as disk:
            disk.seek(2048)  # in the gap after the table: no fingerprint looks here, and an edit lies over it
            disk.write(b"moved")
        with pytest.raises(ZeroDivisionError):
            p2v.convert(plan)
        assert appliance == ["new overlay", "edit"]

    def test_half_an_edit_is_never_taken_for_a_replayed_journal(
        self, tmp_path: Path, out: Path, appliance: list[str]
    ) -> None:
        server = build_xp(tmp_path / "server", unclean_volume=True)
        plan = p2v.plan(server.disks, output=out)
        assert appliance == ["new overlay", "recover disk0p1"]
        appliance.clear()
        overlay = RunDir.of_output(out).overlay("disk0")
        overlay.write_bytes(b"half an edit")
        p2v.plan(server.disks, output=out)
        assert appliance == ["new overlay", "recover disk0p1"], "it was made anew, not edited further"
        assert plan.changes

    def test_beside_a_replayed_journal_other_disks_are_edited_anew(
        self, tmp_path: Path, out: Path, appliance: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from p2v import conversion as running

        server = build_two_disk(tmp_path / "server", unclean_volume=True)
        plan = p2v.plan(server.disks, output=out)
        RunDir.of_output(out).overlay("disk1").write_bytes(b"half an edit")
        appliance.clear()
        monkeypatch.setattr(running, "_copy_all", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            p2v.convert(plan)
        assert appliance == ["old overlay", "new overlay", "edit"]

    def test_a_journal_that_was_replayed_for_an_older_plan_is_forgotten(
        self, tmp_path: Path, out: Path, appliance: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server was started once more and shut down cleanly, as the finding advises."""
        from p2v import conversion as running

        p2v.plan(build_xp(tmp_path / "server", unclean_volume=True).disks, output=out)
        clean = build_xp(tmp_path / "server2")
        appliance.clear()
        monkeypatch.setattr(running, "_copy_all", lambda *words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            p2v.convert(p2v.plan(clean.disks, output=out))
        assert appliance == ["new overlay", "edit"]


class TestTheSourceIsSafe:
    @pytest.fixture
    def inside(self, xp_server: Server, out: Path) -> Path:
        """The source lies in the output folder, under the very name of an image."""
        out.mkdir()
        source = out / "disk0.raw"
        shutil.copy(xp_server.disks[0], source)
        return source

    @pytest.mark.parametrize("force", [False, True])
    def test_a_source_in_the_output_folder_is_refused(self, inside: Path, out: Path, force: bool) -> None:
        plan = p2v.plan([inside], output=out, format="raw")
        before = inside.read_bytes()
        with pytest.raises(PlanError, match="a source lies in the output folder"):
            p2v.convert(plan, force=force)
        assert inside.read_bytes() == before

    def test_through_a_link_too(self, inside: Path, out: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.img"
        link.symlink_to(inside)
        with pytest.raises(PlanError, match="a source lies in the output folder"):
            p2v.convert(p2v.plan([link], output=out, format="raw"), force=True)


def test_no_image_has_its_name_before_the_last_is_complete(
    two_disk_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(editing, "prove", lambda *words: None)
    plan = replace(p2v.plan(two_disk_server.disks, output=out), changes=())

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "copy disk1":
            assert not (out / "disk0.qcow2").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        p2v.convert(plan, progress=stop)
    assert not [path.name for path in out.iterdir() if path.suffix == ".qcow2"]


def test_an_output_that_fails_its_check_does_not_look_finished(
    xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from p2v import conversion as running
    from p2v.errors import MismatchError

    def failed(*words: object) -> None:
        raise MismatchError("the changes are not there")

    monkeypatch.setattr(editing, "prove", lambda *words: None)
    monkeypatch.setattr(running, "verify_changes", failed)
    with pytest.raises(MismatchError):
        p2v.convert(replace(p2v.plan(xp_server.disks, output=out), changes=()))
    assert sorted(path.name for path in out.iterdir()) == ["disk0.qcow2.part", "plan.json", "run"]


def test_free_space_is_believed_only_where_the_table_agrees(tmp_path: Path, xp_server: Server) -> None:
    """An old NTFS under a RAID member or LVM says free where others keep their data."""
    disk = tmp_path / "disk.img"
    shutil.copy(xp_server.disks[0], disk)
    for type, believed in ((0x07, True), (0x17, True), (0x83, False), (0x8E, False), (0xFD, False)):
        with open(disk, "r+b") as file:
            file.seek(0x1BE + 4)
            file.write(bytes([type]))
        with planning.opened([disk]) as disks:
            filesystems = planning.view(disks).filesystems.values()
        assert any(filesystem.free for filesystem in filesystems) is believed, hex(type)


def test_a_boot_ini_that_is_no_text_is_not_read(xp_guest: object, xp_tree: Path) -> None:
    from p2v.testing import DirGuest

    with open(xp_tree / "boot.ini", "r+b") as file:
        file.truncate(700 << 20)
    with pytest.raises(GuestError, match=r"boot\.ini"):
        DirGuest({"disk0p1": xp_tree})


def test_the_log_says_how_far_a_run_came(xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "make_overlays", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        p2v.convert(p2v.plan(xp_server.disks, output=out))
    log = (out / "run" / "log").read_text()
    assert "convert: begins" in log and "ZeroDivisionError" in log


def test_all_copies_what_is_free_too(xp_server: Server, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's deleted file lies in free clusters: with --all it is in the image, without it is not."""
    from dataclasses import replace

    monkeypatch.setattr(editing, "prove", lambda *words: None)
    for copy_all in (False, True):
        plan = replace(p2v.plan(xp_server.disks, output=out / str(copy_all), copy_all=copy_all), changes=())
        assert (p2v.convert(plan).reports["disk0"].counts["free"] == 0) is copy_all
        with folder.images(plan, RunDir.of_output(plan.output)) as images, planning.opened(xp_server.disks) as disks:
            same = all(_same(images["disk0"], disks["disk0"], at) for at in range(0, disks["disk0"].size, 1 << 20))
        assert same is copy_all


def _same(one: planning.Source, two: planning.Source, at: int) -> bool:
    length = min(1 << 20, two.size - at)
    return planning.read(one, at, length) == planning.read(two, at, length)
