"""Findings and errors: what happened, where, why it matters, what to do next.

An error is a finding that stops the work, so both carry the same four answers and print alike.
A class of error is a caller's decision, not a module; each has its own exit code.
ValueError means that our own caller has a bug.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How much a finding weighs."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"  # the conversion cannot go on as planned


@dataclass(frozen=True, slots=True)
class Where:
    """A place: bytes of a disk or image, or a path or key in a guest.

    source: what the user calls the disk, image or volume; "" when the place is not on one.
    offset, length: bytes from the start of the source; None when the place is no byte range.
    item: a field, file path or registry key there.
    """

    source: str = ""
    offset: int | None = None
    length: int | None = None
    item: str = ""

    def __str__(self) -> str:
        parts = [self.source] if self.source else []
        if self.offset is not None:
            if self.length:
                parts.append(f"bytes {self.offset:#x} to {self.offset + self.length:#x}")
            else:
                parts.append(f"byte {self.offset:#x}")
        if self.item:
            parts.append(self.item)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth saying about a source, a guest or a plan.

    what: what was found, one line without a full stop. where, why, next: the other three answers.
    fixer: the NAME of the fixer that found it, "" for anything else.
    """

    what: str
    where: Where = Where()
    why: str = ""
    next: str = ""
    severity: Severity = Severity.INFO
    fixer: str = ""

    def __str__(self) -> str:
        return _four_answers(self.what, str(self.where), self.why, self.next)


class P2VError(Exception):
    """A finding that stops the work. Every error that p2v raises on purpose is one.

    exit_code: what the command line ends with.
    """

    exit_code = 1

    def __init__(self, what: str, where: Where | str = "", why: str = "", next: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = Where(item=where) if isinstance(where, str) else where
        self.why = why
        self.next = next

    def __str__(self) -> str:
        return _four_answers(self.what, str(self.where), self.why, self.next)

    def as_finding(self) -> Finding:
        """The same four answers, as a finding of severity ERROR."""
        return Finding(self.what, self.where, self.why, self.next, Severity.ERROR)


class ReadError(P2VError):
    """Bytes of a source cannot be read: retry, rescue, or leave them out."""

    exit_code = 10


class LayoutError(P2VError):
    """An on-disk structure contradicts itself or its medium: do not trust it."""

    exit_code = 11


class Unsupported(P2VError):
    """p2v knows what this is, or knows that it does not, and does not handle it."""

    exit_code = 12


class WriteError(P2VError):
    """The output cannot be written: full, gone, or not permitted."""

    exit_code = 13


class GuestError(P2VError):
    """The guest cannot be read or edited: hibernated, damaged, a needed file is nowhere."""

    exit_code = 14


class PlanError(P2VError):
    """The plan cannot be made or run as it stands: output exists, fixers disagree, bad arguments."""

    exit_code = 15


class DriftError(P2VError):
    """The source or guest is no longer what the plan was made from: make a new plan."""

    exit_code = 16


class MismatchError(P2VError):
    """A check after the work failed: the output is not what was planned or copied."""

    exit_code = 17


class MissingTool(P2VError):
    """A program or binding that p2v needs is not installed: the message names the package."""

    exit_code = 18


class Cancelled(P2VError):
    """The caller asked to stop. Nothing is lost; the message says how to go on."""

    exit_code = 130


def _four_answers(what: str, where: str, why: str, next: str) -> str:
    lines = [what]
    lines += [f"  {label:<6} {text}".replace("\n", f"\n{'':9}") for label, text in
              (("where:", where), ("why:", why), ("next:", next)) if text]
    return "\n".join(lines)
