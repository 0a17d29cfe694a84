"""Stage two's Keras models: saved and loaded, the top rebuilt from a store, parameters counted, inputs and parts."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np

from features._common.atomic import atomic_write
from features._common.interrupts import uninterrupted
from features._common.plain_text import one_line
from features._common.types import Tensor
from features.errors import DataError, FramebankError, StoreError, raise_refusal
from features.limits import MODEL_TENSOR, SPARE_PARAMETERS
from features.model_file import check_architecture, read_model_config
from features.store_tables import TopRecord

WEIGHT_BYTES = 4  # of a float32
NamedTensors = dict[str, Any]  # tensors or arrays by input name


def save_model(path: Path, model: keras.Model) -> None:
    """Save a model in Keras' own format; `path` appears only when the file is complete."""
    with atomic_write(path, ending=".keras") as temporary:  # by which Keras chooses the format
        model.save(temporary)


def load_model(run: Path, name: str = "model.keras", *, targets: int | None = None) -> keras.Model:
    """Load a model from a run's folder.

    Args:
        targets: the number of target columns that it must predict.

    Raises:
        DataError: the file is missing, damaged, or cannot be loaded safely; or the architecture is far larger than the
            weights beside it, or predicts something else.
    """
    path = run / name
    try:
        config, size = read_model_config(path)
        _check_size(config, size // WEIGHT_BYTES)
        with uninterrupted():  # h5py may turn Ctrl-C into another error
            model = keras.models.load_model(path, compile=False, safe_mode=True)
        _require_model(model)
        for weight in model.weights:
            if not np.isfinite(np.asarray(weight)).all():
                raise ValueError(f"NaN or infinity in the weights {weight.path}")
        if targets is not None and model.output_shape != (None, targets):
            raise ValueError(f"it puts out {model.output_shape}, and the run has {targets} targets")
        return model
    except MemoryError:
        raise
    except Exception as e:  # Keras raises what it happens to on a file that is no model
        raise_refusal(e, path)
        if path.is_file() and "File not found" in str(e):  # Keras says so of a file that the disk has refused to read
            path.open("rb").close()
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path)) from None
        raise DataError(f"{path}: cannot be loaded ({_reason(e)})", hint="train again") from None


def rebuild_top(record: TopRecord) -> keras.Model:
    """Rebuild the backbone's unfrozen layers, with their weights and trainable; a StoreError if Keras cannot."""
    try:
        config = json.loads(record.architecture)
        check_architecture(config)
        _check_size(config, sum(weight.size for weight in record.weights))
        top = keras.models.model_from_json(record.architecture)
        _require_model(top)
        top.set_weights(record.weights)
    except MemoryError:
        raise
    except Exception as e:  # Keras raises what it happens to on JSON that is no model
        raise StoreError(
            f"the store's top cannot be rebuilt ({_reason(e)})",
            hint="framebank extract into a new store, with this version",
        ) from e
    top.trainable = True  # and so are its layers
    return top


def _check_size(config: dict[str, Any], known: int) -> None:
    """Raise a ValueError unless a model's weights, and what its layers put out, are of a size to be expected.

    The model is built without allocating its weights.

    Args:
        known: the number of parameters whose values are at hand.
    """
    # in a thread, since Keras would allocate the weights of models built later in this one together with these
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_check_size_unallocated, config, known).result()


def _check_size_unallocated(config: dict[str, Any], known: int) -> None:
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(config | {"compile_config": None}, safe_mode=True)
        _require_model(model)
        count = sum(math.prod(weight.shape) for weight in model.weights)
    if count > known + SPARE_PARAMETERS:
        raise ValueError(f"an architecture with {count:,} parameters, of which {known:,} are in the file")
    for operation in getattr(model, "operations", ()):
        for tensor in keras.tree.flatten([node.outputs for node in operation._inbound_nodes]):
            if math.prod(size or 1 for size in tensor.shape) > MODEL_TENSOR:
                raise ValueError(f"{operation.name} puts out {tensor.shape}, more than {MODEL_TENSOR:,} numbers")


def _require_model(value: object) -> None:
    if not isinstance(value, keras.Model):
        raise ValueError(f"a Keras model was expected, not {type(value).__name__}")


def _reason(error: Exception) -> str:
    text = error.what if isinstance(error, FramebankError) else str(error) or type(error).__name__
    text = text.rpartition("Exception encountered: ")[2]  # after which Keras says what it was
    return one_line(" ".join(text.split())[:300])


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
