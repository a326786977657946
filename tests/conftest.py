"""What tests share: where the corpus is, and how a missing witness is handled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def absent(reason: str) -> None:
    """Skip for a reason; in CI a missing witness is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI this must be there: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real sample data, named by P2V_CORPUS."""
    folder = os.environ.get("P2V_CORPUS", "")
    if not folder or not Path(folder).is_dir():
        absent("P2V_CORPUS does not name the folder of real sample data")
    return Path(folder)


@pytest.fixture
def needs():
    """needs("qemu-img", …): skip (in CI: fail) where a witness program is missing."""

    def check(*programs: str) -> None:
        for program in programs:
            if shutil.which(program) is None:
                absent(f"{program} is not installed")

    return check
