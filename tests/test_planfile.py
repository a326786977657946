"""A plan survives its JSON, whatever is in it, and a damaged document is a PlanError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v.errors import Finding, PlanError, Severity, Where
from p2v.model import (
    BytesChange,
    Content,
    DiskPlan,
    Family,
    FileChange,
    FilesystemState,
    Geometry,
    GuestFacts,
    HivePlace,
    KeyChange,
    Machine,
    MachineDisk,
    Member,
    PEFacts,
    Plan,
    Recovery,
    Value,
    ValueChange,
    VolumeFacts,
)
from p2v.planfile import contents, from_json, to_json
from p2v.rendering import render_plan

TEXT = st.text(max_size=12)
DATA = st.binary(max_size=20)
VALUES = st.none() | st.builds(Value, st.integers(0, 2**32 - 1), DATA)
CONTENTS = st.none() | st.builds(Content, DATA)


@st.composite
def bytes_changes(draw: st.DrawFn) -> BytesChange:
    before = draw(st.binary(min_size=1, max_size=8))
    after = draw(st.binary(min_size=len(before), max_size=len(before)))
    return BytesChange("disk0", draw(st.integers(0, 2**40)), before, after, draw(TEXT), draw(TEXT))


CHANGES = st.one_of(
    st.builds(ValueChange, TEXT, TEXT, TEXT, VALUES, VALUES, TEXT, TEXT),
    st.builds(KeyChange, TEXT, TEXT, st.booleans(), st.booleans(), TEXT, TEXT),
    st.builds(FileChange, TEXT, TEXT, CONTENTS, CONTENTS, TEXT, TEXT, st.none() | TEXT),
    st.builds(Recovery, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT),
    bytes_changes(),
)


def a_plan(changes: list[object]) -> Plan:
    facts = GuestFacts(
        Family.WINDOWS, "Windows XP", (5, 1), 2600, 3, "x86", "WinNT", ("Terminal Server",), "\\WINDOWS", "disk0p1",
        "disk0p1", PEFacts("x86", (5, 1, 2600, 5512), "halacpi.dll", "somebody", ("ntoskrnl.exe",)), None,
        ("ControlSet001",), "ControlSet001", ("atapi",), ("C:\\pagefile.sys 2 4",),
        {"SYSTEM": HivePlace("disk0p1", "\\WINDOWS\\system32\\config\\SYSTEM")},
    )
    disk = MachineDisk("/vm/disk0.qcow2", "qcow2", 1 << 30, Geometry(255, 63))
    return Plan(
        "kvm", "web01", (DiskPlan("disk0", "/dev/sda", 1 << 30, 512, "ab", "qcow2", "disk0.qcow2"),),
        (VolumeFacts("disk0p1", "basic", (Member("disk0", 32256, 1 << 29),), "ntfs", "3.1",
                     FilesystemState.CLEAN, 1 << 20),),
        facts, Machine("web01", facts, (disk,), 1 << 30, 1, "rtl8139"), tuple(changes),  # type: ignore[arg-type]
        (Finding("something", Where("disk0", 0, 512, "MBR"), "why", "next", Severity.WARNING, "boot-ini"),),
    )


@given(st.lists(CHANGES, max_size=6))
def test_a_plan_survives_its_json(changes: list[object]) -> None:
    plan = a_plan(changes)
    kept = {content.digest: content.data for content in contents(plan)}
    again = from_json(json.loads(json.dumps(to_json(plan))), kept.__getitem__)
    assert again == plan
    assert [c.data for c in contents(again)] == [c.data for c in contents(plan)]


@given(st.lists(CHANGES, max_size=6))
def test_any_plan_can_be_rendered(changes: list[object]) -> None:
    text = render_plan(a_plan(changes))
    assert "Windows XP" in text and f"{len(changes)} change(s) planned" in text


SOURCE = {"id": "disk0", "path": "/a", "size": 8192, "sector_size": 512, "fingerprint": "ab"}
PIECE = {"offset": 0, "length": 8192, "source": "disk0", "at": 0, "twins": []}
DISK = SOURCE | {"format": "raw", "image": "a.img", "pieces": [PIECE]}


def test_a_disk_in_pieces_is_read() -> None:
    plan = from_json(to_json(a_plan([])) | {"sources": [SOURCE], "disks": [DISK]}, {}.__getitem__)
    assert [piece.end for piece in plan.disks[0].pieces] == [8192]


@pytest.mark.parametrize("damage", [
    {"format_version": 2}, {"disks": [{}]}, {"changes": [{"kind": "nonsense"}]}, {"facts": None}, {"volumes": 7},
    {"machine": {"name": "../evil", "facts": None, "disks": []}},
    {"disks": [{"id": "../../x", "path": "a", "size": 1, "sector_size": 512, "fingerprint": "", "format": "raw",
                "image": "a"}]},
    {"changes": [{"kind": "bytes", "disk": "disk0", "offset": 0, "before": "zz", "after": "", "why": ""}]},
    {"output": 7}, {"copy_all": None, "drivers": [None]}, {"sources": [SOURCE]}, {"legs": []},
    {"sources": [SOURCE | {"size": 1 << 65}], "disks": [DISK]},
    {"sources": [SOURCE | {"size": "8192"}], "disks": [DISK]},
    {"sources": [SOURCE], "disks": [DISK | {"pieces": [PIECE | {"offset": 512}]}]},
    {"sources": [SOURCE], "disks": [DISK | {"pieces": [PIECE | {"twins": [["disk1", float("inf")]]}]}]},
    {"volumes": [{"name": "C", "layout": "basic", "members": [], "filesystem": "ntfs", "version": "3.1",
                  "state": "clean", "used": 1}]},
])
def test_a_damaged_document_is_a_plan_error(damage: dict[str, object]) -> None:
    document = to_json(a_plan([])) | damage
    with pytest.raises(PlanError) as refused:
        from_json(document, {}.__getitem__)
    assert refused.value.why and refused.value.next


@pytest.mark.parametrize(("target", "controller"), [("kvm", "../evil"), ("hyperv", "lsi-53c1030"), ("vax", "piix-ide")])
def test_a_controller_that_the_target_has_not_is_a_plan_error(target: str, controller: str) -> None:
    document = to_json(a_plan([])) | {"target": target}
    document["machine"]["controller"] = controller
    with pytest.raises(PlanError):
        from_json(document, {}.__getitem__)


def test_a_plan_from_before_controllers_were_kept_is_on_ide() -> None:
    document = to_json(a_plan([]))
    del document["machine"]["controller"]
    assert from_json(document, {}.__getitem__) == a_plan([])
