"""What a rendered clip shows, decided before anything is drawn.

Coordinates: x forward and y right of the camera in metres, on a flat ground; u right and v down in pixels, the centre
of the first pixel at (0, 0). The camera looks level and its picture is shifted so that the horizon lies at a given
row: a point on the ground at (x, y) appears at (cx + fx·y/x, horizon + fy·CAMERA_HEIGHT/x).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from features._common.types import Floats
from features.sequences import Box

WIDTH, HEIGHT = 1280, 720
FX, FY, CX, CY = 714.1526, 710.3725, 675.5754, 376.2563  # TuSimple's camera
CAMERA_HEIGHT = 1.80  # m above the road
FRAMES, FPS = 8, 10.0
LAST_FRAME = FRAMES - 1  # the frame that labels describe

HORIZON, HORIZON_SPREAD = 340.0, 4.0  # rows
LOG_DISTANCE = (np.log(36.0), 0.368)  # mean and deviation of a log-normal: quartiles 28, 36, 46 m
DISTANCE_RANGE = (5.0, 90.0)  # m
VX_MEAN_SD, VY_MEAN_SD = (0.525, 2.274), (-0.081, 0.291)  # m/s, over TuSimple's public test labels
VX_RANGE, VY_RANGE = (-6.5, 8.0), (-1.0, 0.9)  # m/s
SPEED_RANGE = (5.0, 32.0)  # m/s
MIN_DISTANCE = 4.0  # m, of all vehicles in all frames

Colour = tuple[float, float, float]  # B, G, R from 0 to 255


@dataclass(frozen=True)
class SceneVehicle:
    """A vehicle ahead, shown from the rear."""

    kind: str  # car, van or truck
    width: float  # of its rear, m
    height: float
    position: tuple[float, float]  # x, y of the foot of its rear in the last frame, m
    velocity: tuple[float, float]  # constant vx, vy relative to the camera, m/s
    seed: int  # of its paint and details

    def at(self, frame: int) -> tuple[float, float]:
        """Position x, y in a frame (from 0), m."""
        t = (frame - LAST_FRAME) / FPS
        return self.position[0] + self.velocity[0] * t, self.position[1] + self.velocity[1] * t


@dataclass(frozen=True)
class RoadsideObject:
    """An upright flat object beside the road."""

    kind: str  # tree, bush, sign, post, lamp or rail_post
    x: float  # middle of its foot in the first frame, m
    y: float
    width: float  # m
    height: float
    variant: int  # index into the clip's drawings of that kind


@dataclass(frozen=True)
class Road:
    """A straight road along x; y in m from the camera."""

    lines: tuple[float, ...]  # y of the lane lines from left to right; the outer two are solid, the others are dashed
    left: float  # y where the asphalt ends
    right: float
    dash: float  # length of a dash, m
    period: float  # distance between dashes, m
    phase: float  # position of the first dash, m
    rails: tuple[float, ...]  # y of the guard rails

    @property
    def lanes(self) -> tuple[float, ...]:
        """y of the middle of each lane."""
        return tuple((a + b) / 2 for a, b in pairwise(self.lines))


@dataclass(frozen=True)
class SceneStyle:
    """Colours, light and weather of a clip."""

    sky_top: Colour
    sky_bottom: Colour
    clouds: float
    asphalt: Colour
    verge: Colour
    left_line: Colour
    gain: float  # of the camera's response
    gamma: float
    haze: float  # distance at which 63 % of an object's contrast is lost, m
    noise: float  # standard deviation of the sensor's noise, grey levels
    seed: int  # of textures and drawings


@dataclass(frozen=True)
class Scene:
    """The content of a clip."""

    speed: float  # the car's own, m/s
    horizons: tuple[float, ...]  # row of the horizon in each frame, px
    road: Road
    roadside: tuple[RoadsideObject, ...]
    vehicles: tuple[SceneVehicle, ...]  # the first is the target; no other hides it in any frame
    style: SceneStyle


def image_column(x: float, y: float) -> float:
    """Pixel column u of a point at (x, y)."""
    return CX + FX * y / x


def image_row(horizon: float, x: float, height: float = 0.0) -> float:
    """Pixel row v of a point at distance x and `height` m above the ground."""
    return horizon + FY * (CAMERA_HEIGHT - height) / x


def upright_rectangle(horizon: float, x: float, y: float, width: float, height: float) -> Box:
    """Left, top, right, bottom in px of an upright rectangle whose foot is at (x, y)."""
    left, right = (image_column(x, side) for side in (y - width / 2, y + width / 2))
    return left, image_row(horizon, x, height), right, image_row(horizon, x)


def vehicle_box(scene: Scene, vehicle: SceneVehicle, frame: int) -> Box:
    """Left, top, right, bottom in px of a vehicle's rear in a frame (from 0)."""
    return upright_rectangle(scene.horizons[frame], *vehicle.at(frame), vehicle.width, vehicle.height)


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw the content of a clip at random."""
    speed = float(rng.uniform(*SPEED_RANGE))
    horizon = HORIZON + rng.uniform(-HORIZON_SPREAD, HORIZON_SPREAD)
    # the car body pitches slowly, by about a pixel
    swing = rng.uniform(0, 0.8) * np.sin(rng.uniform(0, 2 * np.pi) + np.arange(FRAMES) / FPS * 2 * np.pi * 1.3)
    horizons = tuple(float(h) for h in horizon + swing)
    road = _random_road(rng)
    roadside, vehicles = _random_roadside(rng, road), _random_vehicles(rng, road, speed)
    return Scene(speed, horizons, road, roadside, vehicles, _random_style(rng))


def _random_road(rng: np.random.Generator) -> Road:
    width = rng.uniform(3.45, 3.8)
    left, right = [(0, 1), (1, 0), (1, 1), (2, 0), (0, 2), (2, 1), (1, 2)][rng.integers(7)]
    offset = rng.normal(0, 0.15)
    lines = tuple(float((i - 0.5) * width + offset) for i in range(-left, right + 2))
    shoulders = rng.uniform(0.4, 1.2), rng.uniform(0.8, 2.8)
    edges = float(lines[0] - shoulders[0]), float(lines[-1] + shoulders[1])
    sides = zip(edges, (-1, 1), strict=True)
    rails = tuple(float(edge + side * rng.uniform(0.3, 0.9)) for edge, side in sides if rng.random() < 0.45)
    dash, gap = rng.uniform(3.5, 4.5), rng.uniform(8, 12)
    # even the fastest clip moves by less than a third of a period per frame, so that the dashes' motion is unambiguous
    return Road(lines, *edges, float(dash), float(dash + gap), float(rng.uniform(0, dash + gap)), rails)


def _random_roadside(rng: np.random.Generator, road: Road) -> tuple[RoadsideObject, ...]:
    """Irregularly spaced objects, all beyond the asphalt and the rails, so that none hides a vehicle."""
    objects = []
    end = 150.0  # m from the camera in the first frame, beyond what later frames show
    for side in (-1, 1):
        edge = road.left if side < 0 else road.right
        rail = [r for r in road.rails if r * side > edge * side]
        clear = abs(rail[0] if rail else edge) + 0.4

        def along(low: float, high: float) -> Floats:
            """Positions x with gaps between `low` and `high`."""
            steps = rng.uniform(low, high, int(end / low) + 2)
            positions: Floats = np.cumsum(steps) - rng.uniform(0, high)
            return positions[positions < end]

        def add(
            kind: str, x: float, gap: float, width: float, height: float, side: int = side, clear: float = clear
        ) -> None:
            y = side * (clear + gap + width / 2)
            objects.append(RoadsideObject(kind, x, y, width, height, int(rng.integers(3))))

        for x in map(float, along(5, 30)):  # dense in places and sparse in others
            height = rng.uniform(4, 12)
            add("tree", x, rng.gamma(1.5, 5), height * rng.uniform(0.45, 0.8), height)
        for x in map(float, along(4, 24)):
            height = rng.uniform(0.6, 2.2)
            add("bush", x, rng.gamma(1.3, 3), height * rng.uniform(1.0, 2.2), height)
        for x in map(float, along(40, 110)):
            height = rng.uniform(2.2, 4)
            add("sign", x, rng.uniform(0, 2), height * rng.uniform(0.35, 0.7), height)
        if rng.random() < 0.4:
            for x in map(float, along(28, 50)):
                add("lamp", x, rng.uniform(0.2, 1.2), 0.35, rng.uniform(7, 9))
        for x in map(float, along(7, 14) if rail else along(14, 34)):
            if rail:
                objects.append(RoadsideObject("rail_post", x, rail[0], 0.13, 0.85, 0))
            else:
                add("post", x, 0.0, 0.13, 1.05)
    return tuple(objects)


VEHICLE_KINDS = {  # share; least and greatest width, least and greatest height in m
    "car": (0.55, 1.80, 2.08, 1.42, 1.72),
    "van": (0.25, 1.95, 2.30, 1.85, 2.45),
    "truck": (0.20, 2.35, 2.80, 2.90, 3.70),
}


def _random_vehicles(rng: np.random.Generator, road: Road, speed: float) -> tuple[SceneVehicle, ...]:
    """One to three vehicles in different lanes, inside the picture in every frame; the first is the target."""
    count = min(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])), len(road.lanes))
    vehicles: list[SceneVehicle] = []
    lanes = list(road.lanes)
    while len(vehicles) < count:
        x, vx, vy, kind = _random_motion(rng, speed)
        _, narrow, wide, low, high = VEHICLE_KINDS[kind]
        width, height = rng.uniform(narrow, wide), rng.uniform(low, high)
        for i in rng.permutation(len(lanes)):
            y = lanes[i] + np.clip(rng.normal(0, 0.25), -0.5, 0.5)
            new = SceneVehicle(kind, width, height, (x, float(y)), (vx, vy), int(rng.integers(2**31)))
            if all(_in_picture(new, frame) for frame in range(FRAMES)):
                vehicles.append(new)
                del lanes[i]
                break
    unhidden = [v for v in vehicles if not any(_hides(other, v) for other in vehicles if other is not v)]
    if not unhidden:  # they hide each other, in different frames
        return _random_vehicles(rng, road, speed)
    first = unhidden[rng.integers(len(unhidden))]
    return (first, *(v for v in vehicles if v is not first))


def _random_motion(rng: np.random.Generator, speed: float) -> tuple[float, float, float, str]:
    """Distance, vx, vy and kind of a vehicle that neither comes too close nor drives backwards."""
    while True:
        x = float(rng.lognormal(*LOG_DISTANCE))
        vx, vy = (float(np.clip(rng.normal(*p), *r)) for p, r in ((VX_MEAN_SD, VX_RANGE), (VY_MEAN_SD, VY_RANGE)))
        kind = str(rng.choice(list(VEHICLE_KINDS), p=[k[0] for k in VEHICLE_KINDS.values()]))
        too_close = x - vx * LAST_FRAME / FPS < MIN_DISTANCE
        if DISTANCE_RANGE[0] <= x <= DISTANCE_RANGE[1] and not too_close and speed + vx >= 0:
            return x, vx, vy, kind


def _in_picture(vehicle: SceneVehicle, frame: int) -> bool:
    horizon = HORIZON - HORIZON_SPREAD - 1
    left, top, right, _ = upright_rectangle(horizon, *vehicle.at(frame), vehicle.width, vehicle.height)
    return left >= 0 and top >= 0 and right <= WIDTH - 1


def _hides(near: SceneVehicle, far: SceneVehicle) -> bool:
    """Whether `near` covers part of `far` in any frame."""
    for frame in range(FRAMES):
        a, b = (upright_rectangle(HORIZON, *v.at(frame), v.width, v.height) for v in (near, far))
        # both are near the horizon's row, so that columns decide
        if near.at(frame)[0] <= far.at(frame)[0] and a[0] < b[2] and b[0] < a[2]:
            return True
    return False


def clipped_colour(values: Floats) -> Colour:
    """Three values clipped to 0 … 255."""
    b, g, r = (float(value) for value in np.clip(values, 0, 255))
    return b, g, r


def _random_style(rng: np.random.Generator) -> SceneStyle:
    grey = rng.uniform(0, 1)  # 0: clear sky, 1: overcast
    top = np.array([215, 150, 95]) * (1 - grey) + np.array([165, 160, 155]) * grey
    bottom = np.array([235, 220, 205]) * (1 - grey) + np.array([205, 202, 198]) * grey
    asphalt = rng.uniform(70, 135) * np.array([1, 1, 1]) + rng.normal(0, 1.5, 3) + np.array([-2, 0, 2])
    green, dry = np.array([50, 95, 75]), np.array([85, 130, 150])
    verge = green + (dry - green) * rng.beta(1, 1.5) + rng.normal(0, 6, 3)
    line = np.array([60, 175, 215]) if rng.random() < 0.4 else np.array([215, 215, 215])
    return SceneStyle(
        sky_top=clipped_colour(top * rng.uniform(0.8, 1.1)),
        sky_bottom=clipped_colour(bottom * rng.uniform(0.9, 1.1)),
        clouds=float(grey * rng.uniform(0.5, 1.5)),
        asphalt=clipped_colour(asphalt),
        verge=clipped_colour(verge),
        left_line=clipped_colour(line),
        gain=float(rng.uniform(0.65, 1.1)),
        gamma=float(rng.uniform(0.85, 1.25)),
        haze=float(np.exp(rng.uniform(np.log(150), np.log(900)))),
        noise=float(rng.uniform(0.8, 2.2)),
        seed=int(rng.integers(2**31)),
    )
