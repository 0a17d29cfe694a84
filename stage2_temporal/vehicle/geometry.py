"""Geometry of a box's path: what it says about distance and velocity on flat ground. Pure numpy.

A pinhole camera that looks along the road shows a vehicle of width W at distance x (forward, m) and y (right, m) with
width fx·W/x at column cx + fx·y/x, its foot at row horizon + scale/x, where scale = fy · camera height. So the inverse
of its size changes evenly while its velocity stays the same, and

    vx = x · d(1/size)/dt · size        (time to contact, Lee 1976: x / −vx = size / (d size/dt))
    vy = d/dt (x · (u − cx) / fx)       (u: the box's middle column)

The rate comes from the size as tracked, not from the box's edges: a nod of the camera moves edges, not sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from features._common.types import Floats
from features.errors import DataError
from features.sequences import Camera

PIXEL = 0.05  # px: standard deviation of a well matched box's size
FARTHEST = 200.0  # m: feet at the horizon or above it count as this far
MATCH_NOISE = 0.02  # 1 − correlation² that even a perfect match has, from the sensor and compression
HUBER = 1.345  # Huber's constant: 95 % efficient on Gaussian residuals
FEWEST = 3  # labels that a ground needs
FEWEST_MOVING = 8  # where they have no positions

GEOMETRY_NAMES = (
    "left", "top", "right", "bottom", "log_width", "log_height",
    "log_size_rate", "closing", "u_rate", "v_rate",
    "x_foot", "x_size", "y_foot", "y_size",
    "vx_foot", "vx_size", "vy_foot", "vy_size",
    "seen", "confidence", "misfit", "closing_deviation",
)  # fmt: skip
# what a linear regressor should be given: the rest, `seen` above all, has far outliers that lines run away with
ESTIMATES = ("vx_foot", "vx_size", "vy_foot", "vy_size")


@dataclass(frozen=True)
class Ground:
    """Flat ground as a camera sees it, fitted to labels.

    Attributes:
        horizon: row of what is infinitely far, px.
        scale: (row − horizon) · distance of a point on the ground, px·m; fy · camera height in theory.
        span: box width · distance, px·m: its median over the labels; fx · the vehicles' usual width in theory.
    """

    horizon: float
    scale: float
    span: float

    def foot(self, bottom: ArrayLike) -> Floats:
        """Distance in m from the box's lower edge, at most `FARTHEST`."""
        below = np.asarray(bottom, np.float64) - self.horizon
        return np.asarray(self.scale / np.maximum(below, self.scale / FARTHEST))

    def size(self, width: ArrayLike) -> Floats:
        """Distance in m from the box's width in px, for a vehicle of the usual width, at most `FARTHEST`."""
        return np.asarray(self.span / np.maximum(np.asarray(width, np.float64), self.span / FARTHEST))


def fit_ground(boxes: ArrayLike, positions: ArrayLike) -> Ground:
    """Horizon and scale from labels: a robust line of the box's lower edge over 1/x.

    The horizon is never the principal row: TuSimple's camera looks down a little, and with cy as the horizon the
    distance is wrong by a factor of 20.

    Args:
        boxes: (n, 4) left, top, right, bottom in px; rows with NaN are left out.
        positions: (n, 2) x (forward), y (right) in m; rows with NaN or x ≤ 0 are left out.

    Raises:
        DataError: fewer than 3 labels with box and position, all equally far, or lower edges that don't come down
            the image as vehicles come near.
    """
    box, place = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(positions, np.float64).reshape(-1, 2)
    known = np.isfinite(box).all(axis=1) & np.isfinite(place).all(axis=1) & (place[:, 0] > 0)
    box, x = box[known], place[known, 0]
    if len(x) < FEWEST or np.ptp(x) < 1e-6 * x.max():
        raise DataError(
            "the ground can't be estimated",
            expected=f"at least {FEWEST} labels with box and position, at different distances",
            got=f"{len(x)}" if len(x) < FEWEST else f"{len(x)}, all at {x[0]:g} m",
        )
    horizon, scale = robust_line(1 / x, box[:, 3])
    if scale <= 0:
        raise DataError(
            "the labels' boxes and positions don't fit flat ground",
            expected="lower edges further down the image for nearer vehicles",
            got=f"horizon {horizon:.1f} px, scale {scale:.1f} px·m",
        )
    return Ground(horizon, scale, float(np.median((box[:, 2] - box[:, 0]) * x)))


def fit_ground_from_motion(boxes: ArrayLike, closing: ArrayLike, vx: ArrayLike) -> Ground:
    """Horizon and scale from labels that have no positions: vx = closing · scale / (bottom − horizon).

    For each row that the horizon may lie in, the scale is fitted by least absolute deviations; the row with the
    smallest sum of them is taken. The horizon lies above all but the highest 2 % of the lower edges, by no more than
    these span.

    Args:
        boxes: (n, 4) left, top, right, bottom in px at the labels' frames.
        closing: (n,) vx / x as the tracks have it, 1/s (`geometry_vector`).
        vx: (n,) as labelled, m/s. Rows with NaN anywhere are left out.

    Raises:
        DataError: fewer than 8 such labels, or velocities that don't go with the tracks.
    """
    box = np.asarray(boxes, np.float64).reshape(-1, 4)
    rate, speed = np.asarray(closing, np.float64), np.asarray(vx, np.float64)
    known = np.isfinite(box).all(axis=1) & np.isfinite(rate) & np.isfinite(speed) & (rate != 0)
    box, rate, speed = box[known], rate[known], speed[known]
    if len(box) < FEWEST_MOVING:
        raise DataError(
            "the ground can't be estimated",
            expected=f"at least {FEWEST} labels with box and position, or {FEWEST_MOVING} with a tracked box and vx",
            got=f"{len(box)} with a tracked box and vx",
        )
    feet = box[:, 3]
    highest = float(np.quantile(feet, 0.02))
    best = (math.inf, 0.0, 0.0)
    for horizon in np.arange(highest - 2, highest - 2 - max(float(np.ptp(feet)), 20.0), -0.5).tolist():
        per_scale = rate / np.maximum(feet - horizon, 1.0)
        scale = _weighted_median(speed / per_scale, np.abs(per_scale))
        best = min(best, (float(np.abs(speed - scale * per_scale).sum()), horizon, scale))
    off, horizon, scale = best
    if scale <= 0 or not off < np.abs(speed - np.median(speed)).sum():
        raise DataError(
            "the ground can't be estimated: the labels' velocities don't go with the tracks",
            expected="vehicles that come nearer where vx is negative",
            got=f"a mean deviation of {off / len(speed):.2g} m/s",
        )
    return Ground(horizon, scale, float(np.median((box[:, 2] - box[:, 0]) * scale / np.maximum(feet - horizon, 1.0))))


def fit_camera(boxes: ArrayLike, positions: ArrayLike, size: tuple[int, int]) -> Camera:
    """A camera for frames without calibration: focal length and principal column from where vehicles stand.

    Where fewer than 3 labels have a position, or they are all straight ahead, a camera as wide as TuSimple's: fx is
    0.56 of the image's width. A regression on lateral features makes up for a wrong fx.

    Args:
        boxes, positions: as in `fit_ground`.
        size: width and height of the frames, px.
    """
    box, place = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(positions, np.float64).reshape(-1, 2)
    known = np.isfinite(box).all(axis=1) & np.isfinite(place).all(axis=1) & (place[:, 0] > 0)
    side, middle = place[known, 1] / place[known, 0], (box[known, 0] + box[known, 2]) / 2
    width, height = size
    cx, fx = (width - 1) / 2, 0.56 * width
    if len(side) >= FEWEST and np.ptp(side) > 0.05:
        fitted = robust_line(side, middle)
        if 0.2 * width < fitted[1] < 5 * width:
            cx, fx = fitted
    return Camera(fx, fx, cx, (height - 1) / 2)


def robust_line(t: Floats, y: Floats) -> tuple[float, float]:
    """`weighted_line` by iteratively reweighted least squares (Huber, 1964): outliers count little."""
    weight = np.ones(len(t))
    for _ in range(20):
        level, slope = weighted_line(t, y, weight)
        off = np.abs(y - level - slope * t)
        spread = max(1.4826 * float(np.median(off)), 1e-9)
        weight = np.minimum(1, HUBER * spread / np.maximum(off, 1e-12))
    return level, slope


def _weighted_median(values: Floats, weight: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def weighted_line(t: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    """Weighted least squares of y ≈ level + slope · t: (level, slope). The slope is 0 where all t are equal."""
    total = float(weight.sum())
    mean_t, mean_y = float((weight * t).sum()) / total, float((weight * y).sum()) / total
    varies = float((weight * (t - mean_t) ** 2).sum())
    slope = float((weight * (t - mean_t) * (y - mean_y)).sum()) / varies if varies > 0 else 0.0
    return mean_y - slope * mean_t, slope


def confidence_weights(confidence: ArrayLike) -> Floats:
    """Weights for least squares from correlations: a match's noise power over its signal's is about 1 − c²."""
    c = np.clip(np.asarray(confidence, np.float64), 0, 1)
    return np.asarray(1 / (1 + MATCH_NOISE - c**2))


def geometry_vector(boxes: ArrayLike, confidence: ArrayLike, fps: float, ground: Ground, camera: Camera) -> Floats:
    """What a window's boxes say about the vehicle at its last frame, as `GEOMETRY_NAMES` has it.

    Every quantity is that of a weighted straight line through the window, read at the last frame: of the edges and
    the middle over time, and of 1/size, which is straight at constant velocity. `x_foot` is the mean of
    (bottom − horizon) / size over the window, times the size at its end: all frames' lower edges, not only the last.

    Args:
        boxes: (T, 4) left, top, right, bottom in px, NaN where lost.
        confidence: (T,) 0 to 1, as the tracker gives it; ones for boxes that were supplied.
        fps: the window's frames a second.
        ground: fitted on the training labels.
        camera: of the frames the boxes are in.

    Returns:
        (len(NAMES),): edges px; sizes log px; rates a second (`log_size_rate`, 1/s; `closing` = vx/x, 1/s;
        `u_rate`, `v_rate` of the box's middle, px/s); distances m and velocities m/s once with the distance from the
        foot and once from the width; `seen`, share of frames with a box; `confidence`, their mean; `misfit`, deviation
        of the relative size from the line; `closing_deviation`, standard deviation to expect of `closing`, from the
        size, number and confidence of the boxes, and their misfit where it is more than that (Birge, 1932). NaN where
        nothing is known: all but `seen` and `confidence` without any box, and rates, velocities, misfit and deviation
        with a single one.
    """
    box, sure = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(confidence, np.float64)
    there = np.isfinite(box).all(axis=1)
    seen, mean = float(there.mean()), float(sure[there].mean()) if there.any() else 0.0
    known = dict.fromkeys(GEOMETRY_NAMES, math.nan) | {"seen": seen, "confidence": mean}
    if there.any():
        t = (np.flatnonzero(there) - (len(box) - 1)) / fps
        known |= _motion(box[there], confidence_weights(sure[there]), t, ground, camera)
    return np.array([known[name] for name in GEOMETRY_NAMES])


def _motion(box: Floats, weight: Floats, t: Floats, ground: Ground, camera: Camera) -> dict[str, float]:
    """The features of `geometry_vector` for the n frames with a box, at times t ≤ 0 in seconds from the window's end."""
    wide, high = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    size = np.sqrt(wide * high)
    level, slope = weighted_line(t, 1 / size, weight)
    level = max(level, 0.25 / float(size[-1]))  # a wild line must not put it behind infinity
    closing = slope / level  # vx / x at the end
    relative = size * level  # size relative to that at the end, as seen
    u, v = (box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2
    (u0, du), (v0, dv) = weighted_line(t, u, weight), weighted_line(t, v, weight)
    shape = math.exp(float(np.log(wide / high).mean()) / 2)
    width, height = shape / level, 1 / (shape * level)
    below = float((weight * (box[:, 3] - ground.horizon) / relative).sum() / weight.sum())
    distance = {"foot": float(ground.foot(ground.horizon + below)), "size": float(ground.size(width))}
    side, sideways = weighted_line(t, (u - camera.cx) / (camera.fx * relative), weight)  # y/x at the end, and its rate
    found = {
        "left": u0 - width / 2, "top": v0 - height / 2, "right": u0 + width / 2, "bottom": v0 + height / 2,
        "log_width": math.log(width), "log_height": math.log(height),
    }  # fmt: skip
    found |= {f"x_{k}": x for k, x in distance.items()} | {f"y_{k}": x * side for k, x in distance.items()}
    if len(t) < 2:
        return found
    found |= {"log_size_rate": -closing, "closing": closing, "u_rate": du, "v_rate": dv}
    found |= {f"vx_{k}": x * closing for k, x in distance.items()}
    found |= {f"vy_{k}": x * sideways for k, x in distance.items()}
    # relative to the fitted size, not to that at the end
    off = relative * (1 + closing * t) - 1
    found["misfit"] = float(np.sqrt((weight * off**2).sum() / weight.sum()))
    precision = weight * MATCH_NOISE * (size / PIXEL) ** 2  # 1 / variance of the relative size
    chi = (precision * off**2).sum() / max(len(t) - 2, 1)
    middle = (precision * t).sum() / precision.sum()
    found["closing_deviation"] = math.sqrt(max(1.0, chi) / (precision * (t - middle) ** 2).sum())
    return found
