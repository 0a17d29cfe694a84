"""What predictions of examples that a fit did not see say about it: a ridge's penalty, and how far to trust a model.

Examples that share frames, and mirrored twins, are left out together. Otherwise windows of a clip that was fitted would
vouch for its other windows, and any model that remembers clips would look good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from features._common.blas import blas_threads
from features._common.types import Floats

RIDGE_PENALTIES = np.array([np.inf, *np.logspace(9, 0, 19)])  # on standardised features; infinity predicts the mean

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Folds:
    """Which of n examples each fold leaves out, and which ones it fits: those that share no frame with the former."""

    left_out: Flags  # (folds, n); each example is left out once
    fitted: Flags  # (folds, n)

    @classmethod
    def divide(cls, rows: NDArray[np.int64], groups: NDArray[np.int64], count: int) -> Self:
        """Deal out sequences to `count` folds or, if there are fewer sequences, contiguous blocks of windows.

        Args:
            rows: (n, T) the frames of each window.
            groups: (n,) the sequence of each window.
            count: number of folds.
        """
        names, sequence = np.unique(groups, return_inverse=True)
        if len(names) >= count:
            fold = np.random.default_rng(0).permutation(len(names))[sequence] % count
        else:
            fold = np.empty(len(rows), np.int64)
            fold[np.argsort(rows.min(axis=1), kind="stable")] = np.arange(len(rows)) * count // len(rows)
        left_out = fold == np.arange(count)[:, None]
        return cls(left_out, np.array([~np.isin(rows, rows[part]).any(axis=1) for part in left_out]))

    def twice(self) -> Self:
        """The folds of examples that are followed by their mirrored twins."""
        return type(self)(np.tile(self.left_out, 2), np.tile(self.fitted, 2))


class RidgePath:
    """Ridge regression of targets (n, K) on vectors (n, F) for any penalty, from one eigendecomposition."""

    def __init__(self, vectors: Floats, targets: Floats) -> None:
        self._mean_x, self._mean_y = vectors.mean(axis=0), targets.mean(axis=0)
        x, y = vectors - self._mean_x, targets - self._mean_y
        if len(x) <= x.shape[1]:
            values, left = np.linalg.eigh(x @ x.T)
            self._basis, self._coefficients = x.T @ left, left.T @ y
        else:
            values, self._basis = np.linalg.eigh(x.T @ x)
            self._coefficients = self._basis.T @ (x.T @ y)
        self._values = np.maximum(values, 0)[:, None]

    def solve(self, penalty: float) -> tuple[Floats, Floats]:
        """Weights (F, K) and bias (K,)."""
        weights = self._basis @ (self._coefficients / (self._values + penalty))
        return weights, self._mean_y - self._mean_x @ weights

    def predict(self, vectors: Floats, penalties: Floats) -> Floats:
        """Predict (penalties, n, K)."""
        x = (vectors - self._mean_x) @ self._basis
        differences: Floats = np.stack([x @ (self._coefficients / (self._values + p)) for p in penalties])
        predicted: Floats = differences + self._mean_y
        return predicted


def cross_validated_ridge(vectors: Floats, targets: Floats, folds: Folds) -> tuple[Floats, Floats, Floats]:
    """Fit a ridge regression with the penalty whose predictions of left-out examples have the lowest squared error.

    Returns:
        Weights (F, K), bias (K,), and the predictions (n, K) of left-out examples; NaN where a fold had none to fit.
    """
    predicted = np.full((len(RIDGE_PENALTIES), *targets.shape), np.nan)
    with blas_threads(min(vectors.shape)):
        for left_out, fitted in zip(folds.left_out, folds.fitted, strict=True):
            if left_out.any() and fitted.any():
                path = RidgePath(vectors[fitted], targets[fitted])
                predicted[:, left_out] = path.predict(vectors[left_out], RIDGE_PENALTIES)
        best = int(np.argmin(np.nansum(np.square(predicted - targets), axis=(1, 2))))  # of equals the highest penalty
        return *RidgePath(vectors, targets).solve(RIDGE_PENALTIES[best]), predicted[best]


def stack(models: tuple[Floats, Floats], targets: Floats) -> tuple[float, float]:
    """Weights of two models beside the constant, from their predictions (n, K) of examples that were left out.

    Everything counts as the difference from the constant. Of both models' mean and each alone, the one with the lowest
    error is multiplied by the factor from 0 to 1 that lowers it most: stacking with non-negative weights that sum to 1
    (L. Breiman, "Stacked regressions", 1996). With nothing to learn, the constant is left.
    """
    choices = [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
    mixed = [a * models[0] + b * models[1] for a, b in choices]
    best = int(np.argmin([np.square(m - targets).sum() for m in mixed]))
    size = float(np.square(mixed[best]).sum())
    factor = float(np.clip((mixed[best] * targets).sum() / size, 0, 1)) if size > 0 else 0.0
    return factor * choices[best][0], factor * choices[best][1]
