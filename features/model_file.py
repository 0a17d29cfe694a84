"""Model files of Keras from elsewhere, looked at before Keras reads them: nothing here builds a model.

Keras itself refuses code in a model (`safe_mode`). What it lets through can still take any amount of memory or time, or
read other files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from features._common.strict_json import check_nesting
from features._common.zip_limits import open_zip
from features.errors import DataError
from features.hdf5 import check_weights
from features.limits import JSON_BYTES, MODEL_OBJECTS

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# layers that run code, read other files, or unroll a loop in Python when they are built; no head has them
REFUSED = {
    "Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TimeDistributed", "StringLookup",
    "IntegerLookup", "TextVectorization", "MelSpectrogram", "STFTSpectrogram",
}  # fmt: skip


def read_model_config(path: Path) -> tuple[dict[str, Any], int]:
    """Read the architecture in a `.keras` file and the size of its weights in bytes.

    Raises:
        DataError: the file is damaged or no model, or `check_architecture` or `check_weights` refuses it.
        ValueError, OSError: the same, as the libraries say it.
    """
    with open_zip(path) as archive:
        names = set(archive.namelist())
        if missing := [name for name in (CONFIG, WEIGHTS) if name not in names]:
            raise DataError(f"{path}: no model", expected=f"{CONFIG} and {WEIGHTS} in it", got=f"no {missing[0]}")
        info = archive.getinfo(CONFIG)
        if info.file_size > JSON_BYTES:
            raise ValueError(f"{CONFIG} is larger than {JSON_BYTES:,} bytes")
        config = json.loads(archive.read(CONFIG))
        check_architecture(config)
        size = archive.getinfo(WEIGHTS).file_size
        with archive.open(WEIGHTS) as file:
            check_weights(file, size)
    return config, size


def check_architecture(config: Any) -> None:
    """Raise a ValueError unless a model's configuration is a dictionary, not huge, and without `REFUSED` layers."""
    if not isinstance(config, dict):
        raise ValueError("the architecture is no JSON object")
    check_nesting(config)
    count = 0
    for part in _dictionaries(config):
        name = part.get("class_name")
        count += name is not None
        if isinstance(name, str) and name in REFUSED:
            raise ValueError(f"a layer {name}, which is not safe to load")
        if part.get("unroll") is True:
            raise ValueError("a recurrent layer that is unrolled")
    if count > MODEL_OBJECTS:
        raise ValueError(f"{count:,} layers and their parts, more than {MODEL_OBJECTS:,}")


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield value
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
