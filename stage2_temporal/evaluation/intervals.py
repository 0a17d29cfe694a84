"""Prediction intervals by conformal prediction, from errors on sequences that the head was not fitted to.

Which errors these are, `heads.uncertainty` decides: those on the validation sequences (split conformal), or those that
each training and validation sequence has when it is left out (cross-conformal).

An example's score is its error in units of the error's expected size, `ErrorScale`, so that intervals are wide where
errors are large (J. Lei et al., "Distribution-free predictive inference for regression", 2018, section 5.2). Windows of
one sequence resemble each other, so that sequences are exchangeable but windows are not: every sequence has the same
weight, which its windows share, and one more stands at infinity for the sequence that is predicted. This is
hierarchical conformal prediction (Y. Lee, R. Barber, R. Willett, "Distribution-free inference with hierarchical data",
2023); with one window per sequence it is the usual quantile of rank ⌈(n + 1) · level⌉.

A new example's interval contains the truth with a probability of at least the level, over the choice of the sequences
and of another one like them, whatever the errors' distribution; for cross-conformal scores about so, since another
head made each error. Nothing is claimed for other footage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from features._common.types import Floats
from features.errors import DataError

SCALE_ITERATIONS = 10
SCALE_FOLDS = 5  # of sequences, whose scores each have a scale that was fitted to the others
MIN_CONSTANT = 0.01  # least constant part of an error's expected size, relative to the mean error
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
class ErrorScale:
    """The expected size of K targets' errors, from the S inputs of `Head.error_scale`."""

    coefficients: Floats  # (K, 1 + S) ≥ 0, of 1 and the inputs
    largest: Floats  # (K,) size that no expectation exceeds

    def sizes(self, inputs: Floats) -> Floats:
        """The expected size (m, K) of the errors of examples with inputs (m, S)."""
        known = inputs[:, : self.coefficients.shape[1] - 1]  # runs of older versions read fewer
        design = _design(known)
        if design.shape[-1] != self.coefficients.shape[-1]:
            what, hint = "uncertainty.json: not of this run's head", "framebank evaluate --run NAME"
            raise DataError(what, expected=design.shape[-1], got=self.coefficients.shape[-1], hint=hint)
        return np.asarray(np.minimum(design @ self.coefficients.T, self.largest))


@dataclass(frozen=True)
class ConformalScores:
    """What turns predictions into intervals and probabilities: each target's scores on sequences left out of a fit."""

    scale: ErrorScale
    scores: Floats  # (n, K) |error| / expected size
    weights: Floats  # (n,) of the scores; they sum to sequences / (sequences + 1)

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        total = float(self.weights.sum())
        return round(total / (1 - total))

    def half_widths(self, inputs: Floats, level: float) -> Floats:
        """Half the width (m, K) of each interval; infinite where the level needs more sequences."""
        quantiles = np.array([weighted_quantile(scores, self.weights, level) for scores in self.scores.T])
        return np.asarray(self.scale.sizes(inputs) * quantiles)

    def probability_above(self, predicted: Floats, inputs: Floats, value: float) -> Floats:
        """The probability (m, K) that each target is above a value, from predictions (m, K).

        It is the share of the scores, each with both signs, that lead there; half of the weight at infinity counts.
        """
        needed = (value - predicted) / self.scale.sizes(inputs)
        above = np.empty(predicted.shape)
        for k, scores in enumerate(self.scores.T):
            both = np.concatenate([-scores, scores])
            order = np.argsort(both)
            total = np.concatenate([[0.0], np.cumsum(np.tile(self.weights, 2)[order])]) / 2
            above[:, k] = 1 - total[np.searchsorted(both[order], needed[:, k], "right")] - (1 - total[-1]) / 2
        return above


def calibrate(errors: Floats, inputs: Floats, groups: NDArray[np.int64], largest: Floats) -> ConformalScores:
    """Make a calibration from examples that no fit knew.

    No sequence's scores are in units of a scale that was fitted to it: those would be too small.

    Args:
        errors: (n, K).
        inputs: (n, S) of the errors' scale.
        groups: (n,) each example's sequence.
        largest: see `fit_error_scale`.
    """
    _, group = np.unique(groups, return_inverse=True)
    scores = np.empty_like(errors)
    fold = np.random.default_rng(0).permutation(group.max(initial=0) + 1)[group] % SCALE_FOLDS
    for k in np.unique(fold):
        left_out = fold == k
        scale = fit_error_scale(errors[~left_out], inputs[~left_out], largest)
        scores[left_out] = np.abs(errors[left_out]) / scale.sizes(inputs[left_out])
    return ConformalScores(fit_error_scale(errors, inputs, largest), scores, sequence_weights(groups))


def sequence_weights(groups: NDArray[np.int64]) -> Floats:
    """Weights (n,) of examples by their sequences (n,): each sequence has the same, and so has one more at infinity."""
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(counts) + 1) / counts[group])


def fit_error_scale(errors: Floats, inputs: Floats, largest: Floats) -> ErrorScale:
    """Fit the expected size of errors (n, K) as a sum of a constant and inputs (n, S) ≥ 0, with coefficients ≥ 0.

    The deviation of |error| is taken as proportional to its mean, so that small and large errors count alike; the
    weighted least squares are repeated until the weights fit. `largest` (K,) bounds the expected size: where a head
    knows nothing, it predicts a typical value, however large the inputs are.
    """
    design = _design(inputs)
    if len(errors) == 0:
        return ErrorScale(np.eye(1, design.shape[1]).repeat(len(largest), axis=0), largest)
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
    return ErrorScale(coefficients, largest)


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
    """How many sequences an interval of finite width needs.

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
