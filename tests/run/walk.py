"""What tests of whole runs look at: every file of a volume, every key of a hive."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from fixtures.servers import VolumeExpectation
from p2v.filesystem import open_files
from p2v.model import GuestFiles, HiveTree
from p2v.planning import View

UNSTABLE = ("\\pagefile.sys", "\\$")  # the page file's content is not carried over; metadata files


def files(seen: View, volume: str) -> dict[str, str]:
    """Path in lower case → SHA-256, of every file but the page file and NTFS' own."""
    return _walk(seen.known_guest.files(volume))


def files_of(seen: View, volume: str) -> dict[str, str]:
    """The same for a volume that need not belong to a guest."""
    source = next(one.source for one in seen.layout.volumes if one.name == volume)
    return _walk(open_files(source, seen.filesystems[volume]))


def _walk(door: GuestFiles) -> dict[str, str]:
    found: dict[str, str] = {}
    todo = ["\\"]
    while todo:
        folder = todo.pop()
        for name in door.list(folder):
            path = f"{folder.rstrip(chr(92))}\\{name}"
            stat = door.stat(path)
            if name in (".", "..") or path.startswith(UNSTABLE) or stat is None:
                continue
            if stat.is_folder:
                todo.append(path)
            else:
                found[path.lower()] = hashlib.sha256(door.read(path)).hexdigest()
    return found


def differing_keys(one: HiveTree, two: HiveTree) -> set[str]:
    """The keys, in lower case, whose values or names of subkeys differ; added and removed ones included."""
    found, todo = set(), [""]
    while todo:
        key = todo.pop()
        left, right = ({name.lower() for name in tree.subkeys(key)} for tree in (one, two))
        if left != right or dict(one.values(key)) != dict(two.values(key)):
            found.add(key.lower())
        found |= {f"{key}\\{name}".lstrip("\\").lower() for name in left ^ right}
        todo += [f"{key}\\{name}".lstrip("\\") for name in left & right]
    return found


def extract(image: Path, format: str, volume: VolumeExpectation, to: Path) -> Path:
    """A volume of an image as a file of its own, by qemu's tools."""
    subprocess.run(["qemu-img", "convert", "--image-opts", "-O", "raw",
                    f"driver=raw,offset={volume.offset},size={volume.length},file.driver={format},"
                    f"file.file.driver=file,file.file.filename={image}", to], check=True)
    return to
