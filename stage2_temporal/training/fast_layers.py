"""The twin of a model that trains and predicts: the same variables and the same answers, multiplied faster.

What is saved, fused and exported stays the model with Keras' own layers; the twin lives as long as the model does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import keras

from stage2_temporal.training import lstm, pointwise

Precision = Literal["float32", "bfloat16"]
_twins: WeakKeyDictionary[keras.Model, dict[Precision, keras.Model]] = WeakKeyDictionary()


def with_fast_layers(model: keras.Model, precision: Precision = "float32") -> keras.Model:
    """A model with the very same variables and faster layers in place of LSTMs and 1x1 convolutions.

    Training it trains `model`. A second call for the same model returns the same twin, whose functions are traced.

    Args:
        model: a functional model; where nothing can be replaced it is returned as it is.
        precision: of the factors in the replaced layers' products; sums, weights and all else stay float32.
    """
    if all(_faster(layer) is None for layer in _layers(model)):
        return model

    def replace(layer: Any) -> Any:
        faster = _faster(layer)
        return layer if faster is None else faster(layer, precision)

    twins = _twins.setdefault(model, {})
    if precision not in twins:
        twins[precision] = keras.models.clone_model(model, clone_function=replace, recursive=True)
    return twins[precision]


def _faster(layer: Any) -> type[lstm.LSTM] | type[pointwise.Conv2D] | None:
    """What does the same as a layer of Keras', and faster."""
    if lstm.replaceable(layer):
        return lstm.LSTM
    return pointwise.Conv2D if pointwise.replaceable(layer) else None


def _layers(model: keras.Model) -> Iterator[Any]:
    """Every layer, those of models within it too."""
    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)
