"""What must change so that a Windows boots in the VM: one module for each worry.

A fixer reads facts and yields changes and findings; it never writes. Where the guest is right already it
yields nothing, so a second plan of a converted guest is empty.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2v.guest.fixers import (
    boot_files,
    boot_ini,
    boot_reach,
    boot_sectors,
    boot_storage,
    class_filters,
    crash_control,
    disk_checks,
    dissolved_sets,
    hal_kernel,
    hive_files,
    input_devices,
    instances,
    services,
    video,
)
from p2v.model import Fixer

FIXERS: Sequence[Fixer] = (  # in running order: what the boot meets first comes first
    boot_sectors,
    boot_reach,
    boot_files,
    hal_kernel,
    boot_ini,
    dissolved_sets,
    hive_files,
    boot_storage,
    instances,
    services,
    class_filters,
    input_devices,
    video,
    crash_control,
    disk_checks,
)
