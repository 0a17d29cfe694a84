"""Geometry of a tracked box: distance and velocity of a vehicle on flat ground. NumPy only.

A pinhole camera that looks along the road sees a vehicle of width W at x (forward, m) and y (right, m) as a box of
width fx·W/x whose centre is at column cx + fx·y/x and whose lower edge is at row horizon + scale/x, where
scale = fy · camera height. So 1/size changes linearly at constant velocity, and

    vx = x · d(1/size)/dt · size        (time to contact, Lee 1976: x / −vx = size / (d size/dt))
    vy = d/dt (x · (u − cx) / fx)       (u: the column of the box's centre)

The rate is that of the tracked size, not of the box's edges: when the camera pitches, edges move but sizes do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from features._common.types import Floats
from features.errors import DataError
from features.sequences import Camera

SIZE_NOISE = 0.05  # px: standard deviation of the size of a well matched box
MAX_DISTANCE = 200.0  # m: also for lower edges at or above the horizon
MATCH_NOISE = 0.02  # 1 − correlation² of even a perfect match, from the sensor and compression
HUBER = 1.345  # Huber's constant: 95 % efficient on Gaussian residuals
HUBER_ITERATIONS = 30
MIN_LABELS = 3  # labels with box and position that a ground needs
MIN_TRACKED_LABELS = 8  # labels with a tracked box and vx that it needs instead

GEOMETRY_NAMES = (
    "left", "top", "right", "bottom", "log_width", "log_height",
    "log_size_rate", "closing", "u_rate", "v_rate",
    "x_foot", "x_size", "y_foot", "y_size",
    "vx_foot", "vx_size", "vy_foot", "vy_size",
    "seen", "confidence", "misfit", "closing_deviation",
)  # fmt: skip
# velocities that a linear regressor can use; other quantities have outliers that would dominate its fit
ESTIMATES = ("vx_foot", "vx_size", "vy_foot", "vy_size")


@dataclass(frozen=True)
class Ground:
    """Flat ground as a camera sees it, fitted to labels."""

    horizon: float  # row of points at infinite distance, px
    scale: float  # (row − horizon) · distance of a point on the ground, px·m; in theory fy · camera height
    span: float  # box width · distance, px·m, the median over the labels; in theory fx · the usual width of vehicles

    def distance_from_bottom(self, bottom: ArrayLike) -> Floats:
        """Return the distance in m of a box by the row of its lower edge, at most `MAX_DISTANCE`.

        >>> Ground(horizon=340.0, scale=1000.0, span=1400.0).distance_from_bottom([390.0, 360.0]).tolist()
        [20.0, 50.0]
        """
        below = np.asarray(bottom, np.float64) - self.horizon
        return np.asarray(self.scale / np.maximum(below, self.scale / MAX_DISTANCE))

    def distance_from_width(self, width: ArrayLike) -> Floats:
        """Return the distance in m of a vehicle of usual width by its box's width in px, at most `MAX_DISTANCE`."""
        return np.asarray(self.span / np.maximum(np.asarray(width, np.float64), self.span / MAX_DISTANCE))


def fit_ground(boxes: ArrayLike, positions: ArrayLike) -> Ground:
    """Fit horizon and scale to labels: a robust line of the box's lower edge over 1/x.

    The camera's principal row is not the horizon: TuSimple's camera looks down a little, and with cy as the horizon
    distances are wrong by a factor of 20. Of `boxes`, (n, 4) px, and `positions`, (n, 2) x and y in m, rows with NaN
    or x ≤ 0 are left out. A DataError if fewer than 3 are left, all at one distance, or the nearer not lower.
    """
    box, x, _ = _labels_with_positions(boxes, positions)
    if len(x) < MIN_LABELS or np.ptp(x) < 1e-6 * x.max():
        raise DataError(
            "the ground cannot be estimated",
            expected=f"at least {MIN_LABELS} labels with box and position, at different distances",
            got=f"{len(x)}" if len(x) < MIN_LABELS else f"{len(x)}, all at {x[0]:g} m",
        )
    horizon, scale = huber_regression(1 / x[:, None], box[:, 3]).tolist()
    if scale <= 0:
        raise DataError(
            "the labels' boxes and positions do not fit flat ground",
            expected="lower edges further down in the image for nearer vehicles",
            got=f"horizon {horizon:.1f} px, scale {scale:.1f} px·m",
        )
    return Ground(horizon, scale, float(np.median((box[:, 2] - box[:, 0]) * x)))


def fit_ground_from_motion(boxes: ArrayLike, closing: ArrayLike, vx: ArrayLike) -> Ground:
    """Fit horizon and scale to labels without positions: vx = closing · scale / (bottom − horizon).

    For each row that may be the horizon, the scale is fitted by least absolute deviations; the best row is taken.
    Candidates lie above all but the highest 2 % of the lower edges, by at most the range that these cover. Of `boxes`,
    (n, 4) px, `closing`, (n,) vx / x of the tracks in 1/s, and `vx`, (n,) m/s, rows with NaN are left out. A DataError
    if fewer than 8 are left, or the velocities contradict the tracks.
    """
    box = np.asarray(boxes, np.float64).reshape(-1, 4)
    rate, speed = np.asarray(closing, np.float64), np.asarray(vx, np.float64)
    known = np.isfinite(np.c_[box, rate, speed]).all(axis=1) & (rate != 0)
    box, rate, speed = box[known], rate[known], speed[known]
    if len(box) < MIN_TRACKED_LABELS:
        raise DataError(
            "the ground cannot be estimated",
            expected=f"at least {MIN_LABELS} labels with box and position, or {MIN_TRACKED_LABELS} with a track and vx",
            got=f"{len(box)} with a track and vx",
        )
    bottom = box[:, 3]
    highest = float(np.quantile(bottom, 0.02))
    fits = []
    for horizon in np.arange(highest - 2, highest - 2 - max(float(np.ptp(bottom)), 20.0), -0.5).tolist():
        per_scale = rate / np.maximum(bottom - horizon, 1.0)
        ratios, weight = speed / per_scale, np.abs(per_scale)
        scale = float(np.quantile(ratios, 0.5, weights=weight, method="inverted_cdf"))  # the weighted median
        fits.append((float(np.abs(speed - scale * per_scale).sum()), horizon, scale))
    deviation, horizon, scale = min(fits)
    if scale <= 0 or not deviation < np.abs(speed - np.median(speed)).sum():
        raise DataError(
            "the ground cannot be estimated: the labels' velocities contradict the tracks",
            expected="vehicles that come nearer where vx is negative",
            got=f"a mean deviation of {deviation / len(speed):.2g} m/s",
        )
    distance = scale / np.maximum(bottom - horizon, 1.0)
    return Ground(horizon, scale, float(np.median((box[:, 2] - box[:, 0]) * distance)))


def fit_camera(boxes: ArrayLike, positions: ArrayLike, size: tuple[int, int]) -> Camera:
    """Fit a camera to labels, for frames without calibration: focal length and principal column.

    If fewer than 3 labels have a position, or all vehicles are straight ahead, the camera is as wide as TuSimple's: fx
    is 0.56 of the image's width. A regression on lateral features compensates a wrong fx. `size` is in px.
    """
    box, x, y = _labels_with_positions(boxes, positions)
    lateral, centre = y / x, (box[:, 0] + box[:, 2]) / 2
    width, height = size
    cx, fx = (width - 1) / 2, 0.56 * width
    if len(x) >= MIN_LABELS and np.ptp(lateral) > 0.05:
        fitted_cx, fitted_fx = huber_regression(lateral[:, None], centre).tolist()
        if 0.2 * width < fitted_fx < 5 * width:
            cx, fx = fitted_cx, fitted_fx
    return Camera(fx, fx, cx, (height - 1) / 2)


def _labels_with_positions(boxes: ArrayLike, positions: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return boxes (m, 4), x (m,) and y (m,) of the labels that have a box and a position ahead of the camera."""
    box, position = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(positions, np.float64).reshape(-1, 2)
    known = np.isfinite(box).all(axis=1) & np.isfinite(position).all(axis=1) & (position[:, 0] > 0)
    return box[known], position[known, 0], position[known, 1]


def huber_regression(features: Floats, targets: Floats, penalty: float = 0.0) -> Floats:
    """Fit targets ≈ intercept + features · slopes by iteratively reweighted least squares (P. Huber, 1964).

    scikit-learn's HuberRegressor minimises the same but takes seconds on features as correlated as a box's estimates.
    Features (n, F), targets (n,) and a ridge penalty on the slopes, per example, give (1 + F,): intercept and slopes.
    """
    design = np.c_[np.ones(len(features)), features]
    ridge = penalty * len(features) * np.diag([0.0, *np.ones(features.shape[1])])
    weight = np.ones(len(features))
    for _ in range(HUBER_ITERATIONS):
        weighted = weight[:, None] * design
        coefficients: Floats = np.linalg.solve(design.T @ weighted + ridge, weighted.T @ targets)
        residual = np.abs(targets - design @ coefficients)
        scale = max(1.4826 * float(np.median(residual)), 1e-9)
        weight = np.minimum(1, HUBER * scale / np.maximum(residual, 1e-12))
    return coefficients


def weighted_line(t: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    """Fit y ≈ level + slope · t by weighted least squares: (level, slope). The slope is 0 if all t are equal."""
    total = float(weight.sum())
    mean_t, mean_y = float((weight * t).sum()) / total, float((weight * y).sum()) / total
    variation = float((weight * (t - mean_t) ** 2).sum())
    slope = float((weight * (t - mean_t) * (y - mean_y)).sum()) / variation if variation > 0 else 0.0
    return mean_y - slope * mean_t, slope


def confidence_weights(confidence: ArrayLike) -> Floats:
    """Turn correlations c into weights for least squares: the ratio of noise to signal power is about 1 − c²."""
    c = np.clip(np.asarray(confidence, np.float64), 0, 1)
    return np.asarray(1 / (1 + MATCH_NOISE - c**2))


def geometry_vector(boxes: ArrayLike, confidence: ArrayLike, fps: float, ground: Ground, camera: Camera) -> Floats:
    """Compute the geometry of a vehicle at a window's last frame, in the order of `GEOMETRY_NAMES`.

    Every quantity is that of a weighted straight line through the window, read at the last frame: the box's edges and
    centre over time, and 1/size, which is straight at constant velocity. `x_foot` uses the lower edges of all frames:
    the mean of (bottom − horizon) / size over the window, times the size at its end.

    Args:
        boxes, confidence: (T, 4) px, NaN where lost; and (T,) 0 to 1, ones for boxes that were supplied.
        fps: frames per second of the window.
        ground, camera: of the frames that the boxes are in.

    Returns:
        (len(GEOMETRY_NAMES),): edges in px; log sizes; `log_size_rate` and `closing` = vx/x in 1/s, `u_rate` and
        `v_rate` of the centre in px/s; distances in m and velocities in m/s, from the lower edge (`_foot`) and from the
        width (`_size`); `seen`, the share of frames with a box; `confidence`, their mean; `misfit`, the deviation of
        the relative size from the line; `closing_deviation`, the expected standard deviation of `closing`, increased
        where the misfit is larger than expected (Birge, 1932). Without a box all but `seen` and `confidence` are NaN;
        with only one box, rates, velocities, misfit and deviation are.
    """
    box, weight = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(confidence, np.float64)
    visible = np.isfinite(box).all(axis=1)
    values = dict.fromkeys(GEOMETRY_NAMES, math.nan)
    values["seen"] = float(visible.mean())
    values["confidence"] = float(weight[visible].mean()) if visible.any() else 0.0
    if visible.any():
        t = (np.flatnonzero(visible) - (len(box) - 1)) / fps
        values |= _fit_lines(box[visible], confidence_weights(weight[visible]), t, ground, camera)
    return np.array([values[name] for name in GEOMETRY_NAMES])


def _fit_lines(box: Floats, weight: Floats, t: Floats, ground: Ground, camera: Camera) -> dict[str, float]:
    """Compute the values of `geometry_vector` from n boxes (n, 4) at t ≤ 0 seconds from the window's end."""
    widths, heights = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    size = np.sqrt(widths * heights)
    level, slope = weighted_line(t, 1 / size, weight)
    level = max(level, 0.25 / float(size[-1]))  # an outlier must not make the size at the end infinite
    closing = slope / level  # vx / x at the end
    relative = size * level  # each size relative to the fitted one at the end
    u, v = (box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2
    (u0, du), (v0, dv) = weighted_line(t, u, weight), weighted_line(t, v, weight)
    aspect = math.exp(float(np.log(widths / heights).mean()) / 2)
    width, height = aspect / level, 1 / (aspect * level)
    below = float((weight * (box[:, 3] - ground.horizon) / relative).sum() / weight.sum())
    x_foot = float(ground.distance_from_bottom(ground.horizon + below))
    x_size = float(ground.distance_from_width(width))
    lateral, lateral_rate = weighted_line(t, (u - camera.cx) / (camera.fx * relative), weight)  # y/x at the end
    values = {
        "left": u0 - width / 2, "top": v0 - height / 2, "right": u0 + width / 2, "bottom": v0 + height / 2,
        "log_width": math.log(width), "log_height": math.log(height),
        "x_foot": x_foot, "x_size": x_size, "y_foot": x_foot * lateral, "y_size": x_size * lateral,
    }  # fmt: skip
    if len(t) < 2:
        return values
    residual = relative * (1 + closing * t) - 1  # relative to the fitted size at each frame
    precision = weight * MATCH_NOISE * (size / SIZE_NOISE) ** 2  # 1 / variance of the relative size
    chi_squared = (precision * residual**2).sum() / max(len(t) - 2, 1)
    mean_t = (precision * t).sum() / precision.sum()
    spread = (precision * (t - mean_t) ** 2).sum()
    return values | {
        "log_size_rate": -closing, "closing": closing, "u_rate": du, "v_rate": dv,
        "vx_foot": x_foot * closing, "vx_size": x_size * closing,
        "vy_foot": x_foot * lateral_rate, "vy_size": x_size * lateral_rate,
        "misfit": float(np.sqrt((weight * residual**2).sum() / weight.sum())),
        "closing_deviation": math.sqrt(max(1.0, chi_squared) / spread),
    }  # fmt: skip
