"""Scales of targets and vectors: their mean and standard deviation over the training examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from features._common.types import Floats
from features.streams import STANDARDISE


@dataclass(frozen=True)
class Scale:
    """Mean (K,) and standard deviation (K,) of each target or feature over the training examples."""

    mean: Floats
    deviation: Floats

    def standardising_layer(self) -> keras.layers.Layer:
        """Make the layer that scales vectors to mean 0 and standard deviation 1."""
        # a Rescaling: Keras' Normalization makes its constants inputs of the exported ONNX graph (3.15)
        factor = 1 / self.deviation
        return keras.layers.Rescaling(factor.tolist(), (-self.mean * factor).tolist(), name=STANDARDISE)


def target_scale(targets: Floats) -> Scale:
    """Return mean and standard deviation of targets (n, K); the deviation of a constant column is 1.

    >>> target_scale(np.array([[1.0, 5.0], [3.0, 5.0]]))
    Scale(mean=array([2., 5.]), deviation=array([1., 1.]))
    """
    deviation = targets.std(axis=0)
    return Scale(targets.mean(axis=0), np.where(deviation > 0, deviation, 1.0))


def vector_scale(batches: Iterable[NDArray[Any]]) -> Scale:
    """Return mean and standard deviation of each feature over batches of vectors (n, T, features).

    The variance is at least 1e-4 of its mean over all features, so that a feature which is nearly constant in training
    does not become huge elsewhere.
    """
    scaler = StandardScaler()
    for batch in batches:
        scaler.partial_fit(batch.reshape(-1, batch.shape[-1]).astype(np.float64))
    variance: Floats = scaler.var_
    floor = 1e-4 * float(variance.mean())
    return Scale(scaler.mean_, np.sqrt(np.maximum(variance, floor)) if floor > 0 else np.ones_like(variance))
