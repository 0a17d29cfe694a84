"""Stage two's Keras models: saved and loaded, the top rebuilt from a store, parameters counted, inputs and parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from features._common.atomic import atomic_write
from features._common.types import Tensor
from features.errors import DataError, StoreError
from features.store_tables import TopRecord

NamedTensors = dict[str, Any]  # tensors or arrays by input name


def save_model(path: Path, model: keras.Model) -> None:
    """Save a model in Keras' own format; `path` appears only when the file is complete."""
    with atomic_write(path, ending=".keras") as temporary:  # by which Keras chooses the format
        model.save(temporary)


def load_model(run: Path, name: str = "model.keras") -> keras.Model:
    """Load a model from a run's folder; a DataError if the file is missing or cannot be loaded safely."""
    path = run / name
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as e:
        reason = " ".join(str(e).split())[:300]
        raise DataError(f"{path}: cannot be loaded ({reason})", hint="train again") from None


def rebuild_top(record: TopRecord) -> keras.Model:
    """Rebuild the backbone's unfrozen layers, with their weights and trainable; a StoreError if Keras cannot."""
    try:
        top = keras.models.model_from_json(record.architecture)
        top.set_weights(record.weights)
    except (ValueError, TypeError, KeyError) as e:
        reason = " ".join(str(e).split())[:300]
        raise StoreError(
            f"the store's top cannot be rebuilt ({reason})",
            hint="framebank extract into a new store, with this version",
        ) from e
    top.trainable = True  # and so are its layers
    return top


def count_parameters(model: keras.Model, trunk: int = 0) -> dict[str, int]:
    """Count a model's parameters and those of the frozen trunk below it: total, trainable and frozen."""
    total = model.count_params() + trunk
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


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


def apply_operations(name: str, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Continue a model's graph by a function of Keras operations, as one layer with a name of its own.

    Operations are named by a counter that starts again in each process, so that those of a loaded model would be named
    twice. Not for models that are saved.
    """
    return keras.layers.Lambda(lambda values: function(*values), name=name)(list(tensors))


def concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate vectors along their last axis."""
    return keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
