"""Self-calibration: where the road is, from the boxes of footage alone. NumPy only.

A vehicle's box has its lower edge at horizon + scale / x, is span / x wide and tall / x high. So over many boxes

    width = span / scale · (bottom − horizon)        height = tall / scale · (bottom − horizon)

The lines' common root is the horizon, and their slopes say how high the camera is, in units of the usual size of
vehicles. What is known beforehand (a calibration, the horizon near the principal row, the usual size of vehicles) is a
Gaussian prior, so that one box is enough and many outweigh a poor guess. Vehicles that look wider or taller than usual
(from the side, lorries) count less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from features._common.types import Floats
from stage2_temporal.vehicle.ground import HORIZON_DEVIATION, SCALE_DEVIATION, SIZE_SPREAD, WIDER, Ground
from stage2_temporal.vehicle.lines import HUBER

MEAN_SIZE_DEVIATION = 0.1  # of the log of the mean width and height of vehicles, between countries and data sets
BOTTOM_NOISE = 2.0  # px: of a lower edge, from nodding and from the box itself
LONGEST_STEP = (50.0, 0.3, 0.3, 0.3)  # of the horizon, px, and of logs
STEPS = 40  # of the Gauss-Newton iteration, which usually needs ten


@dataclass(frozen=True)
class Calibration:
    """A ground fitted to boxes."""

    ground: Ground  # with the deviations of horizon and scale
    cost: float  # robust sum of squared residuals, those from the prior included


def calibrate_ground(boxes: ArrayLike, prior: Ground, nod: float = HORIZON_DEVIATION) -> Calibration:
    """Fit horizon, scale, span and tall to boxes (m, 4) px, where empty ones and NaN are ignored.

    Args:
        prior: the ground that is expected, with the deviations of its horizon and scale.
        nod: deviation of the horizon from frame to frame, px, however well its mean is known.
    """
    box = np.asarray(boxes, np.float64).reshape(-1, 4)
    box = box[np.isfinite(box).all(axis=1) & (box[:, 2:] > box[:, :2]).all(axis=1)]
    bottom, sizes = box[:, 3], np.stack([box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]])  # (2, m)
    # wider than usual for its height says nothing about the width of cars, taller nothing about their height
    shape = np.log(sizes[0] / sizes[1]) - math.log(prior.span / prior.usual_tall)
    spread = np.hypot(SIZE_SPREAD, np.stack([np.maximum(shape, 0), np.maximum(-shape, 0)]))
    sizes[0] *= np.exp(-WIDER * np.maximum(-shape, 0))  # as wide as a car in its place
    centre = np.array([prior.horizon, *np.log([prior.scale, prior.span, prior.usual_tall])])
    deviation = np.array(
        [prior.horizon_deviation, prior.scale_deviation, MEAN_SIZE_DEVIATION, MEAN_SIZE_DEVIATION], np.float64
    )
    values = centre.copy()
    for _ in range(STEPS):
        residual, jacobian = _residuals(values, bottom, sizes, spread)
        weight = np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-12))
        normal = (jacobian * weight[:, None]).T @ jacobian + np.diag(1 / deviation**2)
        gradient = (jacobian * weight[:, None]).T @ residual + (values - centre) / deviation**2
        step = np.linalg.solve(normal, gradient)
        step /= max(1.0, float(np.abs(step / LONGEST_STEP).max()))
        values = values - step
        if np.abs(step / deviation).max() < 1e-4:
            break
    residual, _ = _residuals(values, bottom, sizes, spread)
    size = np.abs(residual)
    huber = np.where(size < HUBER, size**2, 2 * HUBER * size - HUBER**2)
    cost = float(huber.sum() + (((values - centre) / deviation) ** 2).sum())
    covariance = np.linalg.inv(normal)
    scale, span, tall = np.exp(values[1:]).tolist()
    ground = replace(
        prior,
        horizon=float(values[0]),
        scale=scale,
        span=span,
        tall=tall,
        horizon_deviation=math.hypot(math.sqrt(covariance[0, 0]), nod),
        scale_deviation=math.hypot(math.sqrt(covariance[1, 1]), SCALE_DEVIATION),
        width_spread=SIZE_SPREAD,
        height_spread=SIZE_SPREAD,
    )
    return Calibration(ground, cost)


def _residuals(values: Floats, bottom: Floats, sizes: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Residuals (2m,) in standard deviations of what is expected, and their derivatives (2m, 4)."""
    horizon, log_scale, *log_sizes = values.tolist()
    below = bottom - horizon
    residuals, jacobians = [], []
    for k, (size, share) in enumerate(zip(sizes, spread, strict=True)):
        slope = math.exp(log_sizes[k] - log_scale)
        noise = np.hypot(share * slope * np.maximum(below, BOTTOM_NOISE), slope * BOTTOM_NOISE)
        jacobian = np.zeros((len(size), 4))
        jacobian[:, 0], jacobian[:, 1], jacobian[:, 2 + k] = slope, slope * below, -slope * below
        residuals.append((size - slope * below) / noise)
        jacobians.append(jacobian / noise[:, None])
    return np.concatenate(residuals), np.concatenate(jacobians)
