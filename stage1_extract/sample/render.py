"""Draws the frames of a clip: sky, ground, roadside, vehicles, sensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from stage1_extract.sample.ground import Coordinates, Float32s, draw_ground, make_ground
from stage1_extract.sample.scene import (
    CAMERA_HEIGHT,
    CX,
    FPS,
    FRAMES,
    FX,
    FY,
    HEIGHT,
    HORIZON,
    WIDTH,
    Colour,
    RoadsideObject,
    Scene,
    SceneStyle,
    image_column,
    image_row,
    upright_rectangle,
    vehicle_box,
)
from stage1_extract.sample.sprites import SPRITE_MAKERS, Sprite, draw_sprite, shadow, vehicle_rear

VARIANTS = 3  # drawings of each kind of thing a clip has
HAZE_START = 10.0  # m: haze begins here, so that the near ground needs none
MIN_OBJECT_DISTANCE = 2.5  # m: nearer things are out of the picture


def render_frames(world: Scene) -> Iterator[Image]:
    """The clip's frames in order, uint8 BGR of shape (720, 1280, 3)."""
    rng = np.random.default_rng([world.look.seed, 2])
    back = _backdrop(world)
    ground = make_ground(world)
    things = {kind: [drawer(rng) for _ in range(VARIANTS)] for kind, drawer in SPRITE_MAKERS.items()}
    rears = [vehicle_rear(vehicle) for vehicle in world.vehicles]
    dark = shadow()
    curve = _response_curve(world.look)
    # alike in all three colours, as a JPEG would leave it; what is added and what is taken away are bytes, as the
    # picture is: OpenCV adds numbers of unequal types ten times as slowly
    noise = np.round(_unit_noise() * np.float32(world.look.noise))
    grain = [cv2.merge([np.maximum(part, 0).astype(np.uint8)] * 3) for part in (noise, -noise)]
    for frame in range(FRAMES):
        canvas = _shifted_backdrop(back, world.horizons[frame])
        draw_ground(canvas, ground, world, frame)
        _draw_haze(canvas, world, frame)
        _draw_roadside(canvas, world, frame, things)
        order = sorted(zip(world.vehicles, rears, strict=True), key=lambda pair: -pair[0].at(frame)[0])
        for vehicle, drawing in order:
            x, y = vehicle.at(frame)
            horizon = world.horizons[frame]
            draw_sprite(canvas, dark, _shadow_box(horizon, x, y, vehicle.width))
            haze = float(_haze(world.look, x))
            draw_sprite(canvas, drawing, vehicle_box(world, vehicle, frame), haze, world.look.sky_bottom)
        yield _add_sensor_noise(cv2.LUT(canvas, curve), grain, rng)


def _haze(look: SceneStyle, x: Coordinates | float) -> Float32s:
    """Share of the air's colour at each distance in m."""
    return np.asarray(1 - np.exp(-np.maximum(x - HAZE_START, 0) / look.haze), np.float32)


def _backdrop(world: Scene) -> Image:
    """Sky, clouds and far hills, with the horizon in row `HORIZON` and room above and below it."""
    rng = np.random.default_rng([world.look.seed, 3])
    look = world.look
    rows = int(HORIZON) + 40
    height = np.clip(np.linspace(0, 1, rows) * rows / HORIZON, 0, 1)[:, None]
    clouds = np.zeros((rows, WIDTH), np.float32)
    for cells, strength in ((4, 1.0), (9, 0.6), (24, 0.35), (60, 0.2)):
        noise = rng.standard_normal((cells * 2, cells)).astype(np.float32)
        clouds += strength * cv2.resize(noise, (WIDTH, rows), interpolation=cv2.INTER_CUBIC)
    light = (12 + 10 * look.clouds) * np.clip(clouds, -1.5, 2) * (1 - height**3)
    colours = zip(look.sky_top, look.sky_bottom, strict=True)
    sky = [high * (1 - height) + low * height + light for high, low in colours]
    canvas = np.asarray(cv2.merge([np.clip(colour, 0, 255).astype(np.uint8) for colour in sky]), np.uint8)
    for tone, low, high in ((0.55, 12, 30), (0.8, 4, 16)):  # hills, then a line of trees
        outline = np.zeros(WIDTH, np.float32)
        for cells, strength in ((5, 1.0), (18, 0.4), (90, 0.25)):
            noise = rng.standard_normal((1, cells)).astype(np.float32)
            outline += strength * cv2.resize(noise, (WIDTH, 1), interpolation=cv2.INTER_CUBIC)[0]
        top = HORIZON - rng.uniform(low, high) * np.clip(1 + 0.5 * outline, 0.1, 2.5)
        points = np.column_stack([np.arange(WIDTH), top])
        points = np.vstack([points, [[WIDTH - 1, rows], [0, rows]]])
        colour = np.array(look.sky_bottom) * (1 - tone) + np.array([60, 72, 62]) * tone
        cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], colour.tolist(), cv2.LINE_AA, 4)
    return canvas


def _shifted_backdrop(back: Image, horizon: float) -> Image:
    """The backdrop in a picture of full size, moved to a frame's horizon."""
    m = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, horizon - HORIZON]])
    canvas: Image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    rows = back.shape[0] - 20
    canvas[:rows] = cv2.warpAffine(back, m, (WIDTH, rows), borderMode=cv2.BORDER_REPLICATE)
    return canvas


def _draw_haze(canvas: Image, world: Scene, frame: int) -> None:
    """Haze on the far ground."""
    horizon = world.horizons[frame]
    v = np.arange(int(np.ceil(horizon + 1)), int(horizon + FY * CAMERA_HEIGHT / HAZE_START) + 1)
    haze = _haze(world.look, FY * CAMERA_HEIGHT / (v - horizon))[:, None]
    part = canvas[v[0] : v[-1] + 1].reshape(len(v), -1)  # rows of numbers: three colours are a short axis, and slow
    part[:] = part * (1 - haze) + np.tile(np.array(world.look.sky_bottom, np.float32), WIDTH) * haze


def _draw_roadside(canvas: Image, world: Scene, frame: int, drawings: dict[str, list[Sprite]]) -> None:
    """Trees and the like from far to near, then the guard rails before them."""
    horizon = world.horizons[frame]
    passed = world.speed * frame / FPS
    seen = [(t.x - passed, t) for t in world.things if t.x - passed > MIN_OBJECT_DISTANCE]
    seen.sort(key=lambda pair: -pair[0])

    def put(x: float, thing: RoadsideObject) -> None:
        where = upright_rectangle(horizon, x, thing.y, thing.width, thing.height)
        haze = float(_haze(world.look, x))
        draw_sprite(canvas, drawings[thing.kind][thing.variant], where, haze, world.look.sky_bottom)

    for x, thing in seen:
        if thing.kind != "rail_post":
            put(x, thing)
    for y in world.road.rails:
        _draw_rail(canvas, horizon, y)
    for x, thing in seen:
        if thing.kind == "rail_post":
            put(x, thing)


def _draw_rail(canvas: Image, horizon: float, y: float) -> None:
    near = max(1.5, abs(y) * FX / (CX + 60))  # just outside the picture

    def strip(colour: Colour, low: float, high: float) -> None:
        points = [
            (image_column(x, y), image_row(horizon, x, z))
            for x, z in ((near, low), (400, low), (400, high), (near, high))
        ]
        cv2.fillPoly(canvas, [np.round(np.array(points) * 256).astype(np.int32)], colour, cv2.LINE_AA, 8)

    strip((150, 154, 156), 0.45, 0.78)
    strip((112, 116, 118), 0.56, 0.66)


def _shadow_box(horizon: float, x: float, y: float, width: float) -> tuple[float, float, float, float]:
    """Where the shadow of a vehicle lies: the ground from under its axle to a little behind its rear."""
    left, _, right, _ = upright_rectangle(horizon, x, y, width + 0.5, 0.0)
    return left, image_row(horizon, x + 2.5), right, image_row(horizon, x - min(0.45, 0.08 * x))


def _response_curve(look: SceneStyle) -> Image:
    """The camera's response: 256 grey levels."""
    level = np.linspace(0, 1, 256) ** look.gamma * look.gain
    return np.asarray(np.clip(np.round(level * 255), 0, 255), np.uint8)


@cache
def _unit_noise() -> NDArray[np.float32]:
    """Unit noise larger than a frame, from which each frame takes a part at random."""
    return np.random.default_rng(4).standard_normal((HEIGHT + 256, WIDTH + 256)).astype(np.float32)


def _add_sensor_noise(canvas: Image, grain: Sequence[Image], rng: np.random.Generator) -> Image:
    """The picture with the sensor's noise: what it adds, and what it takes away."""
    i, j = (int(k) for k in rng.integers(0, 256, 2))
    more, less = (part[i : i + HEIGHT, j : j + WIDTH] for part in grain)
    return np.asarray(cv2.subtract(cv2.add(canvas, more), less), np.uint8)
