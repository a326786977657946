"""Every output format keeps the contract of model.ImageFormat."""

from __future__ import annotations

import pytest

from p2v.formats import FORMATS
from p2v.testing import check_format


@pytest.mark.parametrize("name", FORMATS)
def test_contract(name, tmp_path, needs):
    needs("qemu-nbd")
    assert name == FORMATS[name].NAME
    check_format(FORMATS[name], tmp_path)
