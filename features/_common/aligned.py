"""Arrays at addresses from which TensorFlow reads them in place; it copies all others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes, of TensorFlow's tensors; NumPy's arrays have 16


def take_aligned(values: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """Return `values[indices]` at an address that is a multiple of `ALIGNMENT`."""
    shape = (*indices.shape, *values.shape[1:])
    size = math.prod(shape) * values.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    taken = memory[start : start + size].view(values.dtype).reshape(shape)
    return np.take(values, indices, axis=0, out=taken, mode="wrap")  # "raise" would copy once more
