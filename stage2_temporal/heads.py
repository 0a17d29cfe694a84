"""Heads: what maps a window of per-frame maps to the target.

A head has two steps, each a function from a Keras tensor and the `[head]` section to a Keras tensor: `summarise`
turns maps (batch, T, h, w, c) into vectors (batch, T, features), `regress` turns these into (batch, targets). Between
the two the vectors may be standardised. Only Keras' own layers and operations occur, so that a saved model loads
anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.config import Head as HeadConfig
from features.errors import ConfigError

Tensor = Any  # keras.KerasTensor; keras ships no types


@dataclass(frozen=True)
class Head:
    """A head's two steps.

    Attributes:
        summarise: maps (batch, T, h, w, c) → vectors (batch, T, features).
        regress: vectors (batch, T, features), number of targets → (batch, targets).
        standardise: whether the vectors take part in `train.standardise_inputs`.
        when: one sentence: when to take it.
    """

    summarise: Callable[[Tensor, HeadConfig], Tensor]
    regress: Callable[[Tensor, HeadConfig, int], Tensor]
    standardise: bool
    when: str


def find(name: str) -> Head:
    """The head of that name.

    Raises:
        ConfigError: no such head; lists what there is.
    """
    try:
        return HEADS[name]
    except KeyError:
        raise ConfigError(
            "no such head", expected=f"one of {', '.join(HEADS)}", got=name, mend="--head.name NAME"
        ) from None


def flatten(maps: Tensor, config: HeadConfig) -> Tensor:
    """Every cell and channel of a frame's map as one vector of h·w·c numbers."""
    del config
    return keras.layers.Reshape((maps.shape[1], -1), name="flatten")(maps)


def pool(maps: Tensor, config: HeadConfig) -> Tensor:
    """Each frame's map averaged to `head.grid` cells; with `head.difference` also how much each cell changed.

    The change is |map − map of the frame before|, taken before averaging: texture that moves through a cell leaves the
    cell's average as it is. The first frame is given the second's. Cells of a grid that does not divide the map overlap
    by a row or column.

    Raises:
        ConfigError: a grid finer than the map, or a difference of one frame.
    """
    _, time, height, width, _ = maps.shape
    rows, columns = config.grid
    if not (0 < rows <= height and 0 < columns <= width):
        raise ConfigError(
            "head.grid does not fit the map",
            expected=f"at most {height} rows and {width} columns",
            got=f"{rows}, {columns}",
            mend=f"--head.grid {min(max(rows, 1), height)} {min(max(columns, 1), width)}",
        )
    pooled = average(maps, rows, columns)
    if not config.difference:
        return pooled
    if time < 2:
        raise ConfigError(
            "head.difference needs the frame before",
            expected="a window of at least 2 frames",
            got=time,
            mend="--head.difference False, or a larger --window.length",
        )
    change = average(keras.ops.abs(maps[:, 1:] - maps[:, :-1]), rows, columns)
    return keras.ops.concatenate([pooled, keras.ops.concatenate([change[:, :1], change], axis=1)], axis=-1)


def average(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Maps (batch, T, h, w, c) → (batch, T, rows · columns · c), each cell the mean of its part of the map."""
    _, time, height, width, channels = maps.shape
    # keras.layers.AdaptiveAveragePooling2D refuses some grids inside a graph (3.15); averaging is a product anyway
    x = keras.ops.matmul(averages(height, rows), keras.ops.reshape(maps, (-1, height, width * channels)))
    x = keras.ops.matmul(averages(width, columns), keras.ops.reshape(x, (-1, rows, width, channels)))
    return keras.ops.reshape(x, (-1, time, rows * columns * channels))


def averages(size: int, cells: int) -> NDArray[np.float32]:
    """(cells, size) matrix that averages `size` rows to `cells`.

    Cell i takes rows ⌊i · size / cells⌋ to ⌈(i + 1) · size / cells⌉ − 1, the bounds of PyTorch's adaptive pooling.
    """
    matrix = np.zeros((cells, size), np.float32)
    for i in range(cells):
        start, stop = i * size // cells, -(-(i + 1) * size // cells)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def lstm(vectors: Tensor, config: HeadConfig, targets: int) -> Tensor:
    """LSTM over time → dense relu → dropout → linear."""
    x = keras.layers.LSTM(config.units, activation=config.activation, name="lstm")(vectors)
    if config.dense:
        x = keras.layers.Dense(config.dense, activation="relu", name="dense")(x)
    x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    return keras.layers.Dense(targets, name="output")(x)


HEADS = {
    "flatten_lstm": Head(
        flatten,
        lstm,
        standardise=False,
        when="The published head: take it to reproduce, or with thousands of clips; its LSTM has h·w·c inputs.",
    ),
    "pooled_lstm": Head(
        pool,
        lstm,
        standardise=True,
        when="Take it first: averaged maps train in seconds; for ego speed with --head.difference True.",
    ),
}
