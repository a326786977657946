"""README's tables of guests, targets and controllers are what the manifests and targets say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from p2v import drivers, matrix
from p2v.target import TARGETS

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readme_has_the_tables_that_the_data_makes() -> None:
    found = re.search(r"<!-- matrix: made by python -m p2v.matrix -->\n(.*)<!-- end of matrix -->", README, re.DOTALL)
    assert found and found.group(1) == matrix.markdown(), "put what `python -m p2v.matrix` prints between the markers"


def test_every_controller_with_a_manifest_is_offered_by_some_target() -> None:
    offered = {name for target in TARGETS.values() for name in target.CONTROLLERS}
    assert offered == set(drivers.names())


def rows() -> dict[str, dict[str, str]]:
    """The first column → column → cell, of both tables."""
    found: dict[str, dict[str, str]] = {}
    for table in matrix.markdown().split("\n\n"):
        head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().split("\n")]
        found |= {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    return found


@pytest.mark.parametrize(("row", "column", "cell"), [  # typed by hand, from the project's notes
    ("NT 4", "kvm", "piix-ide, pcnet"),
    ("NT 4", "xen", "piix-ide, rtl8139 (driver supplied)"),
    ("2003", "vmware", "lsi-53c1030, vlance?"),
    ("XP", "vmware", "piix-ide, vlance"),
    ("XP x64, 2003 x64", "kvm", "piix-ide, e1000?"),
    ("XP x64, 2003 x64", "hyperv", "piix-ide, legacy network adapter?"),
    ("XP x64, 2003 x64", "HAL", "stays"),
    ("XP", "hand in", "nothing"),
    ("`buslogic`: BusLogic SCSI", "XP x64, 2003 x64", "none"),
    ("`virtio-scsi`: virtio SCSI controller", "XP", "none"),
    ("`lsi-53c1030`: LSI Logic parallel SCSI (53C1030)", "XP", "handed in"),
])
def test_a_cell_says_what_was_found_out(row: str, column: str, cell: str) -> None:
    assert rows()[row][column] == cell


def test_nt4_is_told_what_to_hand_in() -> None:
    assert "atapi.sys" in rows()["NT 4"]["hand in"] and "Service Pack" in rows()["NT 4"]["hand in"]
