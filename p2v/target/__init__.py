"""Targets: where a guest will run. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from p2v.errors import PlanError
from p2v.model import Target
from p2v.target import hyperv, kvm, proxmox, virtualbox, vmware, xen

TARGETS: Mapping[str, Target] = {target.NAME: target for target in (kvm, proxmox, vmware, hyperv, virtualbox, xen)}


def target_named(name: str) -> Target:
    """Raises PlanError naming the targets that there are."""
    try:
        return TARGETS[name]
    except KeyError:
        raise PlanError(f"no target is called {name}", "--target", "a plan is for one of the targets that p2v knows",
                        "choose one of: " + ", ".join(TARGETS)) from None
