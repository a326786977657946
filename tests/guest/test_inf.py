"""Setup texts of real drivers, and texts that make no sense."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2v.guest.inf import bindings, sections

TEXT = r"""
; a comment
[Version]
Signature = "$Windows NT$" ; another
[Manufacturer]
%ACME% = Acme, NTamd64
[Acme]
%Card% = Card_Inst, PCI\VEN_1234&DEV_0001, \
         PCI\VEN_1234&DEV_0002
%Chip% = NoDriver,, PCI\VEN_1234&DEV_0003
[Acme.NTamd64]
%Card% = Card_Inst, PCI\VEN_1234&DEV_0064
[Card_Inst.Services]
AddService = , 0x2
AddService = helper, 0, Helper_Inst
AddService = %Service%, 0x00000002, Card_Service
[NoDriver.Services]
AddService = , 0x2
[Strings]
ACME = "Acme; Inc."
Service = "acmescsi"
"""
X86 = {"pci\\ven_1234&dev_0001": "acmescsi", "pci\\ven_1234&dev_0002": "acmescsi"}


@pytest.mark.parametrize("encoded", [
    TEXT.encode("cp1252"), codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    codecs.BOM_UTF8 + TEXT.encode(), TEXT.replace("\n", "\r\n").encode(), TEXT.replace("[Acme]", "[ACME").encode()])
def test_the_service_of_each_device(encoded):
    assert bindings(encoded, "x86") == X86
    assert bindings(encoded, "x64") == {"pci\\ven_1234&dev_0064": "acmescsi"}


def test_sections():
    """A comment begins at ; outside of quotes; a section may come twice; a head may lack its end."""
    parts = sections(b'x=1\n[A]\n y \n;no\n[b ; c]\n"q;q"=2 ; no\n[a]\nz')
    assert parts == {"": ["x=1"], "a": ["y", "z"], "b": ['"q;q"=2']}


@pytest.mark.parametrize(("name", "architecture", "id", "service"), [
    ("lsi-symmpi-xp.inf", "x86", "pci\\ven_1000&dev_0030", "symmpi"),
    ("lsi-symmpi-txtsetup.oem", "x86", "pci\\ven_1000&dev_0030", "symmpi"),
    ("virtio-txtsetup.oem", "x64", "pci\\ven_1af4&dev_1001&subsys_00021af4&rev_00", "viostor"),
    ("virtio-txtsetup.oem", "x86", "pci\\ven_1af4&dev_1004&subsys_00081af4&rev_00", "vioscsi"),
    ("intel-iastor-txtsetup.oem", "x86", "pci\\ven_8086&dev_2829&cc_0106", "iastor"),
])
def test_real_texts(corpus, name, architecture, id, service):
    found = bindings((corpus / "inf" / name).read_bytes(), architecture)
    assert found[id].lower() == service.lower()


@given(st.binary(max_size=500))
def test_anything_at_all(data):
    assert isinstance(bindings(data, "x86"), dict)


@given(st.text(alphabet="[]=,%;\"\\\\\n abNTx86.Servicemanufactur", max_size=300))
def test_anything_that_looks_like_one(text):
    assert isinstance(bindings(b"[manufacturer]\n" + text.encode(), "x64"), dict)
