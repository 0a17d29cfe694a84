"""Averaging a map over a grid of cells, as a matrix for its rows and one for its columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def averaging_matrix(size: int, cells: int) -> NDArray[np.float32]:
    """The (cells, size) matrix that averages `size` rows to `cells`.

    Cell i takes rows ⌊i · size / cells⌋ to ⌈(i + 1) · size / cells⌉ − 1, the bounds of PyTorch's adaptive pooling.
    """
    matrix = np.zeros((cells, size), np.float32)
    for i in range(cells):
        start, stop = i * size // cells, -(-(i + 1) * size // cells)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
