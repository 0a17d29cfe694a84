"""The ground: textures in metres, fixed in the world, which a homography warps into the picture. Each band of it
reaches twice as far as the one before; its cells are about as large as a pixel there, so that nothing flickers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from stage1_extract.sample.scene import FPS, FRAMES, NEAREST_BAND, TUSIMPLE_CAMERA, Scene

Float32s = NDArray[np.float32]
Coordinates = NDArray[np.floating[Any]]

NEAREST, BANDS = 3.2, 6  # m from the standard set's camera to the first band, and number of bands
MAX_LATERAL_SLOPE = 0.96  # greatest |y| / x in the standard set's pictures
EXPOSURE_TIME = 0.006  # s; what moves during it is blurred
OVERSAMPLING = 2  # cells drawn per cell kept along x, beyond the first band
TILE_SIZE = 256  # cells after which the noise repeats
TILES = 7, 8  # along x and y; as many as the largest band needs of the finest noise
NOISE_OCTAVES = (  # cell size along x and y in m, strength on asphalt, strength beside it
    (0.02, 0.015, 0.045, 0.10),
    (0.09, 0.06, 0.035, 0.10),
    (0.45, 0.25, 0.030, 0.10),
    (2.5, 0.7, 0.040, 0.11),
    (9.0, 3.0, 0.045, 0.12),
)


@dataclass(frozen=True)
class GroundBand:
    """A texture of the ground between two distances."""

    near: float  # m from the camera
    far: float
    cell: tuple[float, float]  # size along x and y, m
    start: float  # x of the texture's first cells on the road, m
    texture: Image  # (cells along x, cells along y, 3); y is 0 in the middle


@cache
def noise_tile() -> Float32s:
    """Repeated white noise of mean 0 and deviation 1, the same in every process; OpenCV's border wrapping is slow."""
    return np.tile(np.random.default_rng(1).standard_normal((TILE_SIZE, TILE_SIZE)).astype(np.float32), TILES)


@dataclass(frozen=True)
class _Cells:
    """The cells of a band's texture."""

    scene: Scene
    x: Coordinates  # their near edges, m
    y: Coordinates  # their left edges, m
    dx: float  # their size along x and y, m
    dy: float

    def brightness(self, asphalt: Float32s, offsets: NDArray[np.float64]) -> Float32s:
        """Brightness of each cell, about 1: noise of several sizes, and darker wheel tracks."""
        x, y, dx, dy = self.x, self.y, self.dx, self.dy
        total = np.zeros((len(x), len(y)), np.float32)
        x0, y0 = (x[0] + dx / 2, y[0] + dy / 2) if self.scene.centred_cells else (x[0], y[0])
        for (cx, cy, hard, soft), (ox, oy) in zip(NOISE_OCTAVES, offsets, strict=True):
            if cx < 0.7 * dx or cy < 0.7 * dy:
                continue  # finer than this band's cells
            # without whole tiles, so that the section begins in the first one
            shift = (y0 / cy + oy) % TILE_SIZE, (x0 / cx + ox) % TILE_SIZE
            m = np.array([[dy / cy, 0, shift[0]], [0, dx / cx, shift[1]]])
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            noise = cv2.warpAffine(noise_tile(), m, (len(y), len(x)), flags=flags, borderMode=cv2.BORDER_REPLICATE)
            noise *= hard * asphalt + soft * (1 - asphalt)
            total += noise
        tracks = np.ones(len(y), np.float32)
        for lane in self.scene.road.lanes:
            for side in (-0.85, 0.85):
                tracks -= 0.07 * np.exp(-(((y - lane - side) / 0.28) ** 2)).astype(np.float32)
        total += 1
        total *= tracks
        return total

    def crack_brightness(self, cracks: list[NDArray[np.float64]]) -> Float32s:
        """Brightness of each cell, lower under the cracks, which are 15 mm wide."""
        mask = np.zeros((len(self.x), len(self.y)), np.uint8)
        cells = [((c - (self.x[0], 0)) / (self.dx, self.dy) + (0, len(self.y) / 2))[:, ::-1] for c in cracks]
        lines = [np.round((c - 0.5 * self.scene.centred_cells) * 16).astype(np.int32) for c in cells]
        cv2.polylines(mask, lines, False, 255, max(1, round(0.015 / self.dy)), cv2.LINE_AA, shift=4)
        depth = 0.35 * min(1.0, 0.015 / self.dy)
        return np.asarray(cv2.LUT(mask, (1 - depth * np.arange(256) / 255).astype(np.float32)), np.float32)

    def draw_lane_lines(self, texture: Image, light: Float32s) -> None:
        road = self.scene.road
        solid = np.ones(len(self.x), np.float32)
        dashed = _dash_coverage(self.x, self.dx, road.dash, road.period, road.phase)
        for i, line in enumerate(road.lines):
            outer = i in (0, len(road.lines) - 1)
            across = _coverage(self.y, self.dy, line - 0.075, line + 0.075)
            (columns,) = np.nonzero(across)
            if not len(columns):
                continue
            part = slice(columns[0], columns[-1] + 1)
            cover = 0.92 * (solid if outer else dashed)[:, None, None] * across[None, part, None]
            colour = self.scene.style.left_line if i == 0 else (215.0, 215.0, 215.0)
            paint = np.array(colour, np.float32) * light[:, part, None]
            texture[:, part] = np.clip(texture[:, part] * (1 - cover) + paint * cover, 0, 255)


def make_ground(scene: Scene) -> list[GroundBand]:
    """Make the ground of a clip: its bands from near to far."""
    rng = np.random.default_rng([scene.style.seed, 0])
    travel = scene.speed * (FRAMES - 1) / FPS
    edges, slope, widening = _band_edges(scene), _lateral_slope(scene), _widening(scene)
    offsets = rng.uniform(0, TILE_SIZE, (len(NOISE_OCTAVES), 2))
    patches = _patches(rng, scene, travel + edges[-1])
    cracks = _cracks(rng, scene, travel + 30.0)
    bands = []
    camera = scene.camera
    for near, far in pairwise(edges):
        over = 1 if near == edges[0] else OVERSAMPLING
        dx, dy = 2.0 * near**2 / camera.scale / over, 1.4 * near / camera.fx
        start, end = near - widening * near, far + widening * far
        rows = over * int(np.ceil((travel + end - start) / dx / over) + 1)
        columns = 2 * int(np.ceil(slope * far / dy))
        cells = _Cells(scene, start + np.arange(rows) * dx, (np.arange(columns) - columns / 2) * dy, dx, dy)
        asphalt = _coverage(cells.y, dy, scene.road.left, scene.road.right)
        light = cells.brightness(asphalt, offsets)
        for x0, y0, length, width, tone in patches:
            i, j = np.searchsorted(cells.x, (x0, x0 + length)), np.searchsorted(cells.y, (y0, y0 + width))
            light[i[0] : i[1], j[0] : j[1]] *= tone
        if near < 20:
            light *= cells.crack_brightness(cracks)
        hard, soft = (np.array(c, np.float32) for c in (scene.style.asphalt, scene.style.verge))
        colour = asphalt[:, None] * hard + (1 - asphalt[:, None]) * soft
        texture = cv2.merge([cv2.convertScaleAbs(light * c) for c in colour.T])
        cells.draw_lane_lines(texture, light)
        blur = round(scene.speed * EXPOSURE_TIME / dx)
        if scene.centred_cells:
            blur += 1 - blur % 2  # an even number of cells has no middle
        if blur > 1:
            texture = cv2.blur(texture, (1, blur))
        if over > 1:
            texture = cv2.resize(texture, (columns, rows // over), interpolation=cv2.INTER_AREA)
        bands.append(GroundBand(near, far, (dx * over, dy), start, texture))
    return bands


def _band_edges(scene: Scene) -> tuple[float, ...]:
    """Distances from the camera between the bands, m."""
    camera = scene.camera
    nearest = NEAREST
    if camera != TUSIMPLE_CAMERA:
        nearest = NEAREST_BAND * camera.scale / (camera.height - min(scene.horizons))
    return tuple(nearest * 2.0**k for k in range(BANDS + 1))


def _lateral_slope(scene: Scene) -> float:
    """The greatest |y| / x in the pictures, x and y on the road."""
    camera = scene.camera
    if camera == TUSIMPLE_CAMERA and not scene.yaw_rate:
        return MAX_LATERAL_SLOPE
    side = max(camera.cx, camera.width - camera.cx) / camera.fx
    return float(np.tan(np.arctan(side) + abs(scene.pose(0)[2]))) * 1.05


def _widening(scene: Scene) -> float:
    """How much further a band reaches along the road than along the camera's axis, as a share of the distance."""
    camera = scene.camera
    side = max(camera.cx, camera.width - camera.cx) / camera.fx
    return float(side * np.sin(abs(scene.pose(0)[2]))) * 1.1


def _coverage(edges: Coordinates, cell: float, start: float, end: float) -> Float32s:
    """Share of each cell that lies between start and end; `edges` are the cells' lower edges."""
    share = np.minimum(edges + cell, end) - np.maximum(edges, start)
    return np.asarray(np.clip(share / cell, 0, 1), np.float32)


def _dash_coverage(edges: Coordinates, cell: float, dash: float, period: float, phase: float) -> Float32s:
    """Exact share of each cell that dashes cover, from differences of the cumulative painted length."""
    x = np.append(edges, edges[-1] + cell) - phase
    painted = np.floor(x / period) * dash + np.minimum(np.mod(x, period), dash)
    return np.asarray(np.diff(painted) / cell, np.float32)


def _patches(rng: np.random.Generator, scene: Scene, length: float) -> list[tuple[float, float, float, float, float]]:
    """Repaired patches of asphalt: x, y, length, width in m, and relative brightness."""
    road = scene.road
    patches = []
    x = 0.0
    while (x := x + rng.exponential(18)) < length:
        lane = road.lanes[rng.integers(len(road.lanes))]
        tone = rng.uniform(0.82, 0.94) if rng.random() < 0.7 else rng.uniform(1.04, 1.12)
        width = rng.uniform(0.6, 3.0)
        low, high = lane - 1.6, lane + 1.6 - width
        patches.append((x, rng.uniform(low, high), rng.uniform(0.5, 9), width, tone))
    return patches


def _cracks(rng: np.random.Generator, scene: Scene, length: float) -> list[NDArray[np.float64]]:
    """Random walks over the asphalt, each (points, 2) x, y in m."""
    cracks = []
    x = 0.0
    while (x := x + rng.exponential(4)) < length:
        across = rng.random() < 0.5
        step = rng.normal((0, 0.22) if across else (0.25, 0), 0.08, (int(rng.integers(6, 22)), 2))
        start = x, rng.uniform(scene.road.left, scene.road.right)
        path = start + np.cumsum(step, axis=0)
        path[:, 1] = np.clip(path[:, 1], scene.road.left, scene.road.right)
        cracks.append(path)
    return cracks


def draw_ground(canvas: Image, bands: Sequence[GroundBand], scene: Scene, frame: int) -> None:
    """Draw the ground of a frame, from the bottom of the picture up to the row below the horizon."""
    camera, horizon = scene.camera, scene.horizons[frame]
    px, py, heading = scene.pose(frame)
    scale, fx, cx = camera.scale, camera.fx, camera.cx
    bottom = camera.height
    for band in bands:
        last = band is bands[-1]
        top = max(0, int(np.ceil(horizon + (1.0 if last else scale / band.far))))
        if top >= bottom:
            continue
        dx, dy = band.cell
        middle = band.texture.shape[1] / 2
        start = px - band.start
        # row v and column u show x = scale/(v−horizon), y = (u−cx)·above_road·fy/fx/(v−horizon);
        # the 0.5 leads from a cell's edge to its centre
        to_cell = np.array(
            [
                [scale / fx / dy, middle - 0.5, -scale * cx / fx / dy - (middle - 0.5) * horizon],
                [0.0, start / dx - 0.5, scale / dx - (start / dx - 0.5) * horizon],
                [0.0, 1.0, -horizon],
            ]
        )
        if scene.yaw_rate:
            to_cell = _turned(band, px, py, heading) @ np.array(
                [[0.0, 0.0, scale], [scale / fx, 0.0, -scale * cx / fx], [0.0, 1.0, -horizon]]
            )
        # two rows per row kept, because footprints are longest along x
        half = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, top - 0.25], [0.0, 0.0, 1.0]])
        twice = cv2.warpPerspective(
            band.texture, to_cell @ half, (camera.width, 2 * (bottom - top)),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        upper, lower = twice.reshape(bottom - top, 2, -1).transpose(1, 0, 2)
        cv2.addWeighted(upper, 0.5, lower, 0.5, 0, dst=canvas[top:bottom].reshape(bottom - top, -1))
        bottom = top


def _turned(band: GroundBand, px: float, py: float, heading: float) -> NDArray[np.float64]:
    """From a point (x, y, 1) that the camera sees to the column and row of its cell, for a camera that has turned."""
    (dx, dy), middle = band.cell, band.texture.shape[1] / 2
    c, s = np.cos(heading), np.sin(heading)
    to_road = np.array([[c, -s, px], [s, c, py], [0.0, 0.0, 1.0]])
    to_cell = np.array([[0.0, 1 / dy, middle - 0.5], [1 / dx, 0.0, -band.start / dx - 0.5], [0.0, 0.0, 1.0]])
    return np.asarray(to_cell @ to_road, np.float64)
