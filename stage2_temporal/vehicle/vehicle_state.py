"""Position and velocity of a tracked vehicle, with their standard deviations. NumPy only.

The distance is known three times: from the lower edge, whose error grows with the square of the distance because the
horizon is known only to a few pixels; and from the width and the height, whose errors are a share of the distance
because vehicles differ in size. The rate of approach is known twice. All are averaged by inverse variance:

    foot     x = scale / (bottom − horizon)    deviation of log x: x / scale · deviation of the row, and of the scale
    width    x = span / width                  the spread of vehicles' widths; more if it looks wider than usual
    height   x = tall / height                 the spread of their heights; more if it looks taller than usual
    closing  vx / x from 1/width and 1/height  a vehicle that turns gets wider without approaching, so where both
                                               differ by more than their noise, that counts as error of the width's
"""

from __future__ import annotations

import math

import numpy as np

from features._common.types import Floats
from features.sequences import Camera
from stage2_temporal.vehicle.ground import MAX_DISTANCE, Ground
from stage2_temporal.vehicle.lines import weighted_line

STATE_NAMES = ("x", "y", "vx", "vy", "x_deviation", "vx_deviation", "vy_deviation")
PRIOR_FREEDOM = 4.0  # degrees of freedom that the usual noise counts for, next to a track's own residuals


def vehicle_state(
    box: Floats, weight: Floats, t: Floats, ground: Ground, camera: Camera, noise: float
) -> dict[str, float]:
    """Estimate position and velocity at t = 0 from n ≥ 1 boxes.

    Args:
        box: (n, 4) left, top, right, bottom in px.
        weight: (n,) inverse variances relative to a well matched box's.
        t: (n,) seconds from the window's last frame, at most 0.
        noise: the usual standard deviation of a well matched box's width and height, px.

    Returns:
        By `STATE_NAMES`: x and y in m, vx and vy in m/s, and standard deviations of x, vx and vy in the same units.
        With only one box, velocities and their deviations are NaN.
    """
    widths, heights = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    (by_width, width_variance), (by_height, height_variance) = (
        _closing(size, weight, t, noise) for size in (widths, heights)
    )
    # what a turning vehicle's width changes by without approaching
    turning = max(0.0, (by_width - by_height) ** 2 - width_variance - height_variance) if len(t) > 1 else 0.0
    precision = 1 / (width_variance + turning), 1 / height_variance
    closing = (precision[0] * by_width + precision[1] * by_height) / sum(precision)
    growth = np.maximum(1 + closing * t, 0.1)  # distance at each frame, relative to that at the end
    x, deviation = _distance(box, weight, growth, ground)

    lateral_of = (((box[:, 0] + box[:, 2]) / 2 - camera.cx) / camera.fx) * growth
    lateral, rate = weighted_line(t, lateral_of, weight)  # y / x at the end, and its change in 1/s
    state = {"x": x, "y": x * lateral, "x_deviation": x * deviation}
    if len(t) < 2:
        return state | dict.fromkeys(("vx", "vy", "vx_deviation", "vy_deviation"), math.nan)
    residual = lateral_of - lateral - rate * t
    variance = _pooled_variance((noise / 2 / camera.fx) ** 2, float((weight * residual**2).sum()), len(t))
    rate_variance = variance / _variation(t, weight)
    vx, vy = x * closing, x * rate
    # where the width changes without approach, the box's centre moves over the vehicle by up to half of that
    sideways = math.hypot(math.sqrt(rate_variance), math.sqrt(turning) * float(widths[-1]) / camera.fx / 2)
    return state | {
        "vx": vx, "vy": vy,
        "vx_deviation": math.hypot(x / math.sqrt(sum(precision)), vx * deviation),
        "vy_deviation": math.hypot(x * sideways, vy * deviation),
    }  # fmt: skip


def size_residuals(box: Floats, weight: Floats, t: Floats) -> tuple[float, int]:
    """Return the sum of squared residuals of widths and heights about their lines, px², and its degrees of freedom."""
    if len(t) < 3:
        return 0.0, 0
    sizes = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    return sum(_residual_sum(size, weight, t, *_line(size, weight, t)) for size in sizes), 2 * (len(t) - 2)


def _closing(size: Floats, weight: Floats, t: Floats, noise: float) -> tuple[float, float]:
    """Return the rate of approach vx / x at the end in 1/s, from one side's length (n,), and its variance."""
    if len(t) < 2:
        return 0.0, 1.0
    level, slope = _line(size, weight, t)
    variance = _pooled_variance(noise**2, _residual_sum(size, weight, t, level, slope), len(t))
    return slope / level, variance / _variation(t, weight * size**2)


def _line(size: Floats, weight: Floats, t: Floats) -> tuple[float, float]:
    """1/size over time as (level, slope); an outlier must not make the size at the end infinite."""
    level, slope = weighted_line(t, 1 / size, weight)
    return max(level, 0.25 / float(size[-1])), slope


def _residual_sum(size: Floats, weight: Floats, t: Floats, level: float, slope: float) -> float:
    """The weighted sum of squared residuals of sizes about their line, px²."""
    residual = (size * (level + slope * t) - 1) * size
    return float((weight * residual**2).sum())


def _pooled_variance(usual: float, squares: float, count: int) -> float:
    """Pool a track's residuals with the usual variance: two boxes, which leave no residual, have the usual one."""
    return (PRIOR_FREEDOM * usual + squares) / (PRIOR_FREEDOM + count - 2)


def _variation(t: Floats, precision: Floats) -> float:
    """The weighted sum of squares of times about their mean."""
    mean = float((precision * t).sum() / precision.sum())
    return max(float((precision * (t - mean) ** 2).sum()), 1e-12)


def _distance(box: Floats, weight: Floats, growth: Floats, ground: Ground) -> tuple[float, float]:
    """Average the three distances at the end, in logs: metres, and the relative standard deviation."""

    def at_end(values: Floats) -> float:
        return float((weight * values * growth).sum() / weight.sum())

    width, height = at_end(box[:, 2] - box[:, 0]), at_end(box[:, 3] - box[:, 1])
    foot = float(ground.distance_from_bottom(ground.horizon + at_end(box[:, 3] - ground.horizon)))
    # wider than usual for its height: seen from the side, or long; taller: a truck, whose height says little
    shape = math.log(width / height) - math.log(ground.span / ground.usual_tall)
    estimates = (
        (foot, math.hypot(foot / ground.scale * ground.horizon_deviation, ground.scale_deviation)),
        (ground.span / width, math.hypot(ground.width_spread, max(shape, 0.0))),
        (ground.usual_tall / height, math.hypot(ground.height_spread, max(-shape, 0.0))),
    )
    precision = [1 / deviation**2 for _, deviation in estimates]
    log_x = sum(p * math.log(x) for p, (x, _) in zip(precision, estimates, strict=True)) / sum(precision)
    return min(math.exp(log_x), MAX_DISTANCE), 1 / math.sqrt(sum(precision))
