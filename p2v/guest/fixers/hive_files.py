"""The registry must be editable, and its spare copy must not bring old settings back."""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding, Where
from p2v.guest.fixers.edits import HIVE, hindrances
from p2v.model import Change, Family, Guest, Target

NAME = "hive-files"


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Findings only: the hive is written when its changes are applied."""
    if guest.facts.family is not Family.WINDOWS:
        return
    place = guest.facts.hives[HIVE]
    for path in (place.path, place.path + ".LOG", place.path + ".ALT"):
        yield from hindrances(guest, place.volume, path, NAME)
    alternate = place.path + ".ALT"
    if guest.files(place.volume).stat(alternate) is not None:
        yield Finding("SYSTEM.ALT is kept in step with SYSTEM", Where(place.volume, item=alternate),
                      "the loader of NT 4 and 2000 falls back to it; an old copy would bring back the old "
                      "boot drivers", "nothing: it is written together with the hive", fixer=NAME)
