"""`calibration.txt`: the camera's matrix and its height above the road, as the competition and TuSimple write it.

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
from stage1_extract.datasets.image_sequence import as_error_line

CALIBRATION_FILE = "calibration.txt"
_MATRIX = re.compile(r"intrinsic\s+matrix\s*:?(.*?)(?=camera\s+height|\Z)", re.IGNORECASE | re.DOTALL)
_HEIGHT = re.compile(r"camera\s+height\s*:?\s*(.*)", re.IGNORECASE | re.DOTALL)


def find_calibration(clips: ReadablePath, faults: list[str]) -> Camera | None:
    """The camera that a folder's calibration.txt describes; None where there is none.

    Args:
        clips: the folder that the clips lie in.
        faults: one line is appended where the file is malformed.
    """
    file = clips.joinpath(CALIBRATION_FILE)
    try:
        return read_camera(file) if file.is_file() else None
    except DataError as e:
        faults.append(as_error_line(e))
        return None


def read_camera(file: ReadablePath) -> Camera:
    """The camera that a file describes.

    Raises:
        DataError: it cannot be read, or is malformed.
    """
    text = read_file(file).decode("utf-8-sig", errors="replace")
    found = _MATRIX.search(text)
    if found is None:
        raise DataError(f"{file}: no camera", expected='a line "Intrinsic matrix:" and three rows', got=_short(text))
    rows = [[_number(word) for word in row.split()] for row in found[1].strip().splitlines() if row.strip()]
    if [len(row) for row in rows] != [3, 3, 3] or not all(math.isfinite(v) for row in rows for v in row):
        raise DataError(f"{file}: no camera matrix", expected="three rows of three numbers", got=_short(found[1]))
    (fx, skew, cx), (zero, fy, cy), last = rows
    if not (fx > 0 and fy > 0 and skew == zero == 0 and last == [0, 0, 1]):
        raise DataError(
            f"{file}: not the matrix of a pinhole camera",
            expected="fx 0 cx, 0 fy cy, 0 0 1 with fx and fy above 0",
            got=_short(found[1]),
        )
    return Camera(fx, fy, cx, cy, _height(file, text))


def _height(file: ReadablePath, text: str) -> float | None:
    found = _HEIGHT.search(text)
    if found is None:
        return None
    value = _number(re.sub(r"\s*m\s*$", "", found[1], flags=re.IGNORECASE))
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{file}: no camera height", expected="metres, as 1.80m", got=_short(found[1]))
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _short(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 60 else words[:57] + "…")
