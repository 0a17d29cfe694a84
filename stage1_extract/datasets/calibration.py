"""`calibration.txt`: the camera's intrinsic matrix and its height above the road, in the competition's format:

Intrinsic matrix:
714.1526    0.      675.5754
   0.      710.3725  376.2563
   0.        0.        1.

Camera Height:

1.80m
"""

from __future__ import annotations

import math
import re

from features.errors import DataError
from features.sequences import Camera
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.faults import error_to_fault

CALIBRATION_FILE = "calibration.txt"
_MATRIX = re.compile(r"intrinsic\s+matrix\s*:?(.*?)(?=camera\s+height|\Z)", re.IGNORECASE | re.DOTALL)
_HEIGHT = re.compile(r"camera\s+height\s*:?\s*(.*)", re.IGNORECASE | re.DOTALL)


def find_calibration(folder: ReadablePath, faults: list[str]) -> Camera | None:
    """Read the calibration.txt in a folder; None if there is none.

    Args:
        folder: the folder that holds the clips.
        faults: one line is appended if the file is malformed.
    """
    path = folder.joinpath(CALIBRATION_FILE)
    try:
        return read_camera(path) if path.is_file() else None
    except DataError as e:
        faults.append(error_to_fault(e))
        return None


def read_camera(path: ReadablePath) -> Camera:
    """Read the camera that a calibration file describes.

    Raises:
        DataError: the file cannot be read, or is malformed.
    """
    text = read_file(path).decode("utf-8-sig", errors="replace")
    match = _MATRIX.search(text)
    if match is None:
        expected = 'a line "Intrinsic matrix:" and three rows'
        raise DataError(f"{path}: no camera", expected=expected, got=_abbreviated(text))
    rows = [[_number(word) for word in row.split()] for row in match[1].strip().splitlines() if row.strip()]
    if [len(row) for row in rows] != [3, 3, 3] or not all(math.isfinite(v) for row in rows for v in row):
        raise DataError(f"{path}: no camera matrix", expected="three rows of three numbers", got=_abbreviated(match[1]))
    (fx, skew, cx), (zero, fy, cy), last = rows
    if not (fx > 0 and fy > 0 and skew == zero == 0 and last == [0, 0, 1]):
        raise DataError(
            f"{path}: not the matrix of a pinhole camera",
            expected="fx 0 cx, 0 fy cy, 0 0 1 with fx and fy above 0",
            got=_abbreviated(match[1]),
        )
    return Camera(fx, fy, cx, cy, _height(path, text))


def _height(path: ReadablePath, text: str) -> float | None:
    match = _HEIGHT.search(text)
    if match is None:
        return None
    value = _number(re.sub(r"\s*m\s*$", "", match[1], flags=re.IGNORECASE))
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{path}: no camera height", expected="metres, such as 1.80m", got=_abbreviated(match[1]))
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _abbreviated(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 60 else words[:57] + "…")
