"""Servers on mirrors and dynamic disks: the plain disks that the VM gets hold the right leg's files, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

import p2v
from fixtures import mirrors
from fixtures.failing import failing
from fixtures.ldmserver import LdmServer
from p2v import arranging
from p2v.arranging import Arranged
from p2v.drawing import svg
from p2v.errors import DriftError, PlanError, Severity, Unsupported, Where
from p2v.filesystem import examine, open_files
from p2v.filesystem.hit import file_extents
from p2v.model import GuestFiles, Range, Source, read
from p2v.planfile import contents, from_json, to_json
from p2v.planning import errors_of
from p2v.rendering import render_inspection
from p2v.source.device import open_disk
from p2v.source.nbd import open_image
from p2v.testing import MemorySource
from p2v.volume import find_volumes

SPLIT = ("ldm-mirror-split", "ldm-mirror-split-even")
DECIDED = sorted(set(mirrors.BUILDERS) - set(SPLIT))


@contextmanager
def arranged(
    server: LdmServer, *, backwards: bool = False, legs: Mapping[str, str] | None = None
) -> Iterator[Arranged]:
    with ExitStack() as stack:
        paths = list(server.disks)[::-1] if backwards else list(server.disks)
        given: dict[str, Source] = {}
        for number, path in enumerate(paths):
            given[f"disk{number}"] = source = open_disk(str(path))
            stack.callback(source.close)
        yield arranging.arrange(given, legs)


def hashes_on(disks: Mapping[str, Source]) -> list[dict[str, str]]:
    found = []
    for volume in find_volumes(disks).volumes:
        files = open_files(volume.source, examine(volume.source))
        found.append(hashes_in(files))
    return found


def hashes_in(files: GuestFiles) -> dict[str, str]:
    return {path: hashlib.sha256(files.read(path)).hexdigest() for path in _walk(files, "")}


def _walk(files: GuestFiles, folder: str) -> Iterator[str]:
    for name in files.list(folder or "\\"):
        path = f"{folder}\\{name}"
        stat = files.stat(path)
        if stat is not None and stat.is_folder:
            yield from _walk(files, path)
        elif stat is not None and not name.startswith("$") and stat.size < 4 << 20:
            yield path


@pytest.mark.parametrize("name", DECIDED)
@pytest.mark.parametrize("backwards", [False, True])
def test_each_built_server_makes_plain_disks(name: str, backwards: bool, tmp_path: Path, corpus: Path) -> None:
    server = mirrors.BUILDERS[name](tmp_path / "server", corpus)
    with arranged(server, backwards=backwards) as made:
        layout = find_volumes(made.disks)
        assert not [f for f in layout.findings if f.severity is Severity.ERROR]
        assert not layout.mirrors and all(volume.origin is None for volume in layout.volumes)
        on_disks = hashes_on(made.disks)
        for assembly in server.assemblies:
            wanted = assembly.files[assembly.current or 0]
            assert any(wanted.items() <= found.items() for found in on_disks), assembly.name
        first = next(iter(made.disks.values()))
        assert sum(p.active for p in find_volumes({"disk0": first}).partitions) == 1
        assert any(read(first, 0, 440)) and read(first, 510, 2) == b"\x55\xaa"


@pytest.mark.parametrize("name", SPLIT)
def test_a_split_brain_waits_for_the_users_word(name: str, tmp_path: Path) -> None:
    server = mirrors.BUILDERS[name](tmp_path / "server")
    with pytest.raises(PlanError) as refused, arranged(server):
        pass
    assert "disk0:" in refused.value.why and "disk1:" in refused.value.why and "--leg disk1" in refused.value.next
    for leg, legs in ((0, {"": "disk0"}), (1, {"C:": str(server.disks[1])})):
        with arranged(server, legs=legs) as made:
            (found,) = hashes_on(made.disks)
            assert server.assemblies[0].files[leg].items() <= found.items()


def test_disks_of_a_split_brain_are_explained(tmp_path: Path) -> None:
    server = mirrors.BUILDERS[SPLIT[0]](tmp_path / "server")
    seen = p2v.inspect(server.disks)
    text = render_inspection(seen)
    assert seen.facts is None and "NO LEG CHOSEN YET" in text and "split brain" in text
    assert text.rstrip().splitlines()[-1].startswith("next: decide which leg is right, then p2v plan")


@pytest.mark.parametrize(("what", "legs"), [("no mirror", {"X:": "disk0"}), ("no disk", {"": "disk9"})])
def test_legs_that_are_not_there_are_refused(what: str, legs: dict[str, str], tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    with pytest.raises(PlanError) as refused, arranged(server, legs=legs):
        pass
    assert refused.value.next, what


def test_keep_leaves_the_disks_as_they_are(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    with pytest.raises(Unsupported) as refused:
        p2v.plan(server.disks, output=tmp_path / "out", layout="keep")
    assert "p2v image" in refused.value.next
    with pytest.raises(PlanError):
        p2v.plan(server.disks, output=tmp_path / "out", layout="heap")


def test_the_plan_says_how_the_disks_are_put_together(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror-data"](tmp_path / "server")
    plan = p2v.plan(server.disks, output=tmp_path / "out")
    assert from_json(to_json(plan), {c.digest: c.data for c in contents(plan)}.__getitem__) == plan
    text = p2v.render(plan)
    assert "is put together from" in text and "other leg: disk1.img" in text and "becomes a plain partition" in text
    drawing = svg(plan)
    assert drawing.startswith("<svg") and drawing.count("<rect") >= len(plan.disks[0].pieces)
    ElementTree.fromstring(drawing)
    assert {source.path for source in plan.sources} == {str(path) for path in server.disks}


def test_a_plan_whose_set_has_changed_since_is_not_run(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    plan = p2v.plan(server.disks, output=tmp_path / "out")
    with open(server.disks[1], "r+b") as file:  # the other leg's database moves on
        file.seek(-512, 2)
        file.write(b"\0" * 512)
    with pytest.raises(DriftError):
        p2v.convert(plan)
    assert not (tmp_path / "out").exists()


def test_a_mirror_with_bad_sectors_where_the_plan_must_look(tmp_path: Path) -> None:
    """The chosen leg's hive cannot be read: the legs are compared, are in step, and the other one gives it."""
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    start = server.assemblies[0].parts[0].offset
    hive = server.disks[0].read_bytes().index(b"regf", start)
    with failing({server.disks[0]: (Range(start, 512), Range(hive, 512))}):
        plan = p2v.plan(server.disks, output=tmp_path / "out")
    assert plan.in_step and any("cannot be read" in finding.what for finding in plan.findings)


@pytest.mark.parametrize("name", ["ldm-mirror-data", "ldm-raid5"])
def test_plain_disks_are_imaged_where_nobody_needs_a_guest(name: str, tmp_path: Path) -> None:
    server = mirrors.BUILDERS[name](tmp_path / "server")
    several = name == "ldm-raid5"
    output = tmp_path / ("vm" if several else "vm.qcow2")
    result = p2v.image(server.disks, output, layout="collapse", format="qcow2", compare=True)
    p2v.verify(tmp_path / ("vm" if several else "vm.qcow2.p2v"), source=True)
    with ExitStack() as stack:
        disks = {f"disk{number}": stack.enter_context(closing(open_image(path, "qcow2")))
                 for number, path in enumerate(result.files)}
        on_disks = hashes_on(disks)
    for assembly in server.assemblies:
        assert any(assembly.files[0].items() <= found.items() for found in on_disks), assembly.name
    again = p2v.image(server.disks, output, layout="collapse", format="qcow2", compare=True, resume=True)
    assert again.done_before


def test_members_are_imaged_exactly(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    p2v.image(server.disks, tmp_path / "members")
    for number, disk in enumerate(server.disks):
        assert (tmp_path / "members" / f"disk{number}.raw").read_bytes() == disk.read_bytes()


def test_plain_disks_are_not_imaged_while_something_stops_the_work(tmp_path: Path) -> None:
    """A copy of one member beside it: what p2v plan stops at would else be an image with exit code 0."""
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    twin = tmp_path / "copy.img"
    twin.write_bytes(server.disks[0].read_bytes())
    with pytest.raises(PlanError, match="the same dynamic disk") as caught:
        p2v.image([server.disks[0], twin], tmp_path / "vm", layout="collapse")
    assert "--layout keep" in caught.value.next and not (tmp_path / "vm").exists()


def test_inspect_never_calls_a_leg_current_that_the_evidence_does_not(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror-stale"](tmp_path / "server")
    assert "the leg on disk0 is taken, the current one" in render_inspection(p2v.inspect(server.disks))
    text = render_inspection(p2v.inspect(server.disks, legs={"C:": "disk1"}))
    assert "the leg on disk1 is taken, as you said" in text
    assert text.splitlines()[-1].endswith(f"{server.disks[1]} --leg C:=disk1 -o FOLDER")  # not the other leg, now
    assert "is taken, the only one here" in render_inspection(p2v.inspect(server.disks[1:]))


def test_inspect_says_what_to_type_where_the_chosen_leg_cannot_be_read(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    with failing({server.disks[0]: (Range(server.assemblies[0].parts[0].offset, 512),)}):
        seen = p2v.inspect(server.disks)
        assert seen.facts is None and any("p2v inspect --compare" in finding.next for finding in seen.findings)
        assert "There is no guest" not in render_inspection(seen)
        seen = p2v.inspect(server.disks, compare=True)
    assert seen.facts is not None and not [one for one in seen.findings if one.severity is Severity.ERROR]


def test_inspect_does_not_send_into_a_plan_that_stops(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    twin = tmp_path / "copy.img"
    twin.write_bytes(server.disks[0].read_bytes())
    assert "next: what STOPS, see above; then p2v plan" in render_inspection(p2v.inspect([server.disks[0], twin]))


def test_a_disk_put_together_is_not_rescued_with_one_disk_into_it(tmp_path: Path) -> None:
    """D: comes from disk 1: ddrescue of disk 0 into the image would fill its holes from the stale leg."""
    server = mirrors.BUILDERS["ldm-mirror-mixed"](tmp_path / "server")
    with arranged(server) as made:
        (_, volume) = find_volumes(made.disks).volumes
        files = file_extents(volume.source, examine(volume.source))
        first = next(places[0] for path, places in files if path == "\\$UpCase" and places)
    hole = Range(server.assemblies[1].parts[1].offset + first.offset, 512)
    with failing({server.disks[1]: (hole,)}):
        result = p2v.image(server.disks, tmp_path / "vm.raw", layout="collapse")
    lost = [finding for finding in result.findings if "cannot be read" in finding.what]
    assert [finding.where for finding in lost] == [Where(str(server.disks[1]), hole.offset, hole.length)]
    assert "ddrescue" not in lost[0].next and "--compare" in lost[0].next


def test_plain_disks_go_through_a_pipe_too(tmp_path: Path) -> None:
    """One disk comes out of two; without --layout collapse a pipe takes one disk alone."""
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    sent = tmp_path / "sent.raw"
    with sent.open("wb") as pipe:
        p2v.image(server.disks, "-", layout="collapse", pipe=pipe.fileno())
    (found,) = hashes_on({"disk0": MemorySource(sent.read_bytes())})
    assert server.assemblies[0].files[0].items() <= found.items()
    with pytest.raises(PlanError, match="a pipe takes one disk"):
        p2v.image(server.disks, "-", pipe=1)
    assert [*p2v.image(server.disks, "null", layout="collapse").reports] == ["disk0"]


def test_an_image_of_two_legs_says_what_came_from_the_other_one(tmp_path: Path) -> None:
    server = mirrors.build_mirror_2003(tmp_path / "server", bad_sectors=(0,))
    with failing(server.bad):
        result = p2v.image(server.disks, tmp_path / "vm.raw", layout="collapse", compare=True)
    (said,) = [finding for finding in result.findings if "come from another leg" in finding.what]
    assert not result.reports["disk0"].bad and str(server.disks[1]) in said.why


def test_a_member_of_a_mirror_is_not_adapted_where_it_lies(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    before = server.disks[0].read_bytes()
    with pytest.raises(Unsupported) as refused:
        p2v.adapt([server.disks[0]])
    assert "p2v convert" in refused.value.next and server.disks[0].read_bytes() == before


def test_a_failing_leg_is_not_sent_to_adapt(tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror-holes"](tmp_path / "server")
    with failing({server.disks[0]: (Range(server.assemblies[0].parts[0].offset + 512, 512),)}):
        said = [f for f in p2v.inspect(server.disks).findings if "read errors" in f.what]
    assert said and all("adapt" not in finding.next and "p2v convert" in finding.next for finding in said)


@pytest.mark.parametrize("leg", [0, 1])
def test_a_leg_whose_very_first_sector_is_bad(leg: int, tmp_path: Path) -> None:
    server = mirrors.BUILDERS["ldm-mirror"](tmp_path / "server")
    with failing({server.disks[leg]: (Range(0, 512),)}):
        plan = p2v.plan(server.disks, output=tmp_path / "out")
    assert not errors_of(plan) and len(plan.disks) == 1
    assert plan.disks[0].pieces[0].source == f"disk{1 - leg}"  # its table, the only one that can be read
