"""Tiles of the road's view in one frame, scores again in an earlier frame by normalised correlation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from stage1_extract.ground_flow.road_view import CELL, TILE, CameraMotion, RoadContrast, RoadGrid

BACKWARDS = 6  # cells searched behind
SIDEWAYS = 3  # cells searched to each side
MARGIN = 3  # cells searched around the expected place for a displacement
LEAST_CONTRAST = 1.0  # standard deviation of a tile, grey levels
LEAST_CORRELATION = 0.35  # of a displacement


@dataclass(frozen=True)
class Displacements:
    """Where tiles lie in the earlier frame, beside where the motion so far puts them."""

    centres: Floats  # (n, 2) X and Z of the tiles, camera heights
    right: Floats  # (n,) camera heights
    forward: Floats  # (n,) camera heights
    correlation: Floats  # (n,)


def distance_curves(grid: RoadGrid, later: RoadContrast, earlier: RoadContrast, motion: CameraMotion) -> Floats:
    """The correlation of each tile for each distance driven, the best over small displacements to the side.

    Args:
        later: the later frame's view, `grid.contrast(image)`.
        earlier: the earlier frame's view, `grid.contrast(image, motion, extra_rows)`.
        motion: without a distance.

    Returns:
        (tiles with contrast, distances) for distances from −`BACKWARDS` to `extra_rows` cells.
    """
    extra = len(earlier) - len(later)
    shifts = np.arange(-BACKWARDS, extra + 1)
    moved = grid.tiles[:, None, :] + np.stack([shifts, np.zeros_like(shifts)], axis=-1)
    visible = grid.shows_tiles(moved, motion) & (moved[..., 0] >= 0)
    curves = []
    for (row, column), shown in zip(grid.tiles, visible, strict=True):
        tile = later[row : row + TILE[0], column : column + TILE[1]]
        if shown.any() and deviation(tile) >= LEAST_CONTRAST:
            first = max(0, row - BACKWARDS)
            part = earlier[first : row + extra + TILE[0], max(0, column - SIDEWAYS) : column + TILE[1] + SIDEWAYS]
            scores = cv2.matchTemplate(part, tile, cv2.TM_CCOEFF_NORMED).max(axis=1)
            curve = np.zeros(len(shifts))
            curve[-len(scores) :] = scores
            curves.append(np.where(shown, curve, 0.0))
    return np.array(curves).reshape(len(curves), len(shifts))


def tile_displacements(
    grid: RoadGrid, later: RoadContrast, earlier: RoadContrast, motion: CameraMotion
) -> Displacements:
    """Find tiles of the later view in the earlier one, `grid.contrast(image, motion)`, to a fraction of a cell."""
    shown = grid.shows_tiles(grid.tiles, motion)
    rows = []
    for (row, column), (x, z) in zip(grid.tiles[shown], grid.centres[shown], strict=True):
        tile = later[row + MARGIN : row + TILE[0] - MARGIN, column + MARGIN : column + TILE[1] - MARGIN]
        if deviation(tile) < LEAST_CONTRAST:
            continue
        scores = cv2.matchTemplate(earlier[row : row + TILE[0], column : column + TILE[1]], tile, cv2.TM_CCOEFF_NORMED)
        _, best, _, (right, forward) = cv2.minMaxLoc(scores)
        if best >= LEAST_CORRELATION and 0 < right < 2 * MARGIN and 0 < forward < 2 * MARGIN:
            offset = subsample_peak(scores[forward], right), subsample_peak(scores[:, right], forward)
            rows.append((x, z, (offset[0] - MARGIN) * CELL, (offset[1] - MARGIN) * CELL, best))
    table = np.array(rows).reshape(len(rows), 5)
    return Displacements(table[:, :2], table[:, 2], table[:, 3], table[:, 4])


def deviation(part: NDArray[np.generic]) -> float:
    """Standard deviation of a part of an image; NumPy takes six times as long."""
    return float(cv2.meanStdDev(part)[1][0, 0])


def subsample_peak(values: NDArray[np.float32], index: int) -> float:
    """Where the parabola through a maximum and its two neighbours has its top; the index itself at either end."""
    if not 0 < index < len(values) - 1:
        return float(index)
    left, middle, right = map(float, values[index - 1 : index + 2])
    bend = left - 2 * middle + right
    return index + 0.5 * (left - right) / bend if bend < 0 else float(index)
