"""The road seen from above: part of a frame, resampled on a grid on the ground.

Lengths are in camera heights, so that an unknown height only scales the speed. A point of the road at X to the right
and Z ahead appears at (cx + fx·X/Z, horizon + fy/Z): to within 0.3 % for a camera that points 3° up or down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Image, Size
from features.sequences import Camera

RoadContrast = NDArray[np.float32]

CELL = 0.05  # of the grid, camera heights
SAMPLES_PER_CELL = 2  # samples per cell and direction, which are averaged
HALF_WIDTH = 1.8  # of the grid, camera heights; what lies further to the side is seldom road
LENGTH = 9.6  # of the grid at most, camera heights
LARGEST_FOOTPRINT = 0.25  # of a pixel along the road, camera heights
TILE = (32, 18)  # rows and columns of a tile; each overlaps the next one ahead by half
CONTRAST_ROWS = 31  # rows whose mean is subtracted: what is the same all along the road shows no motion


@dataclass(frozen=True)
class CameraMotion:
    """How the camera moved from an earlier frame to a later one."""

    distance: float = 0.0  # ahead, camera heights
    slip: float = 0.0  # to the right, camera heights
    yaw: float = 0.0  # to the right, rad
    nod: float = 0.0  # horizon's row in the earlier frame less its row in the later one, px
    roll: float = 0.0  # of the horizon in the earlier frame against that in the later one, clockwise, rad

    def moved(self, change: Floats) -> CameraMotion:
        """This motion with distance, slip, yaw, nod and roll changed by these amounts."""
        values = np.array([self.distance, self.slip, self.yaw, self.nod, self.roll]) + change
        return CameraMotion(*values.tolist())

    @property
    def matrix(self) -> Floats:
        """From a point (X, Z, 1) of the road, seen from the later position, to the same seen from the earlier one."""
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[c, s, self.slip], [-s, c, self.distance], [0.0, 0.0, 1.0]])


STANDING = CameraMotion()


@dataclass(frozen=True)
class RoadGrid:
    """A grid on the road in front of a camera, from the nearest visible row on. Row 0 is the nearest."""

    camera: Camera
    size: Size  # width, height of the frames, px
    horizon: float  # row, px

    @cached_property
    def near(self) -> float:
        """Where the grid begins, camera heights ahead."""
        return math.ceil(self.camera.fy / max(self.size[1] - 1 - self.horizon, 1.0) / CELL) * CELL

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns: up to where a pixel covers `LARGEST_FOOTPRINT` of the road, at least two tiles."""
        length = min(LENGTH, math.sqrt(LARGEST_FOOTPRINT * self.camera.fy) - self.near)
        step = TILE[0] // 2
        rows = max(round(length / CELL) // step, 4) * step
        return rows, round(2 * HALF_WIDTH / CELL) // TILE[1] * TILE[1]

    @cached_property
    def tiles(self) -> NDArray[np.int64]:
        """First row and first column of each tile that the frame shows: (n, 2)."""
        rows, columns = self.shape
        first = np.mgrid[0 : rows - TILE[0] + 1 : TILE[0] // 2, 0 : columns - TILE[1] + 1 : TILE[1]].reshape(2, -1).T
        return first[self.shows_tiles(first)]

    @cached_property
    def centres(self) -> Floats:
        """X and Z of the middle of each tile: (n, 2), camera heights."""
        return self._point(self.tiles + np.array(TILE) / 2)

    def _point(self, cells: Floats) -> Floats:
        """X and Z of corners of cells, given as row and column: (…, 2)."""
        return np.stack([(cells[..., 1] - self.shape[1] / 2) * CELL, self.near + cells[..., 0] * CELL], axis=-1)

    def _to_image(self, motion: CameraMotion) -> Floats:
        """From (X, Z, 1), seen from the later frame, to px of the frame that lies before it by `motion`."""
        fx, fy, cx = self.camera.fx, self.camera.fy, self.camera.cx
        level = np.array([[fx, cx, 0.0], [0.0, self.horizon + motion.nod, fy], [0.0, 1.0, 0.0]]) @ motion.matrix
        c, s, horizon = math.cos(motion.roll), math.sin(motion.roll), self.horizon
        rolled = np.array([[c, -s, cx - c * cx + s * horizon], [s, c, horizon - s * cx - c * horizon], [0, 0, 1]])
        return np.asarray(rolled @ level, np.float64)

    def shows_tiles(self, first: NDArray[np.int64], motion: CameraMotion = STANDING) -> NDArray[np.bool_]:
        """Whether the frame that lies before the grid's by `motion` shows all of each tile: (…) for (…, 2)."""
        corners = first[..., None, :] + np.array([(0, 0), (0, TILE[1]), (TILE[0], 0), TILE])
        x, z = np.moveaxis(self._point(corners), -1, 0)
        u, v, w = np.tensordot(self._to_image(motion), np.stack([x, z, np.ones_like(x)]), 1)
        width, height = self.size
        inside = (w > 0) & (u >= 0) & (u <= (width - 1) * w) & (v >= 0) & (v <= (height - 1) * w)
        return np.asarray(inside.all(axis=-1))

    def contrast(self, image: Image, motion: CameraMotion = STANDING, extra_rows: int = 0) -> RoadContrast:
        """Resample a grey frame that lies before the grid's by `motion`, and subtract the mean along the road.

        Returns:
            (rows + extra_rows, columns); what the frame does not show repeats its edge.
        """
        rows, columns = self.shape[0] + extra_rows, self.shape[1]
        c = CELL / SAMPLES_PER_CELL
        to_point = np.array([[c, 0, (c - columns * CELL) / 2], [0, c, self.near + c / 2], [0, 0, 1]])
        fine = cv2.warpPerspective(
            image, self._to_image(motion) @ to_point, (columns * SAMPLES_PER_CELL, rows * SAMPLES_PER_CELL),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        view = cv2.resize(fine, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
        view -= cv2.blur(view, (1, CONTRAST_ROWS), borderType=cv2.BORDER_REFLECT)
        return np.asarray(view)
