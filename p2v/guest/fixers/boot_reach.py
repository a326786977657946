"""NT 4's loader must reach its files: each that lies past cylinder 1024 is named. Nothing is moved."""

from __future__ import annotations

from collections.abc import Iterator

from p2v.errors import Finding
from p2v.guest import reach
from p2v.model import Change, Family, Guest, Target

NAME = reach.NAME


def plan(guest: Guest, target: Target) -> Iterator[Change | Finding]:  # noqa: ARG001  # the protocol's
    """Findings only."""
    if guest.facts.family is Family.WINDOWS:
        yield from reach.beyond(guest)
