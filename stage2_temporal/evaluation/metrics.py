"""Metrics of predictions, always next to those of the constant predictor.

The constant predictor answers every example with the mean of the training targets. A model that does not beat it has
learned nothing, however small its error looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.streams import UNITS
from stage2_temporal.evaluation.tusimple import ByDistance, Metric, by_distance

BOOTSTRAP_DRAWS = 2000
MIN_SPREAD_RATIO = 0.2  # below this, predictions count as constant


@dataclass(frozen=True)
class ComponentScores:
    """Metrics of one target column; see `Scores`."""

    rmse: Metric
    mae: Metric
    skill: Metric
    spread_ratio: Metric


@dataclass(frozen=True)
class Scores(ComponentScores):
    """How good predictions are on one split.

    Attributes:
        rmse: root mean squared error over all examples and components, as Keras' RootMeanSquaredError computes it.
        mae: mean absolute error over all examples and components.
        skill: 1 − MSE / MSE of the constant predictor: 0 is the constant, 1 is perfect; NaN if it makes no error.
        spread_ratio: root of the predictions' summed variance over that of the labels; NaN if the labels don't vary.
        components: the same for each column by itself.
        ev: TuSimple's velocity error, (m/s)²; None unless vx and vy are columns and some position is known.
        ep: TuSimple's position error, m²; None unless x and y are columns.

    If the columns differ in unit, skill and spread ratio weight each by the variance of its labels. RMSE and MAE then
    mix units and mean little; those of a single component are sound.
    """

    components: dict[str, ComponentScores]
    ev: ByDistance | None = None
    ep: ByDistance | None = None


def scores(
    true: Floats, predicted: Floats, constant: Floats, columns: tuple[str, ...], position: Floats | None = None
) -> Scores:
    """Compute every metric of one split.

    Args:
        true, predicted: (n, K) labels, n ≥ 1, all known, and predictions for K columns.
        constant: (K,) the constant predictor: the mean of the training targets.
        position: (n, 2) x (forward), y (right) of the vehicle in metres; NaN where unknown.
    """
    error = predicted - true
    position = np.full((len(true), 2), math.nan) if position is None else position

    def tusimple_error(names: tuple[str, str]) -> ByDistance | None:
        indices = [columns.index(name) for name in names if name in columns]
        return by_distance(error[:, indices], position) if len(indices) == 2 else None

    return Scores(
        **_basic_scores(true, predicted, constant, _weights(true, columns)),
        components={
            column: ComponentScores(**_basic_scores(true[:, k], predicted[:, k], constant[..., k]))
            for k, column in enumerate(columns)
        },
        ev=tusimple_error(("vx", "vy")),
        ep=tusimple_error(("x", "y")),
    )


def skill_interval(
    true: Floats, predicted: Floats, constant: Floats, columns: tuple[str, ...], groups: NDArray[np.int64]
) -> tuple[float, float] | None:
    """The skill's 95 % interval by the percentile bootstrap over groups, which are drawn with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; 2,000 draws.

    Args:
        groups: (n,) the sequence of each example, since examples of one sequence resemble each other.

    Returns:
        The lower and upper bound; None with fewer than two groups, or if the constant makes no error.
    """
    weight = _weights(true, columns)
    _, group = np.unique(groups, return_inverse=True)
    errors = [np.bincount(group, (((v - true) * weight) ** 2).sum(axis=1)) for v in (predicted, constant)]
    count = len(errors[0])
    if count < 2 or not errors[1].sum() > 0:
        return None
    draws = np.random.default_rng(0).integers(count, size=(BOOTSTRAP_DRAWS, count))
    model, reference = (error[draws].sum(axis=1) for error in errors)
    has_skill = reference > 0  # a draw of sequences for which the constant is exact has none
    low, high = np.quantile(1 - model[has_skill] / reference[has_skill], [0.025, 0.975])
    return float(low), float(high)


def have_one_unit(columns: tuple[str, ...]) -> bool:
    """Whether all columns have the same unit, or no unit is known."""
    return len({UNITS.get(column) for column in columns}) == 1


def _weights(true: Floats, columns: tuple[str, ...]) -> Floats:
    """The weight of each column's errors: 1 or, if the columns differ in unit, 1 / standard deviation of its labels."""
    return np.ones(len(columns)) if have_one_unit(columns) else 1 / np.maximum(true.std(axis=0), 1e-12)


def verdict(split: str, model: Scores) -> tuple[str, bool]:
    """Sum up a model's metrics on a split: a sentence, and whether the model is no better than a constant."""
    where = f"on the {split} split"
    skill, spread = f"skill {model.skill:.2f}", f"spread ratio {model.spread_ratio:.2f}"
    if not math.isfinite(model.skill) or not math.isfinite(model.spread_ratio):
        return f"No verdict {where}: the labels do not vary.", False
    if model.spread_ratio < MIN_SPREAD_RATIO:
        return f"No better than a constant {where}: the predictions barely vary ({spread}, {skill}).", True
    if model.skill <= 0:
        return f"No better than a constant {where}: the error is not smaller ({skill}, {spread}).", True
    return f"Better than a constant {where}: {skill}, {spread}.", False


def _basic_scores(true: Floats, predicted: Floats, constant: Floats, weight: Floats | float = 1.0) -> dict[str, float]:
    error = predicted - true
    mse, constant_mse = (float(np.mean((e * weight) ** 2)) for e in (error, constant - true))
    variance, label_variance = (float(np.var(v * weight, axis=0).sum()) for v in (predicted, true))
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.abs(error).mean()),
        "skill": 1 - mse / constant_mse if constant_mse > 0 else math.nan,
        "spread_ratio": math.sqrt(variance / label_variance) if label_variance > 0 else math.nan,
    }
