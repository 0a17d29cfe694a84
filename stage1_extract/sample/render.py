"""Draws the frames of a clip: sky, ground, roadside, vehicles, sensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from stage1_extract.sample.ground import Coordinates, Float32s, draw_ground, make_ground
from stage1_extract.sample.scene import (
    FRAMES,
    TUSIMPLE_CAMERA,
    Scene,
    SceneStyle,
    image_column,
    image_row,
    upright_rectangle,
    vehicle_box,
)
from stage1_extract.sample.sprites import SPRITE_MAKERS, Sprite, draw_sprite, fill_polygon, shadow, vehicle_rear

VARIANTS = 3  # drawings per kind of roadside object in a clip
HAZE_START = 10.0  # m; there is no haze up to here
MIN_OBJECT_DISTANCE = 2.5  # m; nearer objects are outside the picture


def render_frames(scene: Scene) -> Iterator[Image]:
    """Render the frames of a clip in order, each uint8 BGR of shape (height, width, 3)."""
    rng = np.random.default_rng([scene.style.seed, 2])
    backdrop = _backdrop(scene)
    ground = make_ground(scene)
    sprites = {kind: [make(rng) for _ in range(VARIANTS)] for kind, make in SPRITE_MAKERS.items()}
    rears = [vehicle_rear(vehicle) for vehicle in scene.vehicles]
    shadow_sprite = shadow()
    level = np.linspace(0, 1, 256) ** scene.style.gamma * scene.style.gain
    response = np.clip(np.round(level * 255), 0, 255).astype(np.uint8)
    # the same in all channels, as after JPEG compression; as bytes, because OpenCV is slow with different types
    noise = np.round(_unit_noise() * np.float32(scene.style.noise))
    grain = [cv2.merge([np.maximum(part, 0).astype(np.uint8)] * 3) for part in (noise, -noise)]
    camera = scene.camera
    canvas: Image = np.empty((camera.height, camera.width, 3), np.uint8)  # for all frames: new memory takes time
    lit = np.empty_like(canvas)
    for frame in range(FRAMES):
        horizon = scene.horizons[frame]
        _draw_backdrop(canvas, backdrop, scene, frame)
        draw_ground(canvas, ground, scene, frame)
        _draw_haze(canvas, scene, horizon)
        _draw_roadside(canvas, scene, frame, sprites)
        for vehicle, rear in sorted(zip(scene.vehicles, rears, strict=True), key=lambda pair: -pair[0].at(frame)[0]):
            x, y = vehicle.at(frame)
            # the ground from under the vehicle's axle to just behind its rear
            left, _, right, _ = upright_rectangle(camera, horizon, x, y, vehicle.width + 0.5, 0.0)
            top, bottom = image_row(camera, horizon, x + 2.5), image_row(camera, horizon, x - min(0.45, 0.08 * x))
            draw_sprite(canvas, shadow_sprite, (left, top, right, bottom))
            haze = float(_haze(scene.style, x))
            draw_sprite(canvas, rear, vehicle_box(scene, vehicle, frame), haze, scene.style.sky_bottom)
        i, j = (int(k) for k in rng.integers(0, 256, 2))
        more, less = (part[i : i + camera.height, j : j + camera.width] for part in grain)
        cv2.LUT(canvas, response, dst=lit)
        cv2.add(lit, more, dst=lit)
        yield np.asarray(cv2.subtract(lit, less), np.uint8)


def _haze(style: SceneStyle, x: Coordinates | float) -> Float32s:
    """Share of the haze's colour at each distance in m."""
    return np.asarray(1 - np.exp(-np.maximum(x - HAZE_START, 0) / style.haze), np.float32)


def _backdrop(scene: Scene) -> Image:
    """Sky, clouds and far hills, with the horizon in the camera's row, and room to spare below and for turns."""
    rng = np.random.default_rng([scene.style.seed, 3])
    style, horizon = scene.style, scene.camera.horizon
    width = scene.camera.width + 2 * _turning_margin(scene)
    rows = int(horizon) + 40
    height = np.clip(np.linspace(0, 1, rows) * rows / horizon, 0, 1)[:, None]
    clouds = np.zeros((rows, width), np.float32)
    for cells, strength in ((4, 1.0), (9, 0.6), (24, 0.35), (60, 0.2)):
        noise = rng.standard_normal((cells * 2, cells)).astype(np.float32)
        clouds += strength * cv2.resize(noise, (width, rows), interpolation=cv2.INTER_CUBIC)
    light = (12 + 10 * style.clouds) * np.clip(clouds, -1.5, 2) * (1 - height**3)
    colours = zip(style.sky_top, style.sky_bottom, strict=True)
    sky = [high * (1 - height) + low * height + light for high, low in colours]
    canvas = np.asarray(cv2.merge([np.clip(colour, 0, 255).astype(np.uint8) for colour in sky]), np.uint8)
    for tone, low, high in ((0.55, 12, 30), (0.8, 4, 16)):  # hills, then a line of trees
        outline = np.zeros(width, np.float32)
        for cells, strength in ((5, 1.0), (18, 0.4), (90, 0.25)):
            noise = rng.standard_normal((1, cells)).astype(np.float32)
            outline += strength * cv2.resize(noise, (width, 1), interpolation=cv2.INTER_CUBIC)[0]
        top = horizon - rng.uniform(low, high) * np.clip(1 + 0.5 * outline, 0.1, 2.5)
        points = np.column_stack([np.arange(width), top])
        points = np.vstack([points, [[width - 1, rows], [0, rows]]])
        colour = np.array(style.sky_bottom) * (1 - tone) + np.array([60, 72, 62]) * tone
        cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], colour.tolist(), cv2.LINE_AA, 4)
    return canvas


def _turning_margin(scene: Scene) -> int:
    """Columns that the backdrop has beyond each side of the picture."""
    camera, turn = scene.camera, abs(scene.pose(0)[2])
    side = max(camera.cx, camera.width - camera.cx) / camera.fx
    return math.ceil(camera.fx * (math.tan(math.atan(side) + turn) - side)) if turn else 0


def _draw_backdrop(canvas: Image, backdrop: Image, scene: Scene, frame: int) -> None:
    """Draw the backdrop, shifted to a frame's horizon and turned by its heading."""
    camera, heading, horizon = scene.camera, scene.pose(frame)[2], scene.horizons[frame]
    rows = min(backdrop.shape[0] - 20, camera.height)
    part, size = canvas[:rows], (camera.width, rows)
    if not scene.yaw_rate:
        m = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, horizon - camera.horizon]])
        cv2.warpAffine(backdrop, m, size, dst=part, borderMode=cv2.BORDER_REPLICATE)
        return
    to_direction = np.array([[1 / camera.fx, 0, -camera.cx / camera.fx], [0, 1, -horizon], [0, 0, 1]])
    c, s = math.cos(heading), math.sin(heading)
    to_backdrop = np.array([[camera.fx, 0, camera.cx + _turning_margin(scene)], [0, 1, camera.horizon], [0, 0, 1]])
    m = to_backdrop @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ to_direction
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpPerspective(backdrop, m, size, dst=part, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _draw_haze(canvas: Image, scene: Scene, horizon: float) -> None:
    """Draw haze over the far ground."""
    scale, width = scene.camera.scale, scene.camera.width
    v = np.arange(int(np.ceil(horizon + 1)), min(int(horizon + scale / HAZE_START) + 1, len(canvas)))
    haze = _haze(scene.style, scale / (v - horizon))[:, None]
    part = canvas[v[0] : v[-1] + 1].reshape(len(v), -1)  # flat rows, because NumPy is slow along a short axis
    part[:] = part * (1 - haze) + np.tile(np.array(scene.style.sky_bottom, np.float32), width) * haze


def _draw_roadside(canvas: Image, scene: Scene, frame: int, sprites: dict[str, list[Sprite]]) -> None:
    """Draw roadside objects from far to near, then the guard rails in front of them."""
    camera, horizon = scene.camera, scene.horizons[frame]
    places = [(*scene.seen_from(frame, item.x, item.y), item) for item in scene.roadside]
    objects = sorted((place for place in places if place[0] > MIN_OBJECT_DISTANCE), key=lambda place: -place[0])
    for rail_posts in (False, True):
        if rail_posts:
            for rail in scene.road.rails:
                _draw_rail(canvas, scene, frame, rail)
        for x, y, item in (place for place in objects if (place[2].kind == "rail_post") == rail_posts):
            box = upright_rectangle(camera, horizon, x, y, item.width, item.height)
            haze = float(_haze(scene.style, x))
            draw_sprite(canvas, sprites[item.kind][item.variant], box, haze, scene.style.sky_bottom)


def _draw_rail(canvas: Image, scene: Scene, frame: int, y: float) -> None:
    camera, horizon = scene.camera, scene.horizons[frame]
    ends = _rail_ends(scene, frame, y)
    for colour, low, high in (((150, 154, 156), 0.45, 0.78), ((112, 116, 118), 0.56, 0.66)):
        corners = ((*ends[0], low), (*ends[1], low), (*ends[1], high), (*ends[0], high))
        points = [(image_column(camera, x, side), image_row(camera, horizon, x, z)) for x, side, z in corners]
        fill_polygon(canvas, colour, points)


def _rail_ends(scene: Scene, frame: int, y: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The near and the far end of a rail at y on the road, as the camera sees them: ahead and to the right, m."""
    camera = scene.camera
    middle = camera.cx if y < 0 else camera.width - camera.cx
    if not scene.yaw_rate:
        if camera == TUSIMPLE_CAMERA:
            middle = camera.cx
        return (max(1.5, abs(y) * camera.fx / (middle + 60)), y), (400, y)  # from just outside the picture on
    px, py, heading = scene.pose(frame)
    # the point of the rail that is 1.5 m ahead: c·(x − px) + s·(y − py) = 1.5
    near = px + (1.5 - math.sin(heading) * (y - py)) / math.cos(heading)
    return scene.seen_from(frame, near, y), scene.seen_from(frame, px + 400, y)


@cache
def _unit_noise() -> NDArray[np.float32]:
    """Noise of standard deviation 1, larger than a frame; each frame uses a random section of it."""
    size = TUSIMPLE_CAMERA.height + 256, TUSIMPLE_CAMERA.width + 256  # no camera has larger frames
    return np.random.default_rng(4).standard_normal(size).astype(np.float32)
