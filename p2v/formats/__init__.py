"""Output formats, one file each. A new one gets its line in FORMATS."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from p2v.formats import (
    pipe,
    qcow2,
    qcow2_deflate,
    qcow2_v2,
    qcow2_zstd,
    raw,
    vdi,
    vdi_fixed,
    vhd,
    vhd_fixed,
    vhdx,
    vhdx_fixed,
    vmdk_esx,
    vmdk_flat,
    vmdk_sparse,
    vmdk_split,
    vmdk_stream,
)
from p2v.model import ImageFormat, ImageWriter

FORMATS: Mapping[str, ImageFormat] = {
    qcow2.NAME: qcow2,
    qcow2_v2.NAME: qcow2_v2,
    qcow2_deflate.NAME: qcow2_deflate,
    qcow2_zstd.NAME: qcow2_zstd,
    vmdk_sparse.NAME: vmdk_sparse,
    vmdk_stream.NAME: vmdk_stream,
    vmdk_flat.NAME: vmdk_flat,
    vmdk_esx.NAME: vmdk_esx,
    vmdk_split.NAME: vmdk_split,
    vhd.NAME: vhd,
    vhd_fixed.NAME: vhd_fixed,
    vhdx.NAME: vhdx,
    vhdx_fixed.NAME: vhdx_fixed,
    vdi.NAME: vdi,
    vdi_fixed.NAME: vdi_fixed,
    raw.NAME: raw,  # last: any bytes may be a raw disk, so probe() asks the others first
}

QEMU_DRIVERS = {".raw": "raw", ".qcow2": "qcow2", ".vmdk": "vmdk", ".vhd": "vpc", ".vhdx": "vhdx", ".vdi": "vdi"}
"""The suffix of a format → what qemu calls it."""

STREAMS: Mapping[str, Callable[[pipe.Pipe, int], ImageWriter]] = {
    raw.NAME: pipe.raw,
    vmdk_stream.NAME: vmdk_stream.stream,
    vhd_fixed.NAME: vhd_fixed.stream,
    vhdx_fixed.NAME: vhdx_fixed.stream,
    vdi_fixed.NAME: vdi_fixed.stream,
}
"""What can be sent through a pipe: the name of a format → its writer for a disk of so many bytes.

The others go back to their header or tables when all is known, or are several files.
"""
