"""Gradient-boosted trees on the window's statistics, as matrices.

Every decision is a sign: +1 where feature ≤ threshold, else −1. A leaf's row of its tree's path matrix has +1 for the
decisions it lies on the left of, −1 for those on its right, 0 elsewhere: only the leaf a window falls into has a
product with the signs as large as its depth. All trees are computed side by side.
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

LEARNING_RATE = 0.1  # what each tree's answer counts
SUBSAMPLE = 0.5  # share of windows a tree sees


class Boosting(PooledStatistics, ClosedFormHead):
    """scikit-learn's GradientBoostingRegressor, one a target: `units` trees of depth `layers`."""

    settings = BoostingConfig
    train_settings = (*ClosedFormHead.train_settings, "seed")
    standardised = False  # a tree asks for an order only

    def _solve(self, vectors: Vectors, targets: Floats) -> Any:
        features = max(1, round(vectors.shape[1] ** 0.5))
        return [
            GradientBoostingRegressor(
                n_estimators=self._head.units,
                max_depth=self._head.layers,
                learning_rate=LEARNING_RATE,
                subsample=SUBSAMPLE if len(vectors) > 1 else 1.0,
                max_features=features,
                random_state=self._train.seed,
            ).fit(vectors, targets[:, k])
            for k in range(targets.shape[1])
        ]

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        answers = [boosting_layers(vectors, machine) for machine in self._solution]
        return keras.ops.concatenate(answers, axis=-1) if targets > 1 else answers[0]


def boosting_layers(vectors: Tensor, machine: GradientBoostingRegressor) -> Tensor:
    """(batch, F) → (batch, 1): what `machine.predict` gives."""
    trees = [tree_matrices(estimator.tree_) for estimator in machine.estimators_[:, 0]]
    nodes, leaves = (max(t[2].shape[i] for t in trees) for i in (0, 1))
    feature, threshold = np.zeros((len(trees), nodes), np.int32), np.zeros((len(trees), nodes), np.float32)
    path = np.zeros((len(trees), nodes, leaves), np.float32)
    depth, value = np.full((len(trees), leaves), np.inf, np.float32), np.zeros((len(trees), leaves))
    for i, (f, t, p, d, v) in enumerate(trees):
        feature[i, : len(f)], threshold[i, : len(t)], path[i, : p.shape[0], : p.shape[1]] = f, t, p
        depth[i, : len(d)], value[i, : len(v)] = d - 0.5, v
    depth[np.isinf(depth)] = nodes + 1  # a leaf that is not there is never reached
    taken = keras.ops.reshape(keras.ops.take(vectors, feature.ravel(), axis=1), (-1, *feature.shape))
    signs = keras.ops.where(taken <= threshold, 1.0, -1.0)
    layer = keras.layers.EinsumDense("btn,tnl->btl", (len(trees), leaves), name=None)
    reached = layer(signs)
    layer.set_weights([path])
    layer.trainable = False
    hit = keras.ops.cast(reached > depth, "float32")
    answer = keras.layers.Dense(1)
    x = answer(keras.ops.reshape(hit, (-1, depth.size)))
    first = float(np.ravel(machine.init_.constant_)[0])
    answer.set_weights([(value * machine.learning_rate).reshape(-1, 1), np.array([first])])
    return x


def tree_matrices(tree: Any) -> tuple[NDArray[Any], ...]:
    """A tree's decisions (feature, threshold), path matrix (decisions, leaves), depth and value of its leaves."""
    inner = np.flatnonzero(tree.children_left >= 0)
    order = {node: i for i, node in enumerate(inner.tolist())}
    rows: list[NDArray[np.float32]] = []
    values: list[float] = []
    waiting = [(0, np.zeros(len(inner), np.float32))]
    while waiting:
        node, path = waiting.pop()
        if node not in order:
            rows.append(path)
            values.append(float(tree.value[node].ravel()[0]))
            continue
        for child, sign in ((tree.children_left[node], 1.0), (tree.children_right[node], -1.0)):
            turned = path.copy()
            turned[order[node]] = sign
            waiting.append((int(child), turned))
    threshold = tree.threshold[inner]
    single = threshold.astype(np.float32)
    # scikit-learn compares single-precision features with double-precision thresholds: the largest single at or below
    single = np.where(single > threshold, np.nextafter(single, np.float32(-np.inf)), single).astype(np.float32)
    paths = np.array(rows, np.float32).T
    return tree.feature[inner], single, paths, np.abs(paths).sum(axis=0), np.array(values)
