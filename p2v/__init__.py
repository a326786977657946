"""p2v: the disks of legacy Windows servers become VMs that boot.

    plan = p2v.plan(["disk0.img", "disk1.img"], target="kvm", output="web01")
    print(p2v.render(plan))                     # the dry run: nothing has been written
    p2v.convert(plan, progress=report)          # then p2v.verify("web01"); p2v.undo("web01")

The names below are the public ones; whatever is not here may move. They are imported when first used, so
that `import p2v` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2v.adaptation import adapt, undo
    from p2v.conversion import Result, convert, verify
    from p2v.diskcopy import Options as ImageOptions
    from p2v.errors import (
        Cancelled,
        DriftError,
        Finding,
        GuestError,
        LayoutError,
        MismatchError,
        MissingTool,
        P2VError,
        PlanError,
        ReadError,
        Severity,
        Unsupported,
        Where,
        WriteError,
    )
    from p2v.folder import load_plan
    from p2v.imaging import image
    from p2v.inspecting import Inspection, inspect
    from p2v.model import Plan, Source
    from p2v.pairing import LegOptions
    from p2v.planning import open_source as open
    from p2v.planning import plan
    from p2v.rendering import render_plan as render

__version__ = "0.1.0"

_HOMES = {
    "p2v.adaptation": ("adapt", "undo"),
    "p2v.conversion": ("Result", "convert", "verify"),
    "p2v.errors": ("Cancelled", "DriftError", "Finding", "GuestError", "LayoutError", "MismatchError",
                   "MissingTool", "P2VError", "PlanError", "ReadError", "Severity", "Unsupported", "Where",
                   "WriteError"),
    "p2v.folder": ("load_plan",),
    "p2v.imaging": ("image",),
    "p2v.model": ("Plan", "Source"),
    "p2v.inspecting": ("Inspection", "inspect"),
    "p2v.pairing": ("LegOptions",),
    "p2v.planning": ("plan",),
}
_RENAMED = {"ImageOptions": ("p2v.diskcopy", "Options"), "open": ("p2v.planning", "open_source"),
            "render": ("p2v.rendering", "render_plan")}
_HOME = {name: (home, name) for home, names in _HOMES.items() for name in names} | _RENAMED

__all__ = [
    "Cancelled", "DriftError", "Finding", "GuestError", "ImageOptions", "Inspection", "LayoutError", "LegOptions",
    "MismatchError", "MissingTool", "P2VError", "Plan", "PlanError", "ReadError", "Result", "Severity", "Source",
    "Unsupported", "Where", "WriteError", "adapt", "convert", "image", "inspect", "load_plan", "open", "plan",
    "render", "undo", "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'p2v' has no attribute {name!r}")
    home, own = _HOME[name]
    value = getattr(importlib.import_module(home), own)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
