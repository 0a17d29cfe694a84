"""Motion between maps: where the content of each cell was some frames before, by local correlation.

Each position's channels are compared with those around the same position of an earlier map (a cost volume, as in
FlowNet, Dosovitskiy et al. 2015, and PWC-Net, Sun et al. 2018). The displacement is the mean of all compared ones,
weighted by a softmax of their correlations (soft-argmax), so it is finer than a position of the map.
"""

from __future__ import annotations

import keras
import numpy as np

from features._common.types import Tensor
from stage2_temporal.data.pooling import check_window, pool_frames

# of each cell: mean displacement to the right and down in positions of the map, weighted by sharpness; the logarithm of
# its length; mean sharpness (largest softmax weight) and correlation; logarithm of the mean change of the maps
CELL_FEATURES = ("right", "down", "log_length", "sharpness", "correlation", "log_change")
INVERSE_TEMPERATURE = 60.0  # of the softmax over correlations, which lie between −1 and 1
MIN_NORM = 1e-3  # of a position's channels, relative to the map's mean norm; below, its correlations tend to 0
MIN_LENGTH = 0.1  # positions: added to displacements before the logarithm
SQUARE_FLOOR = 1e-12  # added before a square root, whose gradient is infinite at 0
CHANGE_FLOOR = 1e-3  # of a cell, relative to the map's mean norm: added before the logarithm
BLOCK = 20  # columns that are correlated in one product; 40 take a third longer, and 2 to 5 % less for the gradient


def visible_rows(height: int, skip_top: float) -> range:
    """The rows of a map that are left once the share `skip_top` at its top is skipped."""
    return range(int(height * skip_top), height)


def normalise_maps(maps: Tensor, skip_top: float = 0.0) -> Tensor:
    """Prepare maps (batch, T, h, w, c), each by itself, for `correlate_frames`: (batch, T, rows, w, c + c).

    The first c channels have mean 0 and norm 1 at each position; the others are the map itself over its mean norm.
    """
    maps = maps[:, :, visible_rows(maps.shape[2], skip_top).start :]
    centred = maps - keras.ops.mean(maps, axis=-1, keepdims=True)
    norm = keras.ops.sqrt(keras.ops.sum(keras.ops.square(centred), axis=-1, keepdims=True) + SQUARE_FLOOR)
    mean_norm = keras.ops.mean(norm, axis=(2, 3), keepdims=True)
    return keras.ops.concatenate([centred / (norm + MIN_NORM * mean_norm), maps / mean_norm], axis=-1)


def correlate_frames(normalised: Tensor, lag: int, grid: tuple[int, int], search: tuple[int, int]) -> Tensor:
    """Compute how the content of each cell moved over `lag` frames.

    Args:
        normalised: (batch, T, h, w, c + c), from `normalise_maps`.
        lag: frames between the two maps that are compared.
        grid: rows and columns of cells.
        search: how many rows and columns away, in each direction, the earlier position is searched for.

    Returns:
        (batch, T − lag, rows · columns · 6), see `CELL_FEATURES`.

    Raises:
        ConfigError: the grid is finer than the map, or the window too short for the lag.
    """
    check_window(normalised.shape[1], lag)
    _, time, height, width, channels = normalised.shape
    time -= lag
    before, now = (
        keras.ops.reshape(x, (-1, height, width, channels)) for x in (normalised[:, :-lag], normalised[:, lag:])
    )
    change = keras.ops.mean(keras.ops.abs(now - before)[..., channels // 2 :], axis=-1)
    costs = _local_correlation(now[..., : channels // 2], before[..., : channels // 2], search)
    highest = keras.ops.max(costs, axis=(3, 4), keepdims=True)
    weights = keras.ops.exp((costs - highest) * INVERSE_TEMPERATURE)
    sharpness = 1 / keras.ops.sum(weights, axis=(3, 4))  # the largest weight, once they sum to 1
    rows, columns = (np.arange(-n, n + 1, dtype=np.float32) for n in search)
    # content that was above and to the left has moved down and to the right
    right = -keras.ops.sum(keras.ops.sum(weights, axis=3) * columns, axis=-1) * sharpness
    down = -keras.ops.sum(keras.ops.sum(weights, axis=4) * rows, axis=-1) * sharpness
    highest = keras.ops.reshape(highest, (-1, height, width))
    values = keras.ops.stack([right * sharpness, down * sharpness, sharpness, highest, change], axis=-1)
    pooled = pool_frames(keras.ops.reshape(values, (-1, time, height, width, 5)), grid)
    pooled = keras.ops.reshape(pooled, (-1, time, grid[0] * grid[1], 5))
    right, down = (pooled[..., i] / pooled[..., 2] for i in (0, 1))
    length = keras.ops.sqrt(keras.ops.square(right) + keras.ops.square(down) + SQUARE_FLOOR)
    cells = [
        right,
        down,
        keras.ops.log(length + MIN_LENGTH),
        pooled[..., 2],
        pooled[..., 3],
        keras.ops.log(pooled[..., 4] + CHANGE_FLOOR),
    ]
    return keras.ops.reshape(keras.ops.stack(cells, axis=-1), (-1, time, grid[0] * grid[1] * len(CELL_FEATURES)))


def _local_correlation(now: Tensor, before: Tensor, search: tuple[int, int]) -> Tensor:
    """Correlate each position with those around it: (batch, h, w, c) twice → (batch, h, w, rows, columns).

    Blocks of a row are multiplied as matrices, and the diagonal band of each product is kept: with each of its rows
    shifted by one more number, the band is a rectangle. That takes a third of the time of multiplying displacement by
    displacement.
    """
    ops = keras.ops
    (rows, columns), (_, height, width, channels) = search, now.shape
    blocks = -(-width // BLOCK)
    extra, wide = blocks * BLOCK - width, BLOCK + 2 * columns
    now = ops.reshape(ops.pad(now, [(0, 0), (0, 0), (0, extra), (0, 0)]), (-1, height, blocks, BLOCK, channels))
    padded = ops.pad(before, [(0, 0), (rows, rows), (columns, columns + extra), (0, 0)])
    parts = ops.stack([padded[:, :, k * BLOCK : k * BLOCK + wide] for k in range(blocks)], axis=2)
    parts = ops.transpose(parts, (0, 1, 2, 4, 3))
    bands = []
    for i in range(2 * rows + 1):  # one row at a time, which halves the time of the gradient
        products = ops.reshape(ops.matmul(now, parts[:, i : i + height]), (-1, height, blocks, BLOCK * wide))
        products = ops.pad(products, [(0, 0), (0, 0), (0, 0), (0, BLOCK)])
        band = ops.reshape(products, (-1, height, blocks, BLOCK, wide + 1))[..., : 2 * columns + 1]
        bands.append(ops.reshape(band, (-1, height, blocks * BLOCK, 2 * columns + 1))[:, :, :width])
    return ops.stack(bands, axis=3)
