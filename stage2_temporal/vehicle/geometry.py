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

import numpy as np
from numpy.typing import ArrayLike

from features._common.types import Floats
from features.sequences import Camera
from stage2_temporal.vehicle.ground import Ground
from stage2_temporal.vehicle.lines import weighted_line
from stage2_temporal.vehicle.vehicle_state import STATE_NAMES, vehicle_state

SIZE_NOISE = 0.05  # px: standard deviation of the size of a well matched box
MATCH_NOISE = 0.02  # 1 − correlation² of even a perfect match, from the sensor and compression

TRACK_NAMES = (  # all that runs of older versions read
    "left", "top", "right", "bottom", "log_width", "log_height",
    "log_size_rate", "closing", "u_rate", "v_rate",
    "x_foot", "x_size", "y_foot", "y_size",
    "vx_foot", "vx_size", "vy_foot", "vy_size",
    "seen", "confidence", "misfit", "closing_deviation",
)  # fmt: skip
GEOMETRY_NAMES = TRACK_NAMES + STATE_NAMES


def confidence_weights(confidence: ArrayLike) -> Floats:
    """Turn correlations c into weights for least squares: the ratio of noise to signal power is about 1 − c²."""
    c = np.clip(np.asarray(confidence, np.float64), 0, 1)
    return np.asarray(1 / (1 + MATCH_NOISE - c**2))


def geometry_vector(
    boxes: ArrayLike,
    confidence: ArrayLike,
    times: ArrayLike,
    ground: Ground,
    camera: Camera,
    noise: float = SIZE_NOISE,
) -> Floats:
    """Compute the geometry of a vehicle at a window's last frame, in the order of `GEOMETRY_NAMES`.

    Every quantity is that of a weighted straight line through the window, read at the last frame: the box's edges and
    centre over time, and 1/size, which is straight at constant velocity. `x_foot` uses the lower edges of all frames:
    the mean of (bottom − horizon) / size over the window, times the size at its end.

    Args:
        boxes, confidence: (T, 4) px, NaN where lost; and (T,) 0 to 1, ones for boxes that were supplied.
        times: (T,) of the frames, in seconds from the last one.
        ground, camera: of the frames that the boxes are in.
        noise: the usual standard deviation of the width and height of a well matched box, px; see `vehicle_state`.

    Returns:
        (len(GEOMETRY_NAMES),): edges in px; log sizes; `log_size_rate` and `closing` = vx/x in 1/s, `u_rate` and
        `v_rate` of the centre in px/s; distances in m and velocities in m/s, from the lower edge (`_foot`) and from the
        width (`_size`); `seen`, the share of frames with a box; `confidence`, their mean; `misfit`, the deviation of
        the relative size from the line; `closing_deviation`, the expected standard deviation of `closing`, increased
        where the misfit is larger than expected (Birge, 1932); and the values of `vehicle_state`. Without a box all but
        `seen` and `confidence` are NaN; with only one box, rates, velocities, misfit and their deviations are.
    """
    box, weight = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(confidence, np.float64)
    visible = np.isfinite(box).all(axis=1)
    values = dict.fromkeys(GEOMETRY_NAMES, math.nan)
    values["seen"] = float(visible.mean())
    values["confidence"] = float(weight[visible].mean()) if visible.any() else 0.0
    if visible.any():
        box, weight = box[visible], confidence_weights(weight[visible])
        t = np.asarray(times, np.float64)[visible]
        values |= _fit_lines(box, weight, t, ground, camera)
        values |= vehicle_state(box, MATCH_NOISE * weight, t, ground, camera, noise)
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
