"""Gradient-boosted trees on a window's statistics, computed by matrix products.

Each decision becomes a sign: +1 where feature ≤ threshold, else −1. In a tree's path matrix, a leaf has +1 for each
decision that leads to it by its left branch, −1 for each by its right branch, and 0 elsewhere. The product of signs and
path matrix equals a leaf's depth only for the leaf that the window falls into. All trees are computed in one product.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor

from features._common.types import Floats, Tensor
from features.head_config import BoostingConfig
from stage2_temporal.heads.closed_form import ClosedFormHead, Vectors
from stage2_temporal.heads.pooled import PooledStatistics
from stage2_temporal.training.keras_models import concatenate

LEARNING_RATE = 0.1  # weight of each tree's output
SUBSAMPLE = 0.5  # share of the training windows that each tree is fitted to


class Boosting(PooledStatistics, ClosedFormHead):
    """scikit-learn's GradientBoostingRegressor, one per target, each with `units` trees of depth `layers`."""

    settings = BoostingConfig
    train_settings = (*ClosedFormHead.train_settings, "seed")
    standardises_vectors = False  # trees depend only on the order of values

    def solve(self, vectors: Vectors, targets: Floats) -> Any:
        features = max(1, round(vectors.shape[1] ** 0.5))
        return [
            GradientBoostingRegressor(
                n_estimators=self.settings_.units,
                max_depth=self.settings_.layers,
                learning_rate=LEARNING_RATE,
                subsample=SUBSAMPLE if len(vectors) > 1 else 1.0,
                max_features=features,
                random_state=self.train_.seed,
            ).fit(vectors, targets[:, k])
            for k in range(targets.shape[1])
        ]

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        return concatenate([boosting_layers(vectors, model) for model in self.solution_])


def boosting_layers(vectors: Tensor, model: GradientBoostingRegressor) -> Tensor:
    """(batch, F) → (batch, 1): compute what `model.predict` computes."""
    trees = [tree_matrices(estimator.tree_) for estimator in model.estimators_[:, 0]]
    nodes, leaves = (max(t[2].shape[i] for t in trees) for i in (0, 1))
    feature, threshold = np.zeros((len(trees), nodes), np.int32), np.zeros((len(trees), nodes), np.float32)
    path = np.zeros((len(trees), nodes, leaves), np.float32)
    depth, value = np.full((len(trees), leaves), np.inf, np.float32), np.zeros((len(trees), leaves))
    for i, (f, t, p, d, v) in enumerate(trees):
        feature[i, : len(f)], threshold[i, : len(t)], path[i, : p.shape[0], : p.shape[1]] = f, t, p
        depth[i, : len(d)], value[i, : len(v)] = d - 0.5, v
    depth[np.isinf(depth)] = nodes + 1  # padding is never reached
    values = keras.ops.reshape(keras.ops.take(vectors, feature.ravel(), axis=1), (-1, *feature.shape))
    signs = keras.ops.where(values <= threshold, 1.0, -1.0)
    paths = keras.layers.EinsumDense("btn,tnl->btl", (len(trees), leaves), name=None)
    agreement = paths(signs)
    paths.set_weights([path])
    paths.trainable = False
    reached = keras.ops.cast(agreement > depth, "float32")
    leaf_sum = keras.layers.Dense(1)
    output = leaf_sum(keras.ops.reshape(reached, (-1, depth.size)))
    initial = float(np.ravel(model.init_.constant_)[0])
    leaf_sum.set_weights([(value * model.learning_rate).reshape(-1, 1), np.array([initial])])
    return output


def tree_matrices(tree: Any) -> tuple[NDArray[Any], ...]:
    """A tree's decisions (feature, threshold), path matrix (decisions, leaves), and the leaves' depths and values."""
    inner = np.flatnonzero(tree.children_left >= 0)
    order = {node: i for i, node in enumerate(inner.tolist())}
    rows: list[NDArray[np.float32]] = []
    values: list[float] = []
    stack = [(0, np.zeros(len(inner), np.float32))]
    while stack:
        node, path = stack.pop()
        if node not in order:
            rows.append(path)
            values.append(float(tree.value[node].ravel()[0]))
            continue
        for child, sign in ((tree.children_left[node], 1.0), (tree.children_right[node], -1.0)):
            extended = path.copy()
            extended[order[node]] = sign
            stack.append((int(child), extended))
    threshold = tree.threshold[inner]
    single = threshold.astype(np.float32)
    # scikit-learn compares float32 features with float64 thresholds: take the largest float32 at or below each
    single = np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single).astype(np.float32)
    paths = np.array(rows, np.float32).T
    return tree.feature[inner], single, paths, np.abs(paths).sum(axis=0), np.array(values)
