"""Metrics, each beside the constant predictor's. Pure numpy.

The constant predictor answers every example with the mean of the training targets. A model that does not beat it has
learnt nothing, however small its error looks.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from features._common.types import Floats
from features.streams import UNITS
from stage2_temporal.evaluation.tusimple import ByDistance, by_distance

HARDLY_VARIES = 0.2  # spread ratio under which predictions count as constant


@dataclass(frozen=True)
class Component:
    """One target column's figures; see `Scores`."""

    rmse: float
    mae: float
    skill: float
    spread_ratio: float


@dataclass(frozen=True)
class Scores:
    """How good predictions are on one split.

    Attributes:
        rmse: root of the squared error's mean over all examples and components, as Keras' RootMeanSquaredError.
        mae: mean absolute error over all examples and components.
        skill: 1 − MSE / MSE of the constant; 0 is the constant, 1 is perfect, negative is worse than the constant.
            NaN where the constant makes no error.
        spread_ratio: root of the predictions' summed variance over the labels'; NaN where the labels don't vary.
        components: the same for each column by itself.
        ev: TuSimple's EV, (m/s)²; None where vx and vy are not among the columns or no example has a position.
        ep: its EP, m²; None where x and y are not among the columns.

    Where the columns have different units, skill and spread ratio weigh each by its labels' variance: metres a second
    and metres can't be summed. RMSE and MAE stay Keras' own and mean little then; a component's mean what they say.
    """

    rmse: float
    mae: float
    skill: float
    spread_ratio: float
    components: dict[str, Component]
    ev: ByDistance | None = None
    ep: ByDistance | None = None


def scores(
    true: Floats, predicted: Floats, constant: Floats, columns: tuple[str, ...], position: Floats | None = None
) -> Scores:
    """Every figure of one split.

    Args:
        true: (n, K) labels, n ≥ 1, all known.
        predicted: (n, K) predictions.
        constant: (K,) the constant predictor: the mean of the training targets.
        columns: names of the K columns.
        position: (n, 2) x (forward), y (right) of the vehicle in metres, NaN unknown.
    """
    error, baseline = predicted - true, constant - true
    weight = np.ones(len(columns)) if one_unit(columns) else 1 / np.maximum(true.std(axis=0), 1e-12)
    place = np.full((len(true), 2), math.nan) if position is None else position

    def by(names: tuple[str, str]) -> ByDistance | None:
        at = [columns.index(c) for c in names if c in columns]
        return by_distance(error[:, at], place) if len(at) == 2 else None

    components = {
        column: Component(
            rmse=_rms(error[:, k]),
            mae=float(np.abs(error[:, k]).mean()),
            skill=_skill(error[:, k], baseline[:, k]),
            spread_ratio=_spread(predicted[:, k], true[:, k]),
        )
        for k, column in enumerate(columns)
    }
    return Scores(
        rmse=_rms(error),
        mae=float(np.abs(error).mean()),
        skill=_skill(error * weight, baseline * weight),
        spread_ratio=_spread(predicted * weight, true * weight),
        components=components,
        ev=by(("vx", "vy")),
        ep=by(("x", "y")),
    )


def one_unit(columns: tuple[str, ...]) -> bool:
    """Whether all columns are in the same unit, or none is known."""
    return len({UNITS.get(c) for c in columns}) == 1


def _rms(error: Floats) -> float:
    return float(np.sqrt(np.mean(error**2)))


def _skill(error: Floats, baseline: Floats) -> float:
    worst = float(np.mean(baseline**2))
    return 1 - float(np.mean(error**2)) / worst if worst > 0 else math.nan


def _spread(predicted: Floats, true: Floats) -> float:
    varies = float(np.var(true, axis=0).sum())
    return math.sqrt(float(np.var(predicted, axis=0).sum()) / varies) if varies > 0 else math.nan


def verdict(split: str, model: Scores) -> tuple[str, bool]:
    """A sentence on a model's figures on a split, and whether it is no better than a constant."""
    on = f"on the {split} split"
    skill, spread = f"skill {model.skill:.2f}", f"spread ratio {model.spread_ratio:.2f}"
    if not math.isfinite(model.skill) or not math.isfinite(model.spread_ratio):
        return f"No verdict {on}: its labels do not vary.", False
    if model.spread_ratio < HARDLY_VARIES:
        return f"No better than a constant {on}: the predictions hardly vary ({spread}, {skill}).", True
    if model.skill <= 0:
        return f"No better than a constant {on}: its error is not smaller ({skill}, {spread}).", True
    return f"Better than a constant {on}: {skill}, {spread}.", False


def as_json(value: Scores) -> dict[str, Any]:
    """For metrics.json; NaN and infinity become null."""

    def clean(part: Any) -> Any:
        if isinstance(part, dict):
            return {k: clean(v) for k, v in part.items()}
        return None if isinstance(part, float) and not math.isfinite(part) else part

    cleaned: dict[str, Any] = clean(asdict(value))
    return cleaned
