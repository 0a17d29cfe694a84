"""Ridge regression from sums over its examples, which are added batch by batch and never held in memory at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from features._common.types import Floats


class NormalEquations:
    """The sums of products that determine a ridge regression of targets (K,) on vectors (F,)."""

    def __init__(self, size: int, targets: int) -> None:
        """Start with no examples; `size` is F, `targets` is K."""
        self._count = 0
        self._sum_x, self._sum_y = np.zeros(size), np.zeros(targets)
        self._xx, self._xy = np.zeros((size, size)), np.zeros((size, targets))

    def add(self, vectors: NDArray[Any], targets: NDArray[Any]) -> None:
        """Add examples: vectors (..., F) and targets (..., K), multiplied in their own precision, summed in double."""
        x, y = (a.reshape(-1, a.shape[-1]) for a in (vectors, targets))
        self._count += len(x)
        self._sum_x += x.sum(axis=0, dtype=np.float64)
        self._sum_y += y.sum(axis=0, dtype=np.float64)
        self._xx += x.T @ x
        self._xy += x.T @ y

    def solve(self, penalty: float) -> tuple[Floats, Floats]:
        """Weights (F, K) and bias (K,) that minimise the squared errors' sum + penalty · the squared weights' sum."""
        mean_x, mean_y = self._sum_x / self._count, self._sum_y / self._count
        covariance = self._xx - self._count * np.outer(mean_x, mean_x)
        covariance[np.diag_indices_from(covariance)] += penalty
        weights: Floats = scipy.linalg.solve(
            covariance, self._xy - self._count * np.outer(mean_x, mean_y), assume_a="pos", overwrite_a=True
        )
        return weights, mean_y - mean_x @ weights
