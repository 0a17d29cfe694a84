"""Flat drawings of vehicles' rears and roadside objects, placed with sub-pixel accuracy.

A sprite is drawn once, at a large size; the picture gets it from the pyramid level that fits its size there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.sequences import Box
from stage1_extract.sample.scene import Colour, SceneVehicle, clipped_colour

Sprite = tuple[NDArray[np.float32], ...]  # levels, each half as large; channels B, G, R times alpha, and alpha, 0 to 1
Block = tuple[Colour, float, float, float, float]  # colour; left, lower, right, upper edge in m

GLASS_COLOUR: Colour = (48, 42, 36)
TYRE_COLOUR: Colour = (26, 25, 25)


def make_sprite(colour: NDArray[np.float32] | Image, alpha: Image) -> Sprite:
    """Make the levels of a sprite from its colour (h, w, 3) and alpha (h, w), both 0 to 255."""
    a = alpha.astype(np.float32) / 255
    levels = [cv2.merge([*(plane * a for plane in cv2.split(colour.astype(np.float32) / 255)), a])]
    while min(levels[-1].shape[:2]) >= 8:
        h, w = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA))
    return tuple(levels)


def draw_sprite(canvas: Image, sprite: Sprite, box: Box, haze: float = 0.0, air: Colour = (0, 0, 0)) -> None:
    """Draw a sprite so that it fills a box of a picture; `haze`, 0 to 1, is the share of the haze's colour `air`."""
    left, top, right, bottom = box
    x0, y0 = max(0, int(np.floor(left))), max(0, int(np.floor(top)))
    x1, y1 = min(canvas.shape[1], int(np.ceil(right)) + 2), min(canvas.shape[0], int(np.ceil(bottom)) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    over = 4 if right - left < 50 else 2 if right - left < 150 else 1
    # the finest level whose cells are no smaller than the grid's, so that none is skipped
    level = next((s for s in sprite if s.shape[1] <= (right - left) * over), sprite[-1])
    h, w = level.shape[:2]
    # from the oversampled grid to the level's cells; a pixel reaches half a pixel to each side of its centre
    sx, sy, half = w / (right - left), h / (bottom - top), 0.5 / over - 0.5
    m = np.array([[sx / over, 0, (half + x0 - left) * sx - 0.5], [0, sy / over, (half + y0 - top) * sy - 0.5]])
    fine = cv2.warpAffine(
        level, m, ((x1 - x0) * over, (y1 - y0) * over),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
    )  # fmt: skip
    patch = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) if over > 1 else fine
    _composite(canvas[y0:y1, x0:x1], patch, np.float32(255 * (1 - haze)), np.multiply(air, haze).astype(np.float32))


def _composite(below: Image, patch: NDArray[np.float32], strength: np.float32, air: NDArray[np.float32]) -> None:
    """Blend a patch of a sprite over a part of a picture, in place, and add `air` where the sprite covers it."""
    rows, columns = patch.shape[:2]  # flattened: NumPy takes six times as long to broadcast over three channels
    colour = cv2.cvtColor(patch, cv2.COLOR_BGRA2BGR).reshape(rows, -1)
    alpha = cv2.cvtColor(patch[..., 3], cv2.COLOR_GRAY2BGR).reshape(rows, -1)
    colour *= strength
    colour += alpha * np.tile(air, columns)
    np.subtract(1, alpha, out=alpha)
    alpha *= below.reshape(rows, -1)
    alpha += colour
    alpha += 0.5
    np.copyto(below, alpha.reshape(below.shape), casting="unsafe")


def fill_polygon(image: Image, value: Sequence[float], points: Sequence[tuple[float, float]]) -> None:
    """Fill a polygon, whose points are in px, with smooth edges."""
    cv2.fillPoly(image, [np.round(np.array(points) * 256).astype(np.int32)], value, cv2.LINE_AA, 8)


class _SpriteCanvas:
    """Draws a sprite in metres: (0, 0) is its lower left corner, z points up."""

    def __init__(self, width: float, height: float, pixels: int) -> None:
        self.scale = pixels / width
        self.h = round(height * self.scale)
        self.sy = self.h / height
        self.colour = np.zeros((self.h, pixels, 3), np.uint8)
        self.alpha = np.zeros((self.h, pixels), np.uint8)

    def shape(self, colour: Colour, points: list[tuple[float, float]]) -> None:
        pixels = [(x * self.scale - 0.5, self.h - z * self.sy - 0.5) for x, z in points]
        fill_polygon(self.colour, colour, pixels)
        fill_polygon(self.alpha, (255,), pixels)

    def block(self, colour: Colour, x0: float, z0: float, x1: float, z1: float, *, cut: float = 0.0) -> None:
        """Fill a rectangle whose corners are cut off by `cut` m."""
        x, z = (x0, x0 + cut, x1 - cut, x1), (z0, z0 + cut, z1 - cut, z1)
        corners = ((1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1))
        self.shape(colour, [(x[i], z[j]) for i, j in corners])

    def finish(self, rng: np.random.Generator, grain: float) -> Sprite:
        """Return the sprite with fine and coarse noise on it."""
        h, w = self.alpha.shape
        light = np.ones((h, w), np.float32)
        for cells in (10, 28, 80):
            noise = rng.standard_normal((max(2, cells * h // w), cells)).astype(np.float32)
            light += grain * cv2.resize(noise, (w, h), interpolation=cv2.INTER_LINEAR)
        lit = self.colour * cv2.cvtColor(light, cv2.COLOR_GRAY2BGR)
        return make_sprite(np.clip(lit, 0, 255), self.alpha)


PAINT_COLOURS = (  # B, G, R
    (225, 225, 225), (205, 205, 208), (150, 150, 152), (95, 95, 98), (45, 42, 42), (30, 28, 28),
    (40, 35, 140), (120, 70, 30), (95, 60, 45), (60, 75, 40), (120, 150, 175), (45, 110, 160),
)  # fmt: skip


def vehicle_rear(vehicle: SceneVehicle) -> Sprite:
    """Draw a vehicle's rear; its silhouette touches all four sides of the sprite."""
    rng = np.random.default_rng([vehicle.seed, 1])
    w, h = vehicle.width, vehicle.height
    paint = clipped_colour(PAINT_COLOURS[rng.integers(len(PAINT_COLOURS))] + rng.normal(0, 8, 3))
    canvas = _SpriteCanvas(w, h, 512)
    tyre = rng.uniform(0.18, 0.24) * (1.3 if vehicle.kind == "truck" else 1.0)
    floor = rng.uniform(0.2, 0.28) * (1.8 if vehicle.kind == "truck" else 1.0)
    canvas.block((18, 18, 18), 0.04, 0.10, w - 0.04, floor + 0.15)  # the dark gap below
    for x in (0.03, w - 0.03 - tyre):
        canvas.block(TYRE_COLOUR, x, 0.0, x + tyre, floor + 0.25, cut=0.02)
    draw = _truck if vehicle.kind == "truck" else _car
    draw(canvas, rng, vehicle, paint, floor)
    plate: Colour = (200, 205, 205) if rng.random() < 0.7 else (90, 190, 215)
    middle, z = w / 2 + rng.normal(0, 0.02), floor + rng.uniform(0.22, 0.42)
    canvas.block(plate, middle - 0.24, z, middle + 0.24, z + 0.12)
    for i in range(6):
        x = middle - 0.19 + i * 0.065
        canvas.block((40, 35, 35), x, z + 0.03, x + rng.uniform(0.02, 0.05), z + 0.09)
    return canvas.finish(rng, 0.03)


def _shade(colour: Colour, by: float) -> Colour:
    return clipped_colour(np.array(colour) * by)


def _car(canvas: _SpriteCanvas, rng: np.random.Generator, vehicle: SceneVehicle, paint: Colour, floor: float) -> None:
    w, h = vehicle.width, vehicle.height
    belt = h * (rng.uniform(0.56, 0.62) if vehicle.kind == "car" else rng.uniform(0.48, 0.55))
    inset = rng.uniform(0.16, 0.24) if vehicle.kind == "car" else rng.uniform(0.05, 0.12)
    roof = [(inset, h - 0.05), (inset + 0.08, h), (w - inset - 0.08, h), (w - inset, h - 0.05)]
    canvas.shape(_shade(paint, 0.92), [(0.03, belt - 0.02), *roof, (w - 0.03, belt - 0.02)])
    gap = 0.09
    low, high = belt + 0.03, h - 0.13
    glass = [(gap + 0.06, low), (inset + gap, high), (w - inset - gap, high), (w - gap - 0.06, low)]
    canvas.shape(GLASS_COLOUR, glass)
    sheen = rng.uniform(0.2, 0.6) * w
    low, high = belt + 0.05, h - 0.14
    sky = [(sheen, low), (sheen + 0.12, high), (sheen + 0.3, high), (sheen + 0.25, low)]
    canvas.shape((120, 112, 104), sky)  # reflected
    canvas.block(paint, 0.0, floor, w, belt, cut=0.05)
    canvas.block(_shade(paint, 1.12), 0.05, belt - 0.09, w - 0.05, belt - 0.04)  # highlight along the edge
    bumper = _shade(paint, 0.8) if rng.random() < 0.6 else (52, 52, 54)
    canvas.block(bumper, 0.0, floor, w, floor + 0.24, cut=0.05)
    canvas.block((30, 30, 30), 0.06, floor + 0.235, w - 0.06, floor + 0.255)
    tall, wide = rng.uniform(0.13, 0.34), rng.uniform(0.2, 0.4)
    top = belt - rng.uniform(0.04, 0.1)
    for x0, x1 in ((0.04, 0.04 + wide), (w - 0.04 - wide, w - 0.04)):
        canvas.block((38, 28, 165), x0, top - tall, x1, top, cut=0.03)
        canvas.block((190, 200, 215), x0 + wide * 0.35, top - tall * 0.6, x1 - wide * 0.25, top - tall * 0.3)
    canvas.block((35, 30, 190), w / 2 - 0.15, h - 0.11, w / 2 + 0.15, h - 0.08)  # the third brake light
    canvas.block(_shade(paint, 0.6), w / 2 - 0.09, belt - 0.2, w / 2 + 0.09, belt - 0.15)


def _truck(canvas: _SpriteCanvas, rng: np.random.Generator, vehicle: SceneVehicle, paint: Colour, floor: float) -> None:
    w, h = vehicle.width, vehicle.height
    base = floor + 0.45
    canvas.block((34, 33, 33), 0.04, floor, w - 0.04, base + 0.02)  # frame and axles
    canvas.block(paint, 0.0, base, w, h, cut=0.02)
    canvas.block(_shade(paint, 0.7), 0.0, h - 0.1, w, h)
    for x in (0.03, w - 0.08):
        canvas.block(_shade(paint, 0.75), x, base, x + 0.05, h - 0.1)
    canvas.block((35, 35, 35), w / 2 - 0.012, base + 0.05, w / 2 + 0.012, h - 0.12)  # between the doors
    for x in (w * 0.3, w * 0.42, w * 0.58, w * 0.7):
        canvas.block((110, 110, 112), x - 0.02, base + 0.05, x + 0.02, h - 0.15)  # lock bars
    sign = clipped_colour(rng.uniform(40, 220, 3))
    z = rng.uniform(0.55, 0.72) * h
    canvas.block(sign, w * 0.12, z, w * rng.uniform(0.26, 0.28), z + rng.uniform(0.2, 0.5))
    canvas.block((45, 45, 48), 0.06, floor, w - 0.06, floor + 0.16)  # bumper beam
    canvas.block((60, 60, 62), 0.0, base - 0.12, w, base)
    for x in (0.08, w - 0.38):
        canvas.block((35, 28, 170), x, floor + 0.17, x + 0.3, floor + 0.3, cut=0.02)
    for i in range(5):
        x = 0.1 + i * (w - 0.2) / 5
        canvas.block((200, 200, 200) if i % 2 else (40, 40, 190), x, base - 0.09, x + (w - 0.2) / 5, base - 0.03)


def shadow() -> Sprite:
    """Draw a vehicle's shadow: a soft dark spot."""
    y, x = np.mgrid[-1:1:64j, -1:1:128j]
    edge = np.clip((1 - np.abs(x)) / 0.25, 0, 1) * np.clip((1 - np.abs(y)) / 0.5, 0, 1)
    alpha = (185 * edge * edge * (3 - 2 * edge)).astype(np.uint8)
    return make_sprite(np.full((64, 128, 3), 14, np.uint8), alpha)


def _foliage(rng: np.random.Generator, w: int, h: int, *, trunk: bool) -> Sprite:
    """Draw a crown of overlapping discs, light above and dark below."""
    colour, alpha = np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8)
    green = np.array([35, 75, 55]) * rng.uniform(0.6, 1.3) + rng.normal(0, 8, 3)
    foot = int(h * 0.7) if trunk else h
    if trunk:
        x = w // 2 + int(rng.integers(-10, 10))
        width = int(rng.integers(5, 12))
        for image, value in ((colour, (40, 52, 62)), (alpha, 255)):
            cv2.rectangle(image, (x - width, h // 3), (x + width, h), value, -1)
    for _ in range(90):
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform(0, 1))
        radius = int(rng.uniform(0.06, 0.14) * w)
        x = int(w / 2 + np.cos(angle) * far * (w / 2 - radius))
        y = int(foot / 2 + np.sin(angle) * far * (foot / 2 - radius))
        light = 1.25 - 0.7 * y / foot + rng.normal(0, 0.15)
        cv2.circle(colour, (x, y), radius, tuple(np.clip(green * light, 0, 255).tolist()), -1, cv2.LINE_AA)
        cv2.circle(alpha, (x, y), radius, 255, -1, cv2.LINE_AA)
    return make_sprite(colour, alpha)


def sign(rng: np.random.Generator) -> Sprite:
    """Draw a panel on a pole."""
    canvas = _SpriteCanvas(1.0, 2.0, 128)
    canvas.block((125, 125, 128), 0.46, 0.0, 0.54, 1.2)
    face = ((60, 120, 30), (150, 80, 20), (40, 170, 220), (230, 230, 230))[rng.integers(4)]
    canvas.block((235, 235, 235), 0.0, 1.0, 1.0, 2.0, cut=0.05)
    canvas.block(face, 0.05, 1.05, 0.95, 1.95, cut=0.04)
    ink: Colour = (235, 235, 235) if sum(face) < 500 else (30, 30, 30)
    for z in (1.25, 1.5, 1.72):
        canvas.block(ink, 0.15, z, float(rng.uniform(0.4, 0.85)), z + 0.1)
    return canvas.finish(rng, 0.01)


def _blocks(rng: np.random.Generator, size: tuple[float, float, int], grain: float, *blocks: Block) -> Sprite:
    canvas = _SpriteCanvas(*size)
    for block in blocks:
        canvas.block(*block)
    return canvas.finish(rng, grain)


DELINEATOR: list[Block] = [((225, 225, 225), 0.0, 0.0, 0.13, 1.05), ((35, 35, 35), 0.0, 0.72, 0.13, 0.92)]
STREET_LAMP: list[Block] = [((115, 118, 120), 0.11, 0.0, 0.24, 7.9), ((90, 92, 95), 0.0, 7.75, 0.35, 8.0)]
SPRITE_MAKERS: dict[str, Callable[[np.random.Generator], Sprite]] = {
    "tree": lambda rng: _foliage(rng, 256, 384, trunk=True),
    "bush": lambda rng: _foliage(rng, 192, 128, trunk=False),
    "sign": sign,
    "post": lambda rng: _blocks(rng, (0.13, 1.05, 16), 0.02, *DELINEATOR),
    "lamp": lambda rng: _blocks(rng, (0.35, 8.0, 24), 0.02, *STREET_LAMP),
    "rail_post": lambda rng: _blocks(rng, (0.13, 0.85, 16), 0.03, ((70, 74, 76), 0.0, 0.0, 0.13, 0.85)),
}
