"""Program files: what they say, and that damage never gets further than a GuestError."""

from __future__ import annotations

import random

import pytest

from fixtures.pe import AMD64, I386, IA64, StandIn, pe_file
from p2v.errors import GuestError
from p2v.guest.pe import LIMIT, NATIVE, read_program

DRIVER = StandIn("intelide.sys", (5, 1, 2600, 5512), ("ntoskrnl.exe", "HAL.dll", "pciidex.sys"))


def test_what_a_driver_says():
    program = read_program(pe_file(DRIVER), "intelide.sys")
    assert program.facts.machine == "x86"
    assert program.facts.version == (5, 1, 2600, 5512)
    assert program.facts.original_name == "intelide.sys"
    assert program.facts.imports == ("hal.dll", "ntoskrnl.exe", "pciidex.sys")
    assert program.subsystem == NATIVE
    assert not program.checked


@pytest.mark.parametrize(("machine", "name"), [(I386, "x86"), (AMD64, "x64"), (IA64, "0x200")])
def test_machines(machine, name):
    assert read_program(pe_file(StandIn("a.sys", (5, 2, 3790, 0), machine=machine)), "a").facts.machine == name


def test_a_checked_build_is_known():
    assert read_program(pe_file(StandIn("a.sys", (5, 1, 2600, 0), checked=True)), "a").checked


@pytest.mark.parametrize("data", [b"", b"MZ", b"not a program" * 100, bytes(4096)])
def test_no_program(data):
    with pytest.raises(GuestError, match="not a whole Windows program"):
        read_program(data, "a.sys")


def test_too_large_is_refused_unread():
    with pytest.raises(GuestError, match="not a whole"):
        read_program(bytes(LIMIT + 1), "a.sys")


def test_cut_off_anywhere():
    data = pe_file(DRIVER)
    for length in range(0, len(data), 193):
        with pytest.raises(GuestError):
            read_program(data[:length], "a.sys")


def test_damage_gives_an_answer_or_a_guest_error():
    data = pe_file(DRIVER)
    chance = random.Random(4)
    for _ in range(100):
        broken = bytearray(data)
        for _ in range(4):
            at = chance.choice((chance.randrange(0x400), chance.randrange(len(data))))
            broken[at] = chance.choice((0, 0x7F, 0xFF, chance.randrange(256)))
        try:
            read_program(bytes(broken), "a.sys")
        except GuestError as error:
            assert error.why
