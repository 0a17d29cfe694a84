"""Weights in a .safetensors file, which holds tensors by name and nothing that could be executed."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from features._common.plain_text import one_line
from features.errors import ConfigError, DataError


def load_safetensors(model: keras.Model, path: Path) -> None:
    """Set all weights of a model from a file whose tensors have the names that Keras gives the weights, `path`.

    `safetensors.numpy.save_file({w.path: w.numpy() for w in model.weights}, "weights.safetensors")` writes such a file.

    Raises:
        ConfigError: the package `safetensors` is not installed.
        DataError: the file is damaged, lacks weights of the model or has others, or one has another shape.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise ConfigError("the package safetensors is not installed", hint='pip install "framebank[weights]"') from None
    try:
        tensors = load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as e:
        raise DataError(f"{path}: not a safetensors file ({one_line(str(e))[:200]})") from None
    weights = {weight.path: weight for weight in model.weights}
    lacking, unknown = sorted(weights.keys() - tensors.keys()), sorted(tensors.keys() - weights.keys())
    if lacking or unknown:
        raise DataError(
            f"{path}: the names of the tensors are not those of the weights",
            expected=f"{len(weights)} tensors, such as {next(iter(lacking or weights))}",
            got=f"{len(tensors)} tensors, such as {next(iter(unknown or tensors), 'none')[:200]}",
            hint="write the file from a Keras model, with each weight's path as the name of its tensor",
        )
    for name, weight in weights.items():
        if tensors[name].shape != tuple(weight.shape):
            raise DataError(f"{path}: {name} has another shape", expected=tuple(weight.shape), got=tensors[name].shape)
        if not np.isfinite(tensors[name]).all():
            raise DataError(f"{path}: {name} holds NaN or infinity")
    model.set_weights([tensors[weight.path] for weight in model.weights])
