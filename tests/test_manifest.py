"""The manifest is what its documentation says, field by field."""

from __future__ import annotations

import json
import random
import re

import p2v
from p2v import planning, record
from p2v.copy import COUNTED
from p2v.digests import digest_of
from p2v.errors import ReadError
from p2v.testing import MemorySource

MIB = 1 << 20


class Bad(MemorySource):
    def read_into(self, offset, buffer):
        if offset < 5 * MIB + 512 and offset + len(buffer) > 5 * MIB:
            raise ReadError("bad")
        MemorySource.read_into(self, offset, buffer)

    def close(self):
        pass


def documented():
    """Field → its description, out of the table in record's docstring; a field of a field as "disks.id"."""
    found, stack = {}, []
    for line in record.__doc__.split("these fields stay, others may come.\n")[1].splitlines():
        match = re.match(r"^(    (?:  )*)([a-z0-9_]+) {2,}(\S.*)$", line)
        if match:
            depth = len(match[1]) // 2 - 2
            stack = [*stack[:depth], match[2]]
            found[".".join(stack)] = match[3]
    return found


def names(thing, path=""):
    if isinstance(thing, dict):
        for name, value in thing.items():
            yield f"{path}{name}"
            yield from names(value, f"{path}{name}.")
    elif isinstance(thing, list) and thing and isinstance(thing[0], dict):
        for one in thing:
            yield from names(one, path)


def test_every_field_is_documented_and_every_documented_field_is_there(tmp_path, monkeypatch):
    draw = random.Random(1)
    data = draw.randbytes(2 * MIB) + bytes(2 * MIB) + draw.randbytes(2 * MIB + 512)
    source = Bad(data, "poor")
    monkeypatch.setattr(planning, "open_source", lambda path, format=None, **more: source)
    p2v.image(["poor"], tmp_path / "out.qcow2")
    manifest = json.loads((tmp_path / "out.qcow2.p2v" / "manifest.json").read_text())
    assert set(names(manifest)) == set(documented()) - {"disks.device"}
    assert list(manifest) == [name for name in documented() if "." not in name]
    (disk,) = manifest["disks"]
    copy = disk["copy"]
    assert (manifest["format_version"], manifest["p2v"]) == (1, p2v.__version__)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest["finished"])
    assert (disk["id"], disk["image"], disk["format"], disk["source"]) == ("disk0", "../out.qcow2", "qcow2", "poor")
    assert disk["size"] == copy["size"] == len(data) == sum(copy["counts"].values())
    assert list(copy["counts"]) == list(COUNTED) and copy["counts"]["found_zero"] == 2 * MIB
    assert copy["bad"] == [[5 * MIB, 512]] and copy["counts"]["bad"] == 512 and copy["seconds"] >= 0
    assert (copy["chunk_size"], copy["algorithm"]) == (MIB, "blake3")
    written = bytearray(data)
    written[5 * MIB : 5 * MIB + 512] = bytes(512)
    digests = [digest_of(bytes(written[at : at + MIB])).hex() for at in range(0, len(data), MIB)]
    assert copy["digests"] == ["".join(digests[:2]), 2, "".join(digests[4:])]
