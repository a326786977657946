"""What the VM's disks are made of: what cannot become one is refused."""

from __future__ import annotations

import pytest

from p2v.arranging import arrange
from p2v.errors import PlanError
from p2v.testing import MemorySource
from tests.fuzz.sets import dynamic


@pytest.mark.parametrize("size", [0, 443])
def test_a_disk_of_less_than_a_sector_beside_sets_is_refused(size: int) -> None:
    disks = {f"disk{number}": MemorySource(data) for number, data in enumerate(dynamic().disks)}
    assert arrange(disks, {"": "disk0"}).has_sets
    with pytest.raises(PlanError, match="less than one sector"):
        arrange(disks | {"disk2": MemorySource(bytes(size), "short")}, {"": "disk0"})
