"""How far the camera turned between two frames, from the strip round the horizon, where little else moves."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from features._common.types import Image
from stage1_extract.ground_flow.road_view import CameraMotion, RoadGrid
from stage1_extract.ground_flow.tile_matching import deviation, subsample_peak

ABOVE, BELOW = (
    0.05,
    0.05,
)  # edges of the strip from the horizon, shares of the frame's height; what they show grows alike
STRIP_WIDTH = 640  # of the reduced strip at least, px
STRIP_PARTS = 10  # side by side
NOD_RANGE = 4  # px of the reduced strip
FASTEST_TURN = 0.8  # rad/s
STRIP_CONTRAST, STRIP_CORRELATION = 3.0, 0.5


def find_rotation(grid: RoadGrid, earlier: Image, later: Image, interval: float) -> CameraMotion:
    """Yaw and nod between two grey frames `interval` s apart: the medians over parts of the strip, else zero."""
    width, height = grid.size
    reduction = max(1, width // STRIP_WIDTH)
    top = int(np.clip(grid.horizon - ABOVE * height, 0, height - 2))
    bottom = int(np.clip(grid.horizon + BELOW * height, top + 1, height))
    size = width // reduction, max(1, (bottom - top) // reduction)
    before, after = (cv2.resize(image[top:bottom], size, interpolation=cv2.INTER_AREA) for image in (earlier, later))
    reach = min(int(FASTEST_TURN * interval * grid.camera.fx / reduction) + 2, size[0] // 4)
    edges = np.linspace(reach, size[0] - reach, STRIP_PARTS + 1).astype(int)
    shifts = []
    for left, right in pairwise(edges):
        part = after[NOD_RANGE:-NOD_RANGE, left:right]
        if not part.size or deviation(part) < STRIP_CONTRAST:
            continue
        scores = cv2.matchTemplate(before[:, left - reach : right + reach], part, cv2.TM_CCOEFF_NORMED)
        _, best, _, (x, y) = cv2.minMaxLoc(scores)
        if best >= STRIP_CORRELATION:
            shifts.append((subsample_peak(scores[y], x) - reach, subsample_peak(scores[:, x], y) - NOD_RANGE))
    if len(shifts) < 2:
        return CameraMotion()
    right_shift, down_shift = np.median(shifts, axis=0) * reduction
    return CameraMotion(yaw=float(right_shift) / grid.camera.fx, nod=float(down_shift))
