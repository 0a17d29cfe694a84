"""What a rendered clip shows, decided before anything is drawn.

Coordinates: x forward and y right of the camera in metres, on a flat ground; u right and v down in pixels, the centre
of the first pixel at (0, 0). The camera looks level and its picture is shifted so that the horizon lies at a given
row: a point on the ground at (x, y) appears at (cx + fx·y/x, horizon + fy·height/x).

The standard set has one camera and straight driving. The wide set has several cameras, turns, standing cars and higher
speeds; where the car turns, the road and what stands beside it turn about the camera, and other vehicles follow the
car: their positions and velocities are those in the camera's own coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from features._common.types import Floats
from features.sequences import Box

FRAMES, FPS = 8, 10.0
LAST_FRAME = FRAMES - 1  # the frame that labels describe

HORIZON_SPREAD = 4.0  # rows
LOG_DISTANCE = (np.log(36.0), 0.368)  # mean and deviation of a log-normal: quartiles 28, 36, 46 m
DISTANCE_RANGE = (5.0, 90.0)  # m
VX_MEAN_SD, VY_MEAN_SD = (0.525, 2.274), (-0.081, 0.291)  # m/s, over TuSimple's public test labels
VX_RANGE, VY_RANGE = (-6.5, 8.0), (-1.0, 0.9)  # m/s
SPEED_RANGE = (5.0, 32.0)  # m/s
MIN_DISTANCE = 4.0  # m, of all vehicles in all frames

Colour = tuple[float, float, float]  # B, G, R from 0 to 255


@dataclass(frozen=True)
class SceneCamera:
    """A camera of the sample set."""

    width: int  # of the frames, px
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    above_road: float  # m
    horizon: float  # mean row

    @property
    def scale(self) -> float:
        """Rows below the horizon times distance, px·m."""
        return self.fy * self.above_road


TUSIMPLE_CAMERA = SceneCamera(1280, 720, 714.1526, 710.3725, 675.5754, 376.2563, 1.80, 340.0)
# of the wide set: width, height, range of fx in widths
WIDE_SIZES = ((1280, 720, 0.5, 0.9), (1242, 376, 0.5, 0.65), (960, 540, 0.5, 1.0), (640, 480, 0.6, 1.1))
WIDE_ABOVE_ROAD = (1.15, 2.3)  # m
WIDE_HORIZON = 0.04  # greatest distance of the horizon from cy, in fy
WIDE_SPEED_RANGE, STANDING_SHARE = (0.0, 40.0), 0.15
TURNING_SHARE, WIDE_YAW_RATE, LATERAL_ACCELERATION = 0.5, 0.5, 4.0  # rad/s and m/s² at most
NEAREST_BAND = 0.95  # of the nearest distance in the picture


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
    camera: SceneCamera = TUSIMPLE_CAMERA
    yaw_rate: float = 0.0  # to the right, rad/s
    # whether textures are sampled at the middle of their cells; at their edges, as in the standard set, bands of the
    # ground are up to 4 cm apart where they meet
    centred_cells: bool = False

    def pose(self, frame: int) -> tuple[float, float, float]:
        """Where the camera is on the road in a frame (from 0), x and y in m, and its heading in rad to the right.

        It drives along an arc that is parallel to the road halfway between the first and the last frame.
        """
        t = frame / FPS
        if not self.yaw_rate:
            return self.speed * t, 0.0, 0.0
        radius, first = self.speed / self.yaw_rate, -self.yaw_rate * LAST_FRAME / FPS / 2
        heading = first + self.yaw_rate * t
        return radius * (math.sin(heading) - math.sin(first)), radius * (math.cos(first) - math.cos(heading)), heading

    def seen_from(self, frame: int, x: float, y: float) -> tuple[float, float]:
        """A point of the road as the camera of a frame sees it: ahead and to the right, m."""
        px, py, heading = self.pose(frame)
        if not self.yaw_rate:
            return x - px, y
        c, s = math.cos(heading), math.sin(heading)
        return c * (x - px) + s * (y - py), c * (y - py) - s * (x - px)


def image_column(camera: SceneCamera, x: float, y: float) -> float:
    """Pixel column u of a point at (x, y)."""
    return camera.cx + camera.fx * y / x


def image_row(camera: SceneCamera, horizon: float, x: float, height: float = 0.0) -> float:
    """Pixel row v of a point at distance x and `height` m above the ground."""
    return horizon + camera.fy * (camera.above_road - height) / x


def upright_rectangle(camera: SceneCamera, horizon: float, x: float, y: float, width: float, height: float) -> Box:
    """Left, top, right, bottom in px of an upright rectangle whose foot is at (x, y)."""
    left, right = (image_column(camera, x, side) for side in (y - width / 2, y + width / 2))
    return left, image_row(camera, horizon, x, height), right, image_row(camera, horizon, x)


def vehicle_box(scene: Scene, vehicle: SceneVehicle, frame: int) -> Box:
    """Left, top, right, bottom in px of a vehicle's rear in a frame (from 0)."""
    return upright_rectangle(scene.camera, scene.horizons[frame], *vehicle.at(frame), vehicle.width, vehicle.height)


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw the content of a clip of the standard set at random."""
    speed = float(rng.uniform(*SPEED_RANGE))
    horizon = TUSIMPLE_CAMERA.horizon + rng.uniform(-HORIZON_SPREAD, HORIZON_SPREAD)
    # the car body pitches slowly, by about a pixel
    horizons = _pitching(rng, horizon, 0.8)
    road = _random_road(rng)
    roadside = _random_roadside(rng, road)
    return Scene(speed, horizons, road, roadside, _random_vehicles(rng, road, speed), _random_style(rng))


def random_wide_scene(rng: np.random.Generator) -> Scene:
    """Draw the content of a clip of the wide set at random."""
    width, height, narrow, wide = WIDE_SIZES[rng.integers(len(WIDE_SIZES))]
    fx = float(width * rng.uniform(narrow, wide))
    fy = fx * float(rng.uniform(0.98, 1.02))
    cx, cy = (float(side * (0.5 + rng.uniform(-0.03, 0.03))) for side in (width, height))
    horizon = cy + float(rng.uniform(-WIDE_HORIZON, WIDE_HORIZON)) * fy
    camera = SceneCamera(width, height, fx, fy, cx, cy, float(rng.uniform(*WIDE_ABOVE_ROAD)), horizon)
    speed = 0.0 if rng.random() < STANDING_SHARE else float(rng.uniform(*WIDE_SPEED_RANGE))
    turn = float(rng.uniform(-1, 1)) if rng.random() < TURNING_SHARE else 0.0
    yaw_rate = turn * min(WIDE_YAW_RATE, LATERAL_ACCELERATION / speed) if speed else 0.0
    horizons = _pitching(rng, horizon, 0.0011 * fy * min(1.0, speed / 5))
    road = _random_road(rng)
    roadside = _random_roadside(rng, road)
    vehicles = _random_vehicles(rng, road, speed, camera)
    return Scene(speed, horizons, road, roadside, vehicles, _random_style(rng), camera, yaw_rate, True)


def _pitching(rng: np.random.Generator, horizon: float, most: float) -> tuple[float, ...]:
    swing = rng.uniform(0, most) * np.sin(rng.uniform(0, 2 * np.pi) + np.arange(FRAMES) / FPS * 2 * np.pi * 1.3)
    return tuple(float(h) for h in horizon + swing)


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


def _random_vehicles(
    rng: np.random.Generator, road: Road, speed: float, camera: SceneCamera = TUSIMPLE_CAMERA
) -> tuple[SceneVehicle, ...]:
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
            if all(_in_picture(camera, new, frame) for frame in range(FRAMES)):
                vehicles.append(new)
                del lanes[i]
                break
    unhidden = [v for v in vehicles if not any(_hides(camera, other, v) for other in vehicles if other is not v)]
    if not unhidden:  # they hide each other, in different frames
        return _random_vehicles(rng, road, speed, camera)
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


def _in_picture(camera: SceneCamera, vehicle: SceneVehicle, frame: int) -> bool:
    horizon = camera.horizon - HORIZON_SPREAD - 1
    left, top, right, _ = upright_rectangle(camera, horizon, *vehicle.at(frame), vehicle.width, vehicle.height)
    return left >= 0 and top >= 0 and right <= camera.width - 1


def _hides(camera: SceneCamera, near: SceneVehicle, far: SceneVehicle) -> bool:
    """Whether `near` covers part of `far` in any frame."""
    for frame in range(FRAMES):
        a, b = (upright_rectangle(camera, camera.horizon, *v.at(frame), v.width, v.height) for v in (near, far))
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
