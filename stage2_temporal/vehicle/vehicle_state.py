"""Position and velocity of a tracked vehicle, with their standard deviations. NumPy only.

The distance is known three times: from the lower edge, whose error grows with the square of the distance because the
horizon is known only to a few pixels; and from the width and the height, whose errors are a share of the distance
because vehicles differ in size. The rate of approach is known twice. All are averaged by inverse variance:

    foot     x = scale / (bottom − horizon)    deviation of log x: x / scale · deviation of the row, and of the scale
    width    x = span / width                  the spread of vehicles' widths; more if it looks wider than usual
                                               for its height; what looks taller, a van or a lorry, is wider than a car
    height   x = tall / height                 the spread of their heights; more if it looks taller than usual
    closing  vx / x from 1/width and 1/height  a vehicle that turns gets wider without approaching, so where both
                                               differ by more than their noise, that counts as error of the width's
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from features._common.types import Floats
from features.sequences import Camera
from stage2_temporal.vehicle.ground import MAX_DISTANCE, WIDER, Ground
from stage2_temporal.vehicle.lines import weighted_line

STATE_NAMES = ("x", "y", "vx", "vy", "x_deviation", "vx_deviation", "vy_deviation")
ACCELERATION = 0.5  # m/s²: standard deviation of the relative accelerations of vehicles
MAX_CLOSING = 10.0  # 1/s: of a vehicle that reaches the camera in a tenth of a second
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
    nearly = float(ground.distance_from_width(widths[-1]))
    by_width, by_height = (_approach(size, weight, t, noise, nearly) for size in (widths, heights))
    # what a turning vehicle's width changes by without approaching
    turning = max(0.0, (by_width.closing - by_height.closing) ** 2 - by_width.variance - by_height.variance)
    precision = 1 / (by_width.variance + turning), 1 / by_height.variance
    share = precision[0] / sum(precision)
    closing = share * by_width.closing + (1 - share) * by_height.closing
    bend = share * by_width.bend + (1 - share) * by_height.bend
    growth = np.maximum(1 + closing * t + bend * t**2, 0.1)  # distance at each frame, relative to that at the end
    x, deviation = _distance(box, weight, growth, ground)

    lateral_of = (((box[:, 0] + box[:, 2]) / 2 - camera.cx) / camera.fx) * growth
    lateral, rate = weighted_line(t, lateral_of, weight)  # y / x at the end, and its change in 1/s
    state = {"x": x, "y": x * lateral, "x_deviation": x * deviation}
    if len(t) < 2:
        return state | dict.fromkeys(("vx", "vy", "vx_deviation", "vy_deviation"), math.nan)
    residual = lateral_of - lateral - rate * t
    variance = _pooled_variance((noise / 2 / camera.fx) ** 2, float((weight * residual**2).sum()), len(t) - 2)
    rate_variance = variance / _variation(t, weight)
    vx, vy = x * closing, x * rate
    # where the width changes without approach, the box's centre moves over the vehicle by up to half of that
    sideways = math.hypot(math.sqrt(rate_variance), math.sqrt(turning) * float(widths[-1]) / camera.fx / 2)
    return state | {
        "vx": vx, "vy": vy,
        "vx_deviation": math.hypot(x / math.sqrt(sum(precision)), vx * deviation),
        "vy_deviation": math.hypot(x * sideways, vy * deviation),
    }  # fmt: skip


class Approach(NamedTuple):
    """How a vehicle approaches, by one side of its box: x(t) / x(0) = 1 + closing · t + bend · t²."""

    closing: float  # vx / x at the end, 1/s
    bend: float  # 1/s²
    variance: float  # of `closing`


def _approach(size: Floats, weight: Floats, t: Floats, noise: float, x: float) -> Approach:
    """Fit 1/size (n,) over time by a parabola whose bend is that of an ordinary acceleration at a distance of x m.

    Where boxes are exact, it follows a braking car to its last frame; where they are noisy, it is nearly a line.
    """
    distance = float(size[-1]) / size  # relative to the last
    design = np.stack([np.ones(len(t)), t, t**2], axis=1)
    prior = np.diag([0.0, 1 / MAX_CLOSING**2, (2 * x / ACCELERATION) ** 2])
    variance = noise**2
    for _ in range(2):  # first with the usual noise, then with the track's own
        precision = weight * (size / distance) ** 2 / variance
        normal = (design * precision[:, None]).T @ design + prior
        fit = np.linalg.solve(normal, design.T @ (precision * distance))
        residual = (distance - design @ fit) * size / distance  # px
        variance = _pooled_variance(noise**2, float((weight * residual**2).sum()), len(t) - 3)
    precision = weight * (size / distance) ** 2 / variance
    covariance = np.linalg.inv((design * precision[:, None]).T @ design + prior)
    level = max(float(fit[0]), 0.25)  # an outlier must not make the size at the end infinite
    return Approach(float(fit[1]) / level, float(fit[2]) / level, float(covariance[1, 1]) / level**2)


def _pooled_variance(usual: float, squares: float, freedom: int) -> float:
    """Pool a track's residuals with the usual variance: few boxes, which leave no residual, have the usual one."""
    return (PRIOR_FREEDOM * usual + squares) / (PRIOR_FREEDOM + max(freedom, 0))


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
        (ground.span * math.exp(WIDER * max(-shape, 0.0)) / width, math.hypot(ground.width_spread, max(shape, 0.0))),
        (ground.usual_tall / height, math.hypot(ground.height_spread, max(-shape, 0.0))),
    )
    precision = [1 / deviation**2 for _, deviation in estimates]
    log_x = sum(p * math.log(x) for p, (x, _) in zip(precision, estimates, strict=True)) / sum(precision)
    return min(math.exp(log_x), MAX_DISTANCE), 1 / math.sqrt(sum(precision))
