"""The text in which LVM2 describes a volume group: names, numbers, strings, lists and sections in braces.

Source: the files under /etc/lvm/backup that every LVM writes; vgcfgbackup(8); lvm.conf(5) on the syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

DEEPEST = 8  # sections in sections: a volume group has four
_TOKEN = re.compile(
    r'(?P<blank>[\s\0]+|#[^\n]*)|"(?P<text>(?:[^"\\]|\\.)*)"|(?P<number>-?\d{1,20})(?![\w.-])'
    r"|(?P<name>[\w.+-]+)|(?P<mark>[{}=\[\],])", re.ASCII)

Node: TypeAlias = "Mapping[str, Node] | list[Node] | str | int"
Token: TypeAlias = tuple[str, str, int]  # kind, text, place


def parse(text: str) -> dict[str, Node]:
    """The top section. Raises ValueError naming the place (a character's number)."""
    reader = _Reader(text)
    section = reader.section(0)
    reader.expect_end()
    return section


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens, None)

    def section(self, depth: int) -> dict[str, Node]:
        """Assignments and sections, up to a brace that closes or the end."""
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} sections in one another")
        found: dict[str, Node] = {}
        while self._next is not None and self._next[1:2] != ("}",):
            kind, name, place = self._take()
            if kind not in ("name", "number", "text"):
                raise ValueError(f"{name!r} where a name should be, at {place}")
            mark = self._take()
            if mark[1] == "{" and mark[0] == "mark":
                found[name] = self.section(depth + 1)
                self._want("}")
            elif mark[1] == "=" and mark[0] == "mark":
                found[name] = self._value()
            else:
                raise ValueError(f"{mark[1]!r} behind {name!r}, at {mark[2]}")
        return found

    def expect_end(self) -> None:
        """Raises ValueError where more follows."""
        if self._next is not None:
            raise ValueError(f"{self._next[1]!r} without its beginning, at {self._next[2]}")

    def _value(self) -> Node:
        kind, text, place = self._take()
        if kind == "number":
            return int(text)
        if kind == "text":
            return text
        if text != "[":
            raise ValueError(f"{text!r} where a value should be, at {place}")
        values: list[Node] = []
        while self._next is not None and self._next[1] != "]":
            kind, text, place = self._take()
            if kind == "mark" and text != ",":
                raise ValueError(f"{text!r} in a list, at {place}")
            if kind != "mark":
                values.append(int(text) if kind == "number" else text)
        self._want("]")
        return values

    def _want(self, mark: str) -> None:
        kind, text, place = self._take()
        if (kind, text) != ("mark", mark):
            raise ValueError(f"{text!r} instead of {mark!r}, at {place}")

    def _take(self) -> Token:
        token = self._next
        if token is None:
            raise ValueError("it ends in the middle")
        self._next = next(self._tokens, None)
        return token


def _tokens(text: str) -> Iterator[Token]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"{text[at]!r} at {at}")
        if match.lastgroup != "blank":
            yield match.lastgroup, match[match.lastgroup], at
        at = match.end()
