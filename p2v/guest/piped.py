"""What an unpacking program prints, with bounds: what it reads was handed in by somebody, or lay on a guest."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence

from p2v.errors import MissingTool

SECONDS = 120  # a whole driver.cab of XP (70 MB) takes cabextract 3
PIECE = 1 << 20  # bytes


def piped(command: Sequence[str], limit: int, package: str, why: str) -> tuple[bytes, int]:
    """(standard output, exit status) of a program; at most limit bytes and one more, after which it is stopped.

    package: where the program is from; why: what it is needed for. A program that hangs is stopped after
    SECONDS. Raises MissingTool.
    """
    data = bytearray()
    status = streamed(command, limit, package, why, data.extend)
    return bytes(data), status


def streamed(command: Sequence[str], limit: int, package: str, why: str, take: Callable[[bytes], object]) -> int:
    """The same, piece by piece. Returns the exit status."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C.UTF-8"})
    except FileNotFoundError as error:
        raise MissingTool(f"{command[0]} is not installed", "", why, f"apt install {package}") from error
    timer = threading.Timer(SECONDS, process.kill)
    timer.start()
    try:
        with process:
            assert process.stdout is not None
            left = limit + 1
            while left and (piece := process.stdout.read(min(left, PIECE))):
                take(piece)
                left -= len(piece)
            if not left:
                process.kill()
            return process.wait()
    finally:
        timer.cancel()
