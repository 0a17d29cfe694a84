"""`calibration.txt` in the competition's format: below `Intrinsic matrix:` three rows of three numbers, and optionally
below `Camera Height:` the camera's height above the road, such as `1.80m`. The wide sample set adds `Horizon:`, the row
at which the road would end.
"""

from __future__ import annotations

import math
import re
import textwrap

from features.config import DataConfig
from features.errors import DataError
from features.limits import GREATEST_HEIGHT, LARGEST_COORDINATE, TEXT_BYTES
from features.sequences import Camera
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.clip import error_to_fault
from stage1_extract.datasets.label_csv import finite_number

_HEADING = re.compile(r"(intrinsic\s+matrix|camera\s+height|horizon)\s*:?", re.IGNORECASE)


def find_calibration(folder: ReadablePath, data: DataConfig, faults: list[str]) -> Camera | None:
    """Read the calibration.txt beside the clips; None if absent, replaced by `data`, or, as a fault, malformed."""
    path = folder.joinpath("calibration.txt")
    try:
        return read_camera(path) if path.is_file() and not data.calibration else None
    except DataError as e:
        faults.append(error_to_fault(e))
        return None


def read_camera(path: ReadablePath) -> Camera:
    """Read the camera that a calibration file describes; a DataError if it cannot be read, or is malformed."""
    text = read_file(path, TEXT_BYTES).decode("utf-8-sig", errors="replace")
    shown = repr(textwrap.shorten(text, 60, placeholder="…"))
    _, *parts = _HEADING.split(text)
    sections = {heading.split()[0].lower(): body for heading, body in zip(parts[::2], parts[1::2], strict=True)}
    lines = sections.get("intrinsic", "").splitlines()
    rows = [[finite_number(word) for word in line.split()] for line in lines if line.strip()]
    if [len(row) for row in rows] != [3, 3, 3] or any(math.isnan(v) for row in rows for v in row):
        expected = 'a line "Intrinsic matrix:" and three rows of three numbers'
        raise DataError(f"{path}: no camera matrix", expected=expected, got=shown)
    (fx, skew, cx), (zero, fy, cy), last = rows
    plausible = max(abs(v) for v in (fx, fy, cx, cy)) <= LARGEST_COORDINATE
    if not (fx > 0 and fy > 0 and plausible and skew == zero == 0 and last == [0, 0, 1]):
        expected = "fx 0 cx, 0 fy cy, 0 0 1 with fx and fy above 0"
        raise DataError(f"{path}: not the matrix of a pinhole camera", expected=expected, got=shown)
    height_text = sections.get("camera")
    height = None if height_text is None else finite_number(height_text.rstrip("mM \r\n"))
    if height is not None and not 0 < height <= GREATEST_HEIGHT:
        raise DataError(f"{path}: no camera height", expected="metres, such as 1.80m", got=shown)
    horizon_text = sections.get("horizon")
    horizon = None if horizon_text is None else finite_number(horizon_text.strip())
    if horizon is not None and not abs(horizon) <= LARGEST_COORDINATE:
        raise DataError(f"{path}: no row of the horizon", expected="a row in px, such as 340.5", got=shown)
    return Camera(fx, fy, cx, cy, height, horizon)
