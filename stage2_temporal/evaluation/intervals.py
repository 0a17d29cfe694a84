"""Prediction intervals by split conformal prediction, from the errors on the validation sequences.

An example's score is its error in units of the error's expected size, `ErrorScale`, so that intervals are wide where
errors are large (J. Lei et al., "Distribution-free predictive inference for regression", 2018, section 5.2). Windows of
one sequence resemble each other, so that sequences are exchangeable but windows are not: every validation sequence has
the same weight, which its windows share, and one more stands at infinity for the sequence that is predicted. This is
hierarchical conformal prediction (Y. Lee, R. Barber, R. Willett, "Distribution-free inference with hierarchical data",
2023); with one window per sequence it is the usual quantile of rank ⌈(n + 1) · level⌉.

A new example's interval contains the truth with a probability of at least the level, over the choice of the validation
sequences and of a sequence like them, whatever the errors' distribution. Nothing is claimed for other footage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from features._common.types import Floats

SCALE_ITERATIONS = 10
MIN_CONSTANT = 0.1  # least constant part of an error's expected size, relative to the mean error
WEIGHT_ROUNDING = 1e-9  # of sums of weights


@dataclass(frozen=True)
class IntervalScores:
    """How good the intervals of one target are on one split.

    Attributes:
        coverage: share of examples whose interval contains the truth; to be compared with the level.
        width: mean width of the intervals, in the target's unit.
        score: mean interval score (T. Gneiting, A. Raftery, 2007), in the target's unit: the width plus 2 / (1 − level)
            times the distance of the truth from the interval. The lower, the better.
    """

    coverage: float
    width: float
    score: float


@dataclass(frozen=True)
class ConformalScores:
    """What turns predictions into intervals and probabilities: each target's scores on the validation sequences."""

    scale: Floats  # (K, 1 + S) ≥ 0; an error's expected size is their product with 1 and the S inputs of `error_scale`
    scores: Floats  # (n, K) |error| / expected size
    weights: Floats  # (n,) of the scores; they sum to sequences / (sequences + 1)

    def sizes(self, inputs: Floats) -> Floats:
        """The expected size (m, K) of the errors of examples with inputs (m, S)."""
        return np.asarray(_design(inputs) @ self.scale.T)

    def half_widths(self, inputs: Floats, level: float) -> Floats:
        """Half the width (m, K) of each interval; infinite where the level needs more validation sequences."""
        quantiles = np.array([weighted_quantile(scores, self.weights, level) for scores in self.scores.T])
        return np.asarray(self.sizes(inputs) * quantiles)

    def probability_above(self, predicted: Floats, inputs: Floats, value: float) -> Floats:
        """The probability (m, K) that each target is above a value, from predictions (m, K).

        It is the share of the scores, each with both signs, that lead there; half of the weight at infinity counts.
        """
        needed = (value - predicted) / self.sizes(inputs)
        above = np.empty(predicted.shape)
        for k, scores in enumerate(self.scores.T):
            both = np.concatenate([-scores, scores])
            order = np.argsort(both)
            total = np.concatenate([[0.0], np.cumsum(np.tile(self.weights, 2)[order])]) / 2
            above[:, k] = 1 - total[np.searchsorted(both[order], needed[:, k], "right")] - (1 - total[-1]) / 2
        return above


def calibrate(
    true: Floats, predicted: Floats, inputs: Floats, groups: NDArray[np.int64], scale: Floats
) -> ConformalScores:
    """Make a calibration from validation examples.

    Args:
        true, predicted: (n, K), all known.
        inputs: (n, S) of the errors' scale.
        groups: (n,) each example's sequence.
        scale: (K, 1 + S) as `fit_error_scale` returns it.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) + 1) / counts[group]
    return ConformalScores(scale, np.abs(true - predicted) / (_design(inputs) @ scale.T), weights)


def fit_error_scale(errors: Floats, inputs: Floats) -> Floats:
    """Fit the expected size of errors (n, K) as a sum of a constant and inputs (n, S) ≥ 0, with coefficients ≥ 0.

    The deviation of |error| is taken as proportional to its mean, so that small and large errors count alike; the
    weighted least squares are repeated until the weights fit. Returns (K, 1 + S).
    """
    design = _design(inputs)
    unit = np.maximum(design.mean(axis=0), 1e-12)
    coefficients = np.zeros((errors.shape[1], design.shape[1]))
    for k, error in enumerate(np.abs(errors).T):
        mean = max(float(error.mean()), 1e-9)
        size = np.full(len(error), mean)
        for _ in range(SCALE_ITERATIONS):
            solution, _ = nnls(design / unit / size[:, None], np.minimum(error / size, 5))
            solution[0] = max(solution[0], MIN_CONSTANT * mean)
            size = (design / unit) @ solution
        coefficients[k] = solution / unit
    return coefficients


def weighted_quantile(scores: Floats, weights: Floats, level: float) -> float:
    """The smallest score at or below which the weights sum to at least the level; infinite if all of them do not.

    >>> weighted_quantile(np.array([3.0, 1.0, 2.0]), np.full(3, 0.25), 0.5)
    2.0
    >>> weighted_quantile(np.array([3.0, 1.0, 2.0]), np.full(3, 0.25), 0.9)
    inf
    """
    order = np.argsort(scores)
    reached = np.searchsorted(np.cumsum(weights[order]), level - WEIGHT_ROUNDING)
    return float(scores[order][reached]) if reached < len(scores) else math.inf


def sequences_needed(level: float) -> int:
    """How many validation sequences an interval of finite width needs.

    >>> sequences_needed(0.9)
    9
    """
    return math.ceil(level / (1 - level) - WEIGHT_ROUNDING)


def interval_scores(true: Floats, low: Floats, high: Floats, level: float) -> IntervalScores:
    """Score the intervals (n,) of one target; see `IntervalScores`."""
    width, missed = high - low, np.maximum(np.maximum(low - true, true - high), 0)
    return IntervalScores(
        coverage=float((missed == 0).mean()),
        width=float(width.mean()),
        score=float((width + 2 / (1 - level) * missed).mean()),
    )


def _design(inputs: Floats) -> Floats:
    return np.asarray(np.c_[np.ones(len(inputs)), inputs])
