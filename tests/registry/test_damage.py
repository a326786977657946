"""Hives with flipped bytes: an error of the family or findings, soon, and hivex never aborts the process."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixtures.registry.dirty import NT4, dirty
from p2v.errors import GuestError, Severity, Unsupported
from p2v.model import DWord
from p2v.registry import regf
from p2v.registry.cells import checksum
from p2v.registry.hive import HiveEditor
from p2v.registry.reader import open_hive
from tests.registry.test_reader import everything, sample

REFUSALS = (GuestError, Unsupported)


def try_reading(data: bytes) -> None:
    for act in (lambda: everything(open_hive(data, "S"), 500), lambda: regf.recover(data, None, "S"),
                lambda: regf.lh_to_lf(data, "S")):
        try:
            act()
        except REFUSALS as error:
            assert error.where.source == "S"
    for finding in regf.check(data, "S"):
        assert str(finding)


def spoiled(data: bytes, random_: random.Random) -> bytes:
    """A few bytes changed; the checksum made good half the time, so that damage gets further."""
    copy = bytearray(data)
    for _ in range(random_.choice([1, 1, 2, 4])):
        at = random_.randrange(4096, len(copy)) & ~3
        how = random_.randrange(3)
        if how == 0:
            copy[at + random_.randrange(4)] = random_.randrange(256)
        elif how == 1:
            copy[at:at + 4] = random_.choice([bytes(4), b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xf8\xff\xff\x7f"])
        else:
            other = random_.randrange(4096, len(copy)) & ~3
            copy[at:at + 4] = copy[other:other + 4]
    return bytes(copy)


def test_each_byte_of_the_base_block() -> None:
    data = sample()
    started = time.monotonic()
    for at in range(512):
        for flip in (0x01, 0x80, 0xFF):
            copy = bytearray(data)
            copy[at] ^= flip
            try_reading(bytes(copy))
            if at < 508:
                copy[508:512] = checksum(copy).to_bytes(4, "little")
                try_reading(bytes(copy))
    assert time.monotonic() - started < 60


def test_random_bytes_of_the_bins() -> None:
    data, random_ = sample(), random.Random(1)
    for _ in range(1500):
        try_reading(spoiled(data, random_))


def test_each_byte_of_a_log() -> None:
    """Whatever the log says, the result is an error or a clean hive."""
    clean = sample()
    editor = HiveEditor(clean, "S")
    editor.create_key("A\\key 9")
    primary, log = dirty(clean, editor.commit(), NT4)
    for data in (primary, bytes(4096) + primary[4096:]):
        for at in range(1024):
            for flip in (0x01, 0x80, 0xFF):
                copy = bytearray(log)
                copy[at] ^= flip
                if at < 508:
                    copy[508:512] = checksum(copy).to_bytes(4, "little")
                try:
                    recovered = regf.recover(data, bytes(copy), "S")
                except REFUSALS as error:
                    assert error.where.source in ("S", "S.LOG")
                    continue
                assert not regf.is_dirty(recovered.data)
                assert len(recovered.data) < 1 << 20


EDITING = """
import random, sys
sys.path[:0] = [{tests!r}, {root!r}]
from tests.registry.test_damage import edit_spoiled
edit_spoiled(random.Random({seed}), 600)
print("survived")
"""


def edit_spoiled(random_: random.Random, times: int) -> None:
    """Edits of damaged hives: what HiveEditor lets through to hivex must not abort."""
    data = sample()
    for _ in range(times):
        bad = spoiled(data, random_)
        try:
            editor = HiveEditor(bad, "S")
            for key in ("A\\key 1", "A\\key 5\\deep"):
                editor.set_value(key, "Start", DWord(9))
            editor.delete_key("A\\key 3", recursive=True)
            editor.create_key("A\\key 7\\deep")
            edited = editor.commit()
        except REFUSALS:
            continue
        assert not [finding for finding in regf.check(edited, "S") if finding.severity is Severity.ERROR]
        assert open_hive(edited, "S").value("A\\key 1", "Start") == DWord(9)


@pytest.mark.parametrize("seed", [1, 2])
def test_editing_damaged_hives_never_aborts(seed: int) -> None:
    """In a process of its own: hivex's asserts would end this one."""
    tests = Path(__file__).parent
    code = EDITING.format(tests=str(tests), root=str(tests.parent.parent), seed=seed)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "survived\n"), run.stderr[-2000:]
