"""What heads build their models of: tensors and arrays by input name, and the graph up to the vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Tensor
from stage2_temporal.data.examples import HeadInputs

NamedTensors = dict[str, Any]  # tensors or arrays by input name


@dataclass(frozen=True)
class Graph:
    """A head's graph up to its vectors: tensors by input name, what `_summarise` makes of them, and the vectors."""

    inputs: NamedTensors
    arrays: NamedTensors
    vectors: Tensor


@dataclass(frozen=True)
class ExampleReader:
    """What batches are made of: arrays of some of the examples."""

    examples: HeadInputs
    make: Callable[[HeadInputs], NamedTensors]

    def windows(self, rows: NDArray[np.int64]) -> Any:
        return model_inputs(self.make(self.examples[rows]))


def model_inputs(named: NamedTensors) -> Any:
    """What a Keras model is built of or takes: one value itself, several by their names."""
    return next(iter(named.values())) if len(named) == 1 else named


def submodel_from(tensors: NamedTensors, model: keras.Model) -> keras.Model:
    """The part of a model that follows some of its tensors, each by the name that its input is to have."""
    for name, tensor in tensors.items():
        tensor.name = name  # what Keras calls the input that stands in for it
    part = keras.Model(model_inputs(tensors), model.output, name=model.name)
    for tensor in part.inputs:
        tensor.name = tensor.name.removesuffix("CLONE")  # else a clone of it would not know its inputs (3.15)
    return part


def concatenate(parts: list[Tensor]) -> Tensor:
    """Vectors side by side."""
    return keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
