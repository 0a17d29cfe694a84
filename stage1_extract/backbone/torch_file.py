"""Reads the tensors of a PyTorch state dict in the legacy .pth format, without PyTorch.

Such a file is five pickles (magic number, protocol, system information, state dict, storage keys), then each storage:
its number of elements as a little-endian int64, and the elements.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.errors import DataError


class _Storage(NamedTuple):
    dtype: str
    key: str
    device: str
    elements: int
    view: None


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int  # in elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    hooks: object


ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class StateDictUnpickler(pickle.Unpickler):
    """Admits only the globals that a state dict needs; any other is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for an allowed global."""
        if (module, name) not in ALLOWED_GLOBALS:
            raise DataError(
                f"the weights file refers to {module}.{name}, which was not loaded",
                expected="tensors only",
                hint="use only weights files from their original source",
            )
        return ALLOWED_GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the description of a storage."""
        return _Storage(*pid[1:])


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict by name, as read-only views of the file's bytes.

    Raises:
        DataError: the file contains anything but tensors.
    """
    stream = io.BytesIO(data)
    _magic, _protocol, _system, tensors, keys = (StateDictUnpickler(stream).load() for _ in range(5))
    described = {t.storage.key: t.storage for t in tensors.values()}
    storages: dict[str, NDArray[Any]] = {}
    position = stream.tell()
    for key in keys:
        position += 8  # the number of elements, which the description has too
        storages[key] = np.frombuffer(data, described[key].dtype, described[key].elements, position)
        position += storages[key].nbytes
    return {name: _view(storages[t.storage.key], t) for name, t in tensors.items()}


def _view(storage: NDArray[Any], tensor: _Tensor) -> NDArray[Any]:
    size = storage.itemsize
    strides = [s * size for s in tensor.strides]
    return np.ndarray(tensor.shape, storage.dtype, storage, tensor.offset * size, strides)  # checks the bounds
