"""Ridge regression, kernel ridge and support vectors on the window's statistics."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn import kernel_ridge, linear_model, svm
from sklearn.exceptions import ConvergenceWarning

from features._common.types import Floats, Tensor
from features.head_config import KernelRidgeConfig, RidgeConfig, SVRConfig
from stage2_temporal.heads.closed_form import ClosedFormHead, Vectors, linear_layer
from stage2_temporal.heads.pooled import PooledStatistics

GAMMA_SCALE = 0.1  # γ · F: windows are compared over distances that are large beside their own, a bent plane
KERNEL_ALPHA = {
    "rbf": 1e-3,
    "linear": 1.0,
}  # what head.alpha = 1 means: rbf kernels are at most 1, products as large as F
SVR_EPSILON = 0.02  # deviations of the target within which SVR calls an answer right


class LinearHead(ClosedFormHead):
    """scikit-learn's Ridge as one Dense layer, on whatever vectors."""

    def _solve(self, vectors: Vectors, targets: Floats) -> Any:
        return linear_model.Ridge(alpha=self._head.alpha).fit(vectors.astype(np.float64), targets)

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        found = self._solution
        return linear_layer(vectors, np.reshape(found.coef_, (targets, -1)).T, np.reshape(found.intercept_, -1))


class Ridge(PooledStatistics, LinearHead):
    """Linear regression with a penalty on the window's statistics."""

    settings = RidgeConfig


class KernelHead(PooledStatistics, ClosedFormHead):
    """A head that compares a window with training windows: Σ weight · kernel(window, training window) + bias.

    The kernel is exp(−γ |a − b|²) with γ = WIDE / F, so that features count as a whole, however many; or a · b.
    """

    def _found(
        self, vectors: Vectors, targets: Floats, gamma: float
    ) -> tuple[Floats, Floats, NDArray[np.int64] | slice]:
        """Weights (m, K), bias (K,), and which m training windows they belong to."""
        raise NotImplementedError

    def _solve(self, vectors: Vectors, targets: Floats) -> Any:
        weights, bias, chosen = self._found(vectors.astype(np.float64), targets, GAMMA_SCALE / vectors.shape[1])
        return vectors[chosen].astype(np.float64), weights, bias

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        anchors, weights, bias = self._solution
        if self._head.kernel == "linear":
            return linear_layer(vectors, anchors.T @ weights, bias)
        gamma = GAMMA_SCALE / anchors.shape[1]
        # −γ |a − b|² = 2 γ a · b − γ |b|² − γ |a|²
        near = linear_layer(vectors, 2 * gamma * anchors.T, -gamma * (anchors**2).sum(axis=1), name="anchors")
        near = near - gamma * keras.ops.sum(keras.ops.square(vectors), axis=-1, keepdims=True)
        return linear_layer(keras.ops.exp(near), weights, bias)


class KernelRidge(KernelHead):
    """scikit-learn's KernelRidge."""

    settings = KernelRidgeConfig

    def _found(
        self, vectors: Vectors, targets: Floats, gamma: float
    ) -> tuple[Floats, Floats, NDArray[np.int64] | slice]:
        kernel = self._head.kernel
        alpha = self._head.alpha * KERNEL_ALPHA[kernel]
        found = kernel_ridge.KernelRidge(alpha=alpha, kernel=kernel, gamma=gamma).fit(vectors, targets)
        return found.dual_coef_, np.zeros(targets.shape[1]), slice(None)


class SVR(KernelHead):
    """scikit-learn's SVR, one a target."""

    settings = SVRConfig

    def _found(
        self, vectors: Vectors, targets: Floats, gamma: float
    ) -> tuple[Floats, Floats, NDArray[np.int64] | slice]:
        weights, bias = np.zeros(targets.shape), np.zeros(targets.shape[1])
        kernel = self._head.kernel
        for k in range(targets.shape[1]):
            c = 1 / (self._head.alpha * KERNEL_ALPHA[kernel])
            machine = svm.SVR(C=c, kernel=kernel, gamma=gamma, epsilon=SVR_EPSILON)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                machine.fit(vectors, targets[:, k])
            weights[machine.support_, k], bias[k] = machine.dual_coef_[0], machine.intercept_[0]
        used = np.flatnonzero(weights.any(axis=1) | (np.arange(len(weights)) == 0))  # at least one
        return weights[used], bias, used
