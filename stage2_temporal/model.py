"""The stage-two model: the store's top with its pretrained weights, a head, and the way back to the target's unit.

Time is folded into the batch where the top is applied: one call, one batch-norm update a step, the same numbers at
inference as a TimeDistributed top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.config import Head as HeadConfig
from features.errors import StoreError
from features.store import TopRecord
from stage2_temporal import heads

Floats = NDArray[np.float64]
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
        raise StoreError(f"the store's top cannot be rebuilt ({line})", mend="make features with this version") from e
    top.trainable = True
    for layer in top.layers:
        layer.trainable = True
    return top


def build(
    shape: tuple[int, ...],
    config: HeadConfig,
    targets: int,
    *,
    top: TopRecord | None = None,
    target: Scale | None = None,
    vectors: Callable[[keras.Model], Scale] | None = None,
) -> keras.Model:
    """The model from maps `features` (batch, T, h, w, c), float32, to (batch, targets) in the target's unit.

    Args:
        shape: T, h, w, c.
        config: the head.
        targets: how many numbers are predicted.
        top: the store's unfrozen layers, or None.
        target: where given, the head works on targets of mean 0 and deviation 1 and its output is scaled back.
        vectors: where given, called with the model from maps to the head's vectors (batch, T, features), and what it
            returns standardises these; heads that take no part in this never call it.

    Raises:
        ConfigError: an unknown head, or settings that do not fit the map.
        StoreError: a top that cannot be rebuilt.
    """
    head = heads.find(config.name)
    maps = keras.Input(shape, name="features", dtype="float32")
    x = maps
    if top is not None:
        x = keras.ops.reshape(x, (-1, *shape[1:]))
        x = rebuild_top(top)(x)
        x = keras.ops.reshape(x, (-1, shape[0], *x.shape[1:]))
    x = head.summarise(x, config)
    if head.standardise and vectors is not None:
        scale = vectors(keras.Model(maps, x))
        # a Rescaling: Keras' Normalization makes its constants inputs of the exported ONNX graph (3.15)
        factor = 1 / scale.deviation
        x = keras.layers.Rescaling(factor.tolist(), (-scale.mean * factor).tolist(), name="standardise")(x)
    x = head.regress(x, config, targets)
    if target is not None:
        x = keras.layers.Rescaling(target.deviation.tolist(), target.mean.tolist(), name="unit")(x)
    return keras.Model(maps, x, name="framebank")


def parameters(model: keras.Model, trunk: int = 0) -> dict[str, int]:
    """Total, trainable and frozen parameters, those of the frozen trunk included."""
    total = model.count_params() + trunk
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}
