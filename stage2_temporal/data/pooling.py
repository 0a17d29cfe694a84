"""Maps averaged to a grid of cells, and how much each cell changed: what pooled heads look at."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Tensor
from features.errors import ConfigError


def check_grid(grid: tuple[int, int], height: int, width: int) -> None:
    """Refuse a grid finer than the map.

    Raises:
        ConfigError: with the nearest grid that fits.
    """
    rows, columns = grid
    if not (0 < rows <= height and 0 < columns <= width):
        raise ConfigError(
            "head.grid does not fit the map",
            expected=f"at most {height} rows and {width} columns",
            got=f"{rows}, {columns}",
            hint=f"--head.grid {min(max(rows, 1), height)} {min(max(columns, 1), width)}",
        )


def grid_means(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (batch, T, h, w, c) → (batch, T, rows · columns · c), each cell the mean of its part of the map.

    Cells of a grid that does not divide the map overlap by a row or column.
    """
    _, time, height, width, channels = maps.shape
    rows, columns = grid
    # keras.layers.AdaptiveAveragePooling2D refuses some grids inside a graph (3.15); averaging is a product anyway
    x = keras.ops.matmul(averaging_matrix(height, rows), keras.ops.reshape(maps, (-1, height, width * channels)))
    x = keras.ops.matmul(averaging_matrix(width, columns), keras.ops.reshape(x, (-1, rows, width, channels)))
    return keras.ops.reshape(x, (-1, time, rows * columns * channels))


def grid_changes(maps: Tensor, grid: tuple[int, int], lag: int = 1) -> Tensor:
    """How much each cell changed over `lag` frames: (batch, T − lag, rows · columns · c).

    The change is |map − map `lag` frames before|, taken before averaging: texture that moves through a cell leaves the
    cell's average as it is.

    Raises:
        ConfigError: see `absolute_differences`.
    """
    return grid_means(absolute_differences(maps, lag), grid)


def absolute_differences(values: Tensor, lag: int) -> Tensor:
    """|value − value `lag` frames before|: (batch, T, …) → (batch, T − lag, …).

    Raises:
        ConfigError: the window has no frame so long before.
    """
    if values.shape[1] <= lag:
        raise ConfigError(
            "head.difference needs the frame before" if lag == 1 else "head.lags reach beyond the window",
            expected=f"a window of at least {lag + 1} frames",
            got=values.shape[1],
            hint=("--head.difference False" if lag == 1 else "smaller --head.lags") + ", or a larger --window.length",
        )
    return keras.ops.abs(values[:, lag:] - values[:, :-lag])


def averaging_matrix(size: int, cells: int) -> NDArray[np.float32]:
    """(cells, size) matrix that averages `size` rows to `cells`.

    Cell i takes rows ⌊i · size / cells⌋ to ⌈(i + 1) · size / cells⌉ − 1, the bounds of PyTorch's adaptive pooling.
    """
    matrix = np.zeros((cells, size), np.float32)
    for i in range(cells):
        start, stop = i * size // cells, -(-(i + 1) * size // cells)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
