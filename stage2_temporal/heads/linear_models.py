"""Ridge regression, kernel ridge and support vector regression on a window's statistics."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import scipy.linalg
from sklearn import kernel_ridge, linear_model, svm

from features._common.types import Floats, Tensor
from features.head_config import KernelRidgeConfig, RidgeConfig, SVRConfig
from stage2_temporal.data.examples import HeadInputs
from stage2_temporal.heads.base import Graph
from stage2_temporal.heads.closed_form import ClosedFormHead, Vectors, linear_layer, standardise_vectors
from stage2_temporal.heads.pooled import PooledStatistics
from stage2_temporal.training.scaling import vector_scale

GAMMA_SCALE = 0.1  # γ · F; so small that the kernel is wider than the data, and the fit a slightly bent plane
# what head.alpha = 1 stands for: values of the rbf kernel are at most 1, those of the linear kernel as large as F
KERNEL_ALPHA = {"rbf": 1e-3, "linear": 1.0}
SVR_EPSILON = 0.02  # errors below this share of the target's deviation cost nothing in SVR


class Ridge(PooledStatistics, ClosedFormHead):
    """Ridge regression: scikit-learn's, or for more examples than features the same from sums over batches.

    Memory then grows with the number of features only.
    """

    settings = RidgeConfig

    def _solve_graph(self, graph: Graph, examples: HeadInputs, targets: Floats) -> Any:
        features = int(graph.vectors.shape[-1])
        if len(examples) <= features:
            return super()._solve_graph(graph, examples, targets)
        stored = self.has_stored_features(examples)
        self._scale = vector_scale(self._compute_vectors(graph, examples, stored=stored))
        gram, product = np.zeros((features, features)), np.zeros((features, targets.shape[1]))
        total, mean_target, row = np.zeros(features), targets.mean(axis=0), 0
        for batch in self._compute_vectors(graph, examples, stored=stored):
            x = standardise_vectors(batch, self._scale).astype(np.float64)
            gram += x.T @ x
            product += x.T @ (targets[row : row + len(x)] - mean_target)
            total += x.sum(axis=0)
            row += len(x)
        mean = total / row
        # the normal equations of centred vectors
        gram -= np.outer(total, mean)
        gram[np.diag_indices(features)] += self.settings_.alpha
        weights = scipy.linalg.solve(gram, product, assume_a="pos", overwrite_a=True)
        return weights, mean_target - mean @ weights

    def solve(self, vectors: Vectors, targets: Floats) -> tuple[Floats, Floats]:
        ridge = linear_model.Ridge(alpha=self.settings_.alpha).fit(vectors.astype(np.float64), targets)
        return np.reshape(ridge.coef_, (targets.shape[1], -1)).T, np.reshape(ridge.intercept_, -1)

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        return linear_layer(vectors, *self.solution_)


class KernelHead(PooledStatistics, ClosedFormHead):
    """A head that compares a window with training windows: Σ weight · kernel(window, training window) + bias.

    The kernel is a · b, or exp(−γ |a − b|²) with γ = GAMMA_SCALE / F, so that its width does not depend on the number
    of features F. `solve` returns training windows (m, F), weights (m, K) and bias (K,).
    """

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        anchors, weights, bias = self.solution_
        if self.settings_.kernel == "linear":
            return linear_layer(vectors, anchors.T @ weights, bias)
        gamma = GAMMA_SCALE / anchors.shape[1]
        # −γ |a − b|² = 2 γ a · b − γ |b|² − γ |a|²
        exponent = linear_layer(vectors, 2 * gamma * anchors.T, -gamma * (anchors**2).sum(axis=1), name="anchors")
        exponent = exponent - gamma * keras.ops.sum(keras.ops.square(vectors), axis=-1, keepdims=True)
        return linear_layer(keras.ops.exp(exponent), weights, bias)


class KernelRidge(KernelHead):
    """scikit-learn's KernelRidge."""

    settings = KernelRidgeConfig

    def solve(self, vectors: Vectors, targets: Floats) -> tuple[Floats, Floats, Floats]:
        x, kernel = vectors.astype(np.float64), self.settings_.kernel
        alpha = self.settings_.alpha * KERNEL_ALPHA[kernel]
        model = kernel_ridge.KernelRidge(alpha=alpha, kernel=kernel, gamma=GAMMA_SCALE / x.shape[1]).fit(x, targets)
        return x, model.dual_coef_, np.zeros(targets.shape[1])


class SVR(KernelHead):
    """scikit-learn's SVR, one per target."""

    settings = SVRConfig

    def solve(self, vectors: Vectors, targets: Floats) -> tuple[Floats, Floats, Floats]:
        x, kernel = vectors.astype(np.float64), self.settings_.kernel
        weights, bias = np.zeros(targets.shape), np.zeros(targets.shape[1])
        c = 1 / (self.settings_.alpha * KERNEL_ALPHA[kernel])
        for k in range(targets.shape[1]):
            model = svm.SVR(C=c, kernel=kernel, gamma=GAMMA_SCALE / x.shape[1], epsilon=SVR_EPSILON)
            model.fit(x, targets[:, k])
            weights[model.support_, k], bias[k] = model.dual_coef_[0], model.intercept_[0]
        used = np.flatnonzero(weights.any(axis=1) | (np.arange(len(weights)) == 0))  # at least one
        return x[used], weights[used], bias
