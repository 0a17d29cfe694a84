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
from stage1_extract.datasets.faults import abbreviate, error_to_fault
from stage1_extract.datasets.label_csv import finite_number

_MATRIX = re.compile(r"intrinsic\s+matrix\s*:?(.*?)(?=camera\s+height|\Z)", re.IGNORECASE | re.DOTALL)
_HEIGHT = re.compile(r"camera\s+height\s*:?\s*(.*)", re.IGNORECASE | re.DOTALL)


def find_calibration(folder: ReadablePath, faults: list[str]) -> Camera | None:
    """Read the calibration.txt beside the clips; None if there is none, or it is malformed, which is a fault."""
    path = folder.joinpath("calibration.txt")
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
        raise _error(path, "no camera", 'a line "Intrinsic matrix:" and three rows', text)
    rows = [[finite_number(word) for word in row.split()] for row in match[1].strip().splitlines() if row.strip()]
    if [len(row) for row in rows] != [3, 3, 3] or any(math.isnan(v) for row in rows for v in row):
        raise _error(path, "no camera matrix", "three rows of three numbers", match[1])
    (fx, skew, cx), (zero, fy, cy), last = rows
    if not (fx > 0 and fy > 0 and skew == zero == 0 and last == [0, 0, 1]):
        expected = "fx 0 cx, 0 fy cy, 0 0 1 with fx and fy above 0"
        raise _error(path, "not the matrix of a pinhole camera", expected, match[1])
    height = None
    if match := _HEIGHT.search(text):
        height = finite_number(re.sub(r"\s*m\s*$", "", match[1], flags=re.IGNORECASE))
        if not height > 0:
            raise _error(path, "no camera height", "metres, such as 1.80m", match[1])
    return Camera(fx, fy, cx, cy, height)


def _error(path: ReadablePath, what: str, expected: str, text: str) -> DataError:
    return DataError(f"{path}: {what}", expected=expected, got=repr(abbreviate(" ".join(text.split()))))
