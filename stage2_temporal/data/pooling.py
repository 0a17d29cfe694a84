"""What pooled heads take from each frame: its map averaged over a grid of cells, and how much each cell changed.

The same functions compute it everywhere: in a head's graph (`heads.pooled`), for the derived streams of a store
(`derived_streams`), and frame by frame for sliding windows (`sliding.frame_cache`).
"""

from __future__ import annotations

import keras

from features._common.types import Tensor
from features.errors import ConfigError
from features.grids import averaging_matrix


def as_maps(values: Tensor) -> Tensor:
    """Turn vectors (batch, T, F) into maps of one cell (batch, T, 1, 1, F); maps stay as they are."""
    if len(values.shape) == 5:
        return values
    _, time, features = values.shape
    return keras.ops.reshape(values, (-1, time, 1, 1, features))


def feature_name(input_name: str, lag: int = 0) -> str:
    """The name of a model's layer that outputs one input's features (lag 0) or their change over `lag` frames."""
    return f"{input_name}.change{lag}" if lag else f"{input_name}.mean"


def pool_frames(maps: Tensor, grid: tuple[int, int], lag: int = 0) -> Tensor:
    """Average each map over a grid of cells or, with a lag, how much it changed.

    The change is the mean of |map − map `lag` frames before| in each cell. The difference is taken before averaging:
    texture that moves within a cell leaves the cell's mean as it is.

    Args:
        maps: (batch, T, h, w, c).
        grid: rows and columns. Cells of a grid that does not divide the map overlap by a row or column.
        lag: frames between the two maps that are compared; 0 averages the maps themselves.

    Returns:
        (batch, T − lag, rows · columns · c).

    Raises:
        ConfigError: the grid is finer than the map, or the window too short for the lag.
    """
    _, _, height, width, channels = maps.shape
    check_grid(grid, height, width)
    values = absolute_differences(maps, lag) if lag else maps
    time, (rows, columns) = values.shape[1], grid
    # keras.layers.AdaptiveAveragePooling2D refuses some grids inside a graph (3.15), so multiply by matrices instead
    x = keras.ops.matmul(averaging_matrix(height, rows), keras.ops.reshape(values, (-1, height, width * channels)))
    x = keras.ops.matmul(averaging_matrix(width, columns), keras.ops.reshape(x, (-1, rows, width, channels)))
    return keras.ops.reshape(x, (-1, time, rows * columns * channels))


def absolute_differences(values: Tensor, lag: int) -> Tensor:
    """|value − value `lag` frames before|, (batch, T, …) → (batch, T − lag, …); a ConfigError if T is too small."""
    check_window(values.shape[1], lag)
    return keras.ops.abs(values[:, lag:] - values[:, :-lag])


def check_window(length: int, lag: int) -> None:
    """Raise a ConfigError if a window has no two frames that are `lag` apart."""
    if length <= lag:
        raise ConfigError(
            "the window is too short for difference features",
            expected=f"a window of at least {lag + 1} frames",
            got=length,
            hint=("--head.difference false" if lag == 1 else "smaller --head.lags") + ", or a larger --window.length",
        )


def check_grid(grid: tuple[int, int], height: int, width: int) -> None:
    """Raise a ConfigError, with the nearest grid that fits, if a grid is finer than the map."""
    rows, columns = grid
    if not (0 < rows <= height and 0 < columns <= width):
        raise ConfigError(
            "head.grid does not fit the map",
            expected=f"at most {height} rows and {width} columns",
            got=f"{rows}, {columns}",
            hint=f"--head.grid {min(max(rows, 1), height)} {min(max(columns, 1), width)}",
        )
