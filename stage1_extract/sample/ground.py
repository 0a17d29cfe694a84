"""The ground: textures in metres that stay where they are in the world, warped into the picture by the homography.

The ground ahead is cut into bands, each twice as far as the one before, with a texture of its own whose cells are
about as large as a pixel's footprint there. So near cells are fine, far ones coarse, and nothing flickers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from stage1_extract.sample.scene import CAMERA_HEIGHT, CX, FPS, FRAMES, FX, FY, HEIGHT, WIDTH, Scene

Float32s = NDArray[np.float32]
Coordinates = NDArray[np.floating[Any]]

BAND_EDGES = tuple(3.2 * 2.0**k for k in range(7))  # m: where the bands begin and end
MAX_LATERAL_SLOPE = 0.96  # |y| / x at the picture's sides is at most this
EXPOSURE_TIME = 0.006  # s: what passes in it is blurred
OVERSAMPLING = 2  # cells drawn for each cell kept along x, beyond the first band
TILE_SIZE = 256  # cells after which the noise repeats
TILES = 7, 8  # along x and y: as many as the largest band of the finest noise needs
NOISE_OCTAVES = (  # cell along x and y in m, and its strength on asphalt and beside it
    (0.02, 0.015, 0.045, 0.10),
    (0.09, 0.06, 0.035, 0.10),
    (0.45, 0.25, 0.030, 0.10),
    (2.5, 0.7, 0.040, 0.11),
    (9.0, 3.0, 0.045, 0.12),
)


@dataclass(frozen=True)
class GroundBand:
    """A texture of the ground between two distances.

    Attributes:
        near, far: m from the camera.
        cell: its cells' size along x and y, m.
        texture: uint8 of shape (cells along x, cells along y, 3); x runs from `near` at the first frame onwards,
            y is 0 in the middle.
    """

    near: float
    far: float
    cell: tuple[float, float]
    texture: Image


@cache
def noise_tile() -> Float32s:
    """White noise of mean 0 and deviation 1, the same in every process, repeated: cv2's own wrapping is slow."""
    return np.tile(np.random.default_rng(1).standard_normal((TILE_SIZE, TILE_SIZE)).astype(np.float32), TILES)


def make_ground(world: Scene) -> tuple[GroundBand, ...]:
    """The bands of a clip's ground, from near to far."""
    rng = np.random.default_rng([world.look.seed, 0])
    travel = world.speed * (FRAMES - 1) / FPS
    offsets = rng.uniform(0, TILE_SIZE, (len(NOISE_OCTAVES), 2))
    patches = _patches(rng, world, travel + BAND_EDGES[-1])
    cracks = _cracks(rng, world, travel + 30.0)
    return tuple(_band(world, near, far, travel, offsets, patches, cracks) for near, far in pairwise(BAND_EDGES))


def _band(
    world: Scene, near: float, far: float, travel: float, offsets: NDArray[np.float64],
    patches: list[tuple[float, float, float, float, float]], cracks: list[NDArray[np.float64]],
) -> GroundBand:  # fmt: skip
    over = 1 if near == BAND_EDGES[0] else OVERSAMPLING
    dx, dy = 2.0 * near**2 / (FY * CAMERA_HEIGHT) / over, 1.4 * near / FX
    shape = over * int(np.ceil((travel + far - near) / dx / over) + 1), 2 * int(np.ceil(MAX_LATERAL_SLOPE * far / dy))
    x = near + np.arange(shape[0]) * dx  # of the cells' near and left edges
    y = (np.arange(shape[1]) - shape[1] / 2) * dy
    road = world.road
    asphalt = _coverage(y, dy, road.left, road.right)
    light = _brightness(world, x, y, dx, dy, asphalt, offsets)
    for x0, y0, length, width, tone in patches:
        i, j = np.searchsorted(x, (x0, x0 + length)), np.searchsorted(y, (y0, y0 + width))
        light[i[0] : i[1], j[0] : j[1]] *= tone
    if near < 20:
        light *= _crack_brightness(shape, cracks, near, dx, dy)
    hard, soft = (np.array(c, np.float32) for c in (world.look.asphalt, world.look.verge))
    colour = asphalt[:, None] * hard + (1 - asphalt[:, None]) * soft
    texture = cv2.merge([cv2.convertScaleAbs(light * c) for c in colour.T])
    _draw_lane_lines(texture, light, world, x, y, dx, dy)
    blur = round(world.speed * EXPOSURE_TIME / dx)
    if blur > 1:
        texture = cv2.blur(texture, (1, blur))
    if over > 1:
        texture = cv2.resize(texture, (shape[1], shape[0] // over), interpolation=cv2.INTER_AREA)
    return GroundBand(near, far, (dx * over, dy), texture)


def _coverage(places: Coordinates, cell: float, start: float, end: float) -> Float32s:
    """Share of each cell (its lower edge in `places`) that lies between start and end."""
    share = np.minimum(places + cell, end) - np.maximum(places, start)
    return np.asarray(np.clip(share / cell, 0, 1), np.float32)


def _dash_coverage(places: Coordinates, cell: float, dash: float, period: float, phase: float) -> Float32s:
    """Share of each cell covered by dashes, exactly: differences of the painted length so far."""
    x = np.append(places, places[-1] + cell) - phase
    painted = np.floor(x / period) * dash + np.minimum(np.mod(x, period), dash)
    return np.asarray(np.diff(painted) / cell, np.float32)


def _brightness(
    world: Scene, x: Coordinates, y: Coordinates, dx: float, dy: float, asphalt: Float32s,
    offsets: NDArray[np.float64],
) -> Float32s:  # fmt: skip
    """Brightness of each cell about 1: noise of several sizes, and the darker tracks of the wheels."""
    size = len(y), len(x)
    total = np.zeros((len(x), len(y)), np.float32)
    for (cx, cy, hard, soft), (ox, oy) in zip(NOISE_OCTAVES, offsets, strict=True):
        if cx < 0.7 * dx or cy < 0.7 * dy:
            continue  # finer than this band can show
        # whole tiles off, so that the part begins in the first one
        shift = (y[0] / cy + oy) % TILE_SIZE, (x[0] / cx + ox) % TILE_SIZE
        m = np.array([[dy / cy, 0, shift[0]], [0, dx / cx, shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        noise = cv2.warpAffine(noise_tile(), m, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        noise *= hard * asphalt + soft * (1 - asphalt)
        total += noise
    tracks = np.ones(len(y), np.float32)
    for lane in world.road.lanes:
        for side in (-0.85, 0.85):
            tracks -= 0.07 * np.exp(-(((y - lane - side) / 0.28) ** 2)).astype(np.float32)
    total += 1
    total *= tracks
    return total


def _patches(rng: np.random.Generator, world: Scene, length: float) -> list[tuple[float, float, float, float, float]]:
    """Mended places: x, y, length, width in m, and tone."""
    road = world.road
    patches = []
    x = 0.0
    while (x := x + rng.exponential(18)) < length:
        lane = road.lanes[rng.integers(len(road.lanes))]
        tone = rng.uniform(0.82, 0.94) if rng.random() < 0.7 else rng.uniform(1.04, 1.12)
        width = rng.uniform(0.6, 3.0)
        low, high = lane - 1.6, lane + 1.6 - width
        patches.append((x, rng.uniform(low, high), rng.uniform(0.5, 9), width, tone))
    return patches


def _cracks(rng: np.random.Generator, world: Scene, length: float) -> list[NDArray[np.float64]]:
    """Random walks over the asphalt: points (x, y) in m."""
    cracks = []
    x = 0.0
    while (x := x + rng.exponential(4)) < length:
        across = rng.random() < 0.5
        step = rng.normal((0, 0.22) if across else (0.25, 0), 0.08, (int(rng.integers(6, 22)), 2))
        start = x, rng.uniform(world.road.left, world.road.right)
        path = start + np.cumsum(step, axis=0)
        path[:, 1] = np.clip(path[:, 1], world.road.left, world.road.right)
        cracks.append(path)
    return cracks


def _crack_brightness(
    shape: tuple[int, int], cracks: list[NDArray[np.float64]], near: float, dx: float, dy: float
) -> Float32s:
    """Brightness of the cells under cracks 15 mm wide."""
    mask = np.zeros(shape, np.uint8)
    lines = [
        np.round(np.column_stack([c[:, 1] / dy + shape[1] / 2, (c[:, 0] - near) / dx]) * 16).astype(np.int32)
        for c in cracks
    ]
    cv2.polylines(mask, lines, False, 255, max(1, round(0.015 / dy)), cv2.LINE_AA, shift=4)
    depth = 0.35 * min(1.0, 0.015 / dy)
    return np.asarray(cv2.LUT(mask, (1 - depth * np.arange(256) / 255).astype(np.float32)), np.float32)


def _draw_lane_lines(
    texture: Image, light: Float32s, world: Scene, x: Coordinates, y: Coordinates, dx: float, dy: float
) -> None:
    """Paint the lane lines into the texture."""
    road = world.road
    solid = np.ones(len(x), np.float32)
    dashed = _dash_coverage(x, dx, road.dash, road.period, road.phase)
    for i, line in enumerate(road.lines):
        outer = i in (0, len(road.lines) - 1)
        across = _coverage(y, dy, line - 0.075, line + 0.075)
        (touched,) = np.nonzero(across)
        if not len(touched):
            continue
        part = slice(touched[0], touched[-1] + 1)
        cover = 0.92 * (solid if outer else dashed)[:, None, None] * across[None, part, None]
        paint = np.array(world.look.left_line if i == 0 else (215.0, 215.0, 215.0), np.float32) * light[:, part, None]
        texture[:, part] = np.clip(texture[:, part] * (1 - cover) + paint * cover, 0, 255)


def draw_ground(canvas: Image, bands: tuple[GroundBand, ...], world: Scene, frame: int) -> None:
    """Draw the ground of a frame into the picture, from the bottom up to the row below the horizon."""
    horizon = world.horizons[frame]
    passed = world.speed * frame / FPS
    scale = FY * CAMERA_HEIGHT
    bottom = HEIGHT
    for band in bands:
        last = band is bands[-1]
        top = int(np.ceil(horizon + (1.0 if last else scale / band.far)))
        if top >= bottom:
            continue
        dx, dy = band.cell
        middle = band.texture.shape[1] / 2
        start = passed - band.near
        # a row v and column u see x = scale/(v−horizon), y = (u−CX)·CAMERA·FY/FX/(v−horizon); cells are half a cell
        # off their edges
        to_cell = np.array(
            [
                [scale / FX / dy, middle - 0.5, -scale * CX / FX / dy - (middle - 0.5) * horizon],
                [0.0, start / dx - 0.5, scale / dx - (start / dx - 0.5) * horizon],
                [0.0, 1.0, -horizon],
            ]
        )
        # two rows drawn for each kept: footprints are longest along x
        half = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, top - 0.25], [0.0, 0.0, 1.0]])
        twice = cv2.warpPerspective(
            band.texture, to_cell @ half, (WIDTH, 2 * (bottom - top)),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        upper, lower = twice.reshape(bottom - top, 2, -1).transpose(1, 0, 2)
        cv2.addWeighted(upper, 0.5, lower, 0.5, 0, dst=canvas[top:bottom].reshape(bottom - top, -1))
        bottom = top
