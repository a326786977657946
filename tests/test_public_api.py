"""The names that other tools import, and that importing them lazily costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import p2v

HEAVY = ("click", "tqdm", "numpy", "blake3", "guestfs", "nbd", "hivex", "pyfsntfs", "pyfsfat", "Registry", "pefile",
         "construct", "parted")


@pytest.mark.parametrize("name", p2v.__all__)
def test_every_public_name_is_there_and_stays_itself(name: str) -> None:
    first = getattr(p2v, name)
    assert first is getattr(p2v, name), "a second look must not find a module of the same name"
    assert first.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        p2v.nothing  # noqa: B018 -- looking is the test


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_p2v_loads_nothing_heavy() -> None:
    assert not loaded_by("import p2v") & set(HEAVY)


def test_the_command_line_starts_with_click_alone() -> None:
    assert loaded_by("import p2v.cli") & set(HEAVY) == {"click"}
