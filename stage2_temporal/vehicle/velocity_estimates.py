"""Geometry vectors inside a model's graph: gaps filled, outliers clipped, uncertain velocities shrunk to the median.

A velocity of a lost or hidden vehicle can be wrong by tens of m/s, but its deviation tells so. Relative velocities are
mostly like the training's, m ± v, and sometimes an oncoming vehicle's. So the prior is a mixture of two Gaussians, and
the best guess for an estimate with deviation s is the mean of its posterior: m + (estimate − m) / (1 + (s / v)²) where
the estimate is near m, and almost the estimate itself where it is far from m but certain. The deviations are multiplied
by `noise_scale`, which is fitted too. Keras operations take tensors and arrays, so that graph and fit share the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import keras
import numpy as np

from features._common.types import Floats, Tensor
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES
from stage2_temporal.vehicle.lines import HUBER, huber_regression

VELOCITIES, DEVIATIONS = ("vx", "vy"), ("vx_deviation", "vy_deviation")
POSITIONS = ("x", "y")
STATES = ("x", "y", "closing", "seen", "confidence")  # the same for all cameras
UNKNOWN_DEVIATION = 1e3  # the deviation of a track without a rate
RARE_SPREAD, RARE_SHARE = 15.0, 0.05  # m/s: the spread of velocities that are unlike the training's, and their share
LARGEST = {"x": 200.0, "y": 100.0, "vx": 60.0, "vy": 40.0}  # m and m/s, not clipped below, whatever the training had
NOISE_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # candidates; 1 takes the deviations as they are
RIDGE_PENALTY = 1e-4  # of the robust fit, per label, on features of deviation 1


@dataclass(frozen=True)
class GeometryNormaliser:
    """Cleans geometry vectors and turns them into the inputs of regressors.

    Values are clipped to limits outside the middle 90 % of the training vectors by twice its width, which is at eight
    standard deviations of a Gaussian; positions and velocities at least to `LARGEST`, since other roads have more.
    """

    fill: Floats  # (F,) for NaN: the training vectors' medians, and `UNKNOWN_DEVIATION` for deviations
    low: Floats  # (F,) limits
    high: Floats
    median: Floats  # (2,) of `VELOCITIES`
    spread: Floats  # (2,) their robust standard deviation
    noise_scale: float = 1.0  # of the deviations of velocities

    @classmethod
    def of(cls, vectors: Floats) -> GeometryNormaliser:
        """Make one from training vectors (n, F), NaN where unknown."""
        known = np.isfinite(vectors)
        columns = known.any(axis=0)
        masked = np.where(known, vectors, np.nan)[:, columns]
        fill, low, high, spread = (np.zeros(vectors.shape[1]) for _ in range(4))
        low[columns], fill[columns], high[columns] = np.nanquantile(masked, (0.05, 0.5, 0.95), axis=0)
        low, high = 3 * low - 2 * high, 3 * high - 2 * low
        spread[columns] = 1.4826 * np.nanmedian(np.abs(masked - fill[columns]), axis=0)
        for name, limit in LARGEST.items():
            low[_INDEX[name]] = min(low[_INDEX[name]], -limit)
            high[_INDEX[name]] = max(high[_INDEX[name]], limit)
        for name in ("closing_deviation", *DEVIATIONS):
            low[_INDEX[name]] = 0.0
            fill[_INDEX[name]] = high[_INDEX[name]] = UNKNOWN_DEVIATION
        velocities = [_INDEX[name] for name in VELOCITIES]
        return cls(fill, low, high, fill[velocities], np.maximum(spread[velocities], 1e-3))

    def clean(self, geometry: Tensor) -> Tensor:
        """Fill NaN and clip outliers of geometry vectors (batch, F)."""
        fill, low, high = (value.astype(np.float32) for value in (self.fill, self.low, self.high))
        # NaN does not equal itself; LiteRT has no isnan
        filled = keras.ops.where(keras.ops.equal(geometry, geometry), geometry, fill)
        return keras.ops.minimum(keras.ops.maximum(filled, low), high)  # Keras' own clip is not saved with arrays

    def shrinkage(self, clean: Tensor) -> Tensor:
        """Compute the factors (batch, 2) by which velocities are shrunk to their median, from cleaned vectors."""
        deviation = self.noise_scale * select_columns(clean, *DEVIATIONS)
        noise, distance = deviation * deviation, self._from_median(clean)
        usual, rare = (self.spread**2).astype(np.float32), RARE_SPREAD**2
        # twice the log likelihood of each part of the mixture
        usual_fit = -distance * distance / (noise + usual) - keras.ops.log(noise + usual)
        rare_fit = -distance * distance / (noise + rare) - keras.ops.log(noise + rare)
        odds = 2 * math.log(RARE_SHARE / (1 - RARE_SHARE))
        is_rare = keras.ops.sigmoid((rare_fit - usual_fit + odds) / 2)
        usual_factor, rare_factor = keras.ops.divide(usual, noise + usual), keras.ops.divide(rare, noise + rare)
        return (1.0 - is_rare) * usual_factor + is_rare * rare_factor

    def _from_median(self, clean: Tensor) -> Tensor:
        return select_columns(clean, *VELOCITIES) - self.median.astype(np.float32)

    def estimates(self, clean: Tensor) -> Tensor:
        """Compute a linear regressor's inputs (batch, 4): shrunk `VELOCITIES` minus their median, and `POSITIONS`."""
        positions = select_columns(clean, *POSITIONS)
        return keras.ops.concatenate([self.shrinkage(clean) * self._from_median(clean), positions], axis=-1)

    def states(self, clean: Tensor) -> Tensor:
        """Compute a network's inputs (batch, 12): shrunk velocities, `STATES`, and how certain these are."""
        names = ("misfit", *DEVIATIONS)
        logs = [keras.ops.log(select_columns(clean, name) + 1e-4) for name in names]
        velocities = self.estimates(clean)[:, : len(VELOCITIES)]
        return keras.ops.concatenate(
            [velocities, select_columns(clean, *STATES), self.shrinkage(clean), *logs], axis=-1
        )


@dataclass(frozen=True)
class RobustLinearModel:
    """A linear model on `GeometryNormaliser.estimates`."""

    normaliser: GeometryNormaliser
    kernel: Floats  # (4, K), in the targets' unit
    bias: Floats  # (K,)

    def __call__(self, clean: Tensor) -> Tensor:
        """Predict (batch, K) from cleaned vectors; in a graph, the coefficients are constants."""
        kernel, bias = self.kernel.astype(np.float32), self.bias.astype(np.float32)
        return keras.ops.matmul(self.normaliser.estimates(clean), kernel) + bias


def fit_robust_linear_model(vectors: Floats, targets: Floats, alpha: float = RIDGE_PENALTY) -> RobustLinearModel:
    """Fit vectors (n, F), NaN where unknown, to targets (n, K), with the noise scale that gives the smallest error.

    Where the estimates themselves (in m and m/s) are as good as a regression on them, by Schwarz's criterion, they are
    the prediction as they are, since that holds on other roads and for other cameras too.

    A single hidden vehicle raises the EV of ordinary least squares from 0.03 to 0.25, but barely that of this model.
    """
    normaliser = GeometryNormaliser.of(vectors)
    scale = np.maximum(targets.std(axis=0), 1e-9)
    clean = normaliser.clean(vectors.astype(np.float32))
    scaled = [replace(normaliser, noise_scale=noise_scale) for noise_scale in NOISE_SCALES]

    def errors(model: RobustLinearModel) -> Floats:
        return np.asarray((np.asarray(model(clean)) - targets) / scale)

    regression, unchanged = (
        min(
            (fit(n, clean, targets, scale, alpha) for n in scaled), key=lambda model: float(np.mean(errors(model) ** 2))
        )
        for fit in (_fit_linear_model, _select_estimates)
    )
    losses = [_huber_losses(*pair) for pair in zip(errors(regression).T, errors(unchanged).T, strict=True)]
    parameters, count = 1 + regression.kernel.shape[0], len(targets)
    as_good = all(count * np.log(other / max(loss, 1e-300)) < parameters * np.log(count) for loss, other in losses)
    return unchanged if as_good else regression


def _fit_linear_model(
    normaliser: GeometryNormaliser, clean: Tensor, targets: Floats, scale: Floats, alpha: float
) -> RobustLinearModel:
    estimates = np.asarray(normaliser.estimates(clean), np.float64)
    mean, deviation = estimates.mean(axis=0), estimates.std(axis=0)
    deviation[deviation <= 1e-9] = 1.0
    standardised = (estimates - mean) / deviation
    fits = [huber_regression(standardised, target, alpha) for target in (targets / scale).T]
    coefficients = np.stack(fits, axis=1) * scale
    kernel = coefficients[1:] / deviation[:, None]
    return RobustLinearModel(normaliser, kernel, coefficients[0] - mean @ kernel)


def _select_estimates(normaliser: GeometryNormaliser, clean: Tensor, targets: Floats, *_: object) -> RobustLinearModel:
    """The model that predicts each target by the estimate, as it is, that is nearest to it."""
    offset = np.r_[normaliser.median, np.zeros(len(POSITIONS))]
    values = np.asarray(normaliser.estimates(clean), np.float64) + offset
    nearest = np.array([int(np.argmin(np.abs(values - target[:, None]).mean(axis=0))) for target in targets.T])
    return RobustLinearModel(normaliser, np.eye(len(offset))[:, nearest], offset[nearest])


def _huber_losses(errors: Floats, others: Floats) -> tuple[float, float]:
    """The mean Huber losses of two errors (n,), whose robust deviation is taken to be that of the first."""
    limit = max(HUBER * 1.4826 * float(np.median(np.abs(errors))), 1e-12)
    first, second = (np.abs(values) for values in (errors, others))
    losses = [np.where(size < limit, size**2, 2 * limit * size - limit**2).mean() for size in (first, second)]
    return float(losses[0]), float(losses[1])


def select_columns(vectors: Tensor, *names: str) -> Tensor:
    """Select columns of geometry vectors (batch, F) by their `GEOMETRY_NAMES`."""
    return keras.ops.concatenate([vectors[:, _INDEX[name] : _INDEX[name] + 1] for name in names], axis=-1)


_INDEX = {name: i for i, name in enumerate(GEOMETRY_NAMES)}
