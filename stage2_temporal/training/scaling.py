"""What stage-two models are made of beside a head: the store's top, and the scales of targets and vectors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.errors import StoreError
from features.store import TopRecord

TOLERANCE = 1e-4  # by which two forms of one model may differ, relative to the largest value, float32


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each target or feature over the training examples, both (K,)."""

    mean: Floats
    deviation: Floats


def target_scale(targets: Floats) -> Scale:
    """Mean and deviation of (n, K) targets; a column that does not vary counts as deviation 1."""
    deviation = targets.std(axis=0)
    return Scale(targets.mean(axis=0), np.where(deviation > 0, deviation, 1.0))


def vector_scale(batches: Iterable[NDArray[Any]]) -> Scale:
    """Mean and deviation of each feature over batches of vectors (n, T, features).

    The variance is at least 1e-4 of its mean over all features: one that hardly ever fires in training must not
    explode when it does elsewhere.
    """
    count, shift, total, squares = 0, np.zeros(1), np.zeros(1), np.zeros(1)
    for batch in batches:
        flat = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        shift = flat.mean(axis=0) if count == 0 else shift  # sums around a near mean lose no digits
        count += len(flat)
        total = total + (flat - shift).sum(axis=0)
        squares = squares + ((flat - shift) ** 2).sum(axis=0)
    variance = squares / count - (total / count) ** 2
    floor = 1e-4 * float(variance.mean())
    return Scale(shift + total / count, np.sqrt(np.maximum(variance, floor)) if floor > 0 else np.ones_like(variance))


def rebuild_top(record: TopRecord) -> keras.Model:
    """The unfrozen layers as they were in the backbone, trainable.

    Raises:
        StoreError: an architecture that Keras cannot or must not load, or weights of another.
    """
    try:
        top = keras.models.model_from_json(record.architecture)
        top.set_weights(record.weights)
    except (ValueError, TypeError, KeyError) as e:
        line = " ".join(str(e).split())[:300]
        raise StoreError(f"the store's top cannot be rebuilt ({line})", hint="make features with this version") from e
    top.trainable = True
    for layer in top.layers:
        layer.trainable = True
    return top


def parameters(model: keras.Model, trunk: int = 0) -> dict[str, int]:
    """Total, trainable and frozen parameters, those of the frozen trunk included."""
    total = model.count_params() + trunk
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}
