"""The road as a camera sees it, fitted to a run's training labels. NumPy only.

Every deviation is a standard deviation: how sure a quantity is decides how much it counts (`vehicle_state`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from features._common.types import Floats
from features.errors import DataError
from features.sequences import Camera
from stage2_temporal.vehicle.lines import huber_regression

MAX_DISTANCE = 200.0  # m: also for lower edges at or above the horizon
HORIZON_DEVIATION = 3.0  # px: a quarter of a degree, by which cars nod
SCALE_DEVIATION = 0.03  # of the camera's height above a road that is not quite flat
SIZE_SPREAD = 0.12  # of the log of cars' widths and heights; lorries are told by their shape
WIDER = 0.4  # log of width per log of height relative to width: vans and lorries are wider as well as taller than cars
USUAL_ASPECT = 1.2  # width over height of cars seen from behind
FREEDOM = 4.0  # labels that these count for, next to the labels' own deviations
MIN_LABELS = 3  # labels with box and position that a ground needs
MIN_TRACKED_LABELS = 8  # labels with a tracked box and vx that it needs instead


@dataclass(frozen=True)
class Ground:
    """Flat ground as a camera sees it, and the usual size of vehicles on it."""

    horizon: float  # row of points at infinite distance, px
    scale: float  # (row − horizon) · distance of a point on the ground, px·m; in theory fy · camera height
    span: float  # box width · distance, px·m, the median over the labels; in theory fx · the usual width of vehicles
    tall: float | None = None  # box height · distance, px·m, likewise; None: unknown, as in runs of older versions
    horizon_deviation: float = HORIZON_DEVIATION  # px
    scale_deviation: float = SCALE_DEVIATION  # of its log
    width_spread: float = SIZE_SPREAD  # standard deviation of the log of vehicles' widths …
    height_spread: float = SIZE_SPREAD  # … and heights

    @property
    def usual_tall(self) -> float:
        """`tall`, or what it usually is for vehicles of this span."""
        return self.span / USUAL_ASPECT if self.tall is None else self.tall

    def resized(self, x: float, y: float) -> Ground:
        """The same ground in frames that are x times as wide and y times as high."""
        return replace(
            self,
            horizon=(self.horizon + 0.5) * y - 0.5,  # pixel centres are whole numbers
            scale=self.scale * y,
            span=self.span * x,
            tall=self.usual_tall * y,
            horizon_deviation=self.horizon_deviation * y,
        )

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
    return _with_sizes(horizon, scale, box, x)


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
    return _with_sizes(horizon, scale, box, scale / np.maximum(bottom - horizon, 1.0))


def _with_sizes(horizon: float, scale: float, box: Floats, x: Floats) -> Ground:
    """The ground with the usual size of the vehicles in boxes (m, 4) at distances x (m,), and how much all vary."""
    log_width, log_height = np.log((box[:, 2] - box[:, 0]) * x), np.log((box[:, 3] - box[:, 1]) * x)
    deviation = max(_robust_deviation(box[:, 3] - horizon - scale / x, HORIZON_DEVIATION), 0.5)
    return Ground(
        horizon,
        scale,
        span=float(np.exp(np.median(log_width))),
        tall=float(np.exp(np.median(log_height))),
        horizon_deviation=deviation,
        scale_deviation=SCALE_DEVIATION * min(deviation / HORIZON_DEVIATION, 1.0),  # a road without nods is also flat
        width_spread=_robust_deviation(log_width, SIZE_SPREAD),
        height_spread=_robust_deviation(log_height, SIZE_SPREAD),
    )


def _robust_deviation(values: Floats, usual: float) -> float:
    """The standard deviation of values (m,) by their median absolute deviation, pooled with the usual one."""
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return math.sqrt((FREEDOM * usual**2 + len(values) * deviation**2) / (FREEDOM + len(values)))


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
