"""Output formats, one file each. A new one gets its line in FORMATS."""

from __future__ import annotations

from collections.abc import Mapping

from p2v.formats import qcow2, qcow2_v2, raw
from p2v.model import ImageFormat

FORMATS: Mapping[str, ImageFormat] = {
    qcow2.NAME: qcow2,
    qcow2_v2.NAME: qcow2_v2,
    raw.NAME: raw,  # last: any bytes may be a raw disk, so probe() asks the others first
}
