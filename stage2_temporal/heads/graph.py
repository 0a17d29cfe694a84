"""What heads build their models from: tensors and arrays by input name, and the graph up to the vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from features._common.types import Tensor

NamedTensors = dict[str, Any]  # tensors or arrays by input name


@dataclass(frozen=True)
class Graph:
    """A head's graph up to its vectors: the inputs, the features computed from them, and the vectors."""

    inputs: NamedTensors
    features: NamedTensors
    vectors: Tensor


def model_inputs(named: NamedTensors) -> Any:
    """Inputs as a Keras model takes them: a single one itself, several as a dictionary."""
    return next(iter(named.values())) if len(named) == 1 else named


def submodel_from(tensors: NamedTensors, model: keras.Model) -> keras.Model:
    """The part of a model that follows some of its tensors, whose new inputs have the given names."""
    for name, tensor in tensors.items():
        tensor.name = name  # Keras names the input after the tensor that it replaces
    part = keras.Model(model_inputs(tensors), model.output, name=model.name)
    for tensor in part.inputs:
        tensor.name = tensor.name.removesuffix("CLONE")  # else a clone of the part would not know its inputs (3.15)
    return part


def concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate vectors along their last axis."""
    return keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
