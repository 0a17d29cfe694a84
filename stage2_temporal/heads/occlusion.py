"""How much each cell of the maps counts: by how much a prediction changes when the cell is hidden.

A cell is hidden by putting the training examples' mean map in its place, in all frames of the window and in all streams
of maps that the head reads (M. Zeiler, R. Fergus, "Visualizing and Understanding Convolutional Networks", 2014).
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.config import Config
from features.errors import ConfigError
from stage2_temporal.data.examples import StoreExamples
from stage2_temporal.heads.base import Head
from stage2_temporal.training.keras_models import model_inputs

MOST_CELLS = (6, 8)  # rows and columns of cells; fewer where maps are smaller
EXAMPLES_AT_ONCE = 16
MEAN_EXAMPLES = 64  # training examples whose mean stands for a hidden cell


def occlusion_maps(
    head: Head, X: StoreExamples, training: StoreExamples, config: Config, deviation: Floats, seconds: float
) -> Floats:
    """Measure how much each cell counts for the examples X, in order, as many as there is time for.

    Args:
        head: fitted or restored.
        training: examples whose mean replaces what is hidden.
        deviation: (K,) standard deviation of the training targets, the unit of the changes.
        seconds: no further examples are taken after this time; some always are.

    Returns:
        (m, rows, columns) Euclidean norm of the prediction's change for each of the first m examples and each cell.

    Raises:
        ConfigError: the head reads no maps with several cells.
    """
    names = [name for name, stream in head.input_streams.items() if stream in config.map_streams]
    shapes = {name: shape[1:3] for name, shape in head.input_shapes(X).items() if name in names and len(shape) == 4}
    rows, columns = (min([most, *(s[axis] for s in shapes.values())]) for axis, most in enumerate(MOST_CELLS))
    if not shapes or rows * columns < 2:
        raise ConfigError(
            f"{config.head.name} reads no maps, so there are no cells to hide",
            expected="a head on maps of several cells",
            got=", ".join(config.head.input_streams),
            hint="a run with other --head.streams",
        )
    chosen = np.linspace(0, len(training) - 1, min(MEAN_EXAMPLES, len(training))).round().astype(int)
    examples = head.input_arrays(training[chosen])
    means = {name: np.asarray(examples[name], np.float32).mean(axis=(0, 1)) for name in shapes}
    start, maps = time.perf_counter(), list[Floats]()
    for first in range(0, len(X), EXAMPLES_AT_ONCE):
        if maps and time.perf_counter() - start > seconds:
            break
        inputs = {n: np.array(v, np.float32) for n, v in head.input_arrays(X[first : first + EXAMPLES_AT_ONCE]).items()}
        predicted = _predict(head, inputs)
        changes = np.empty((len(predicted), rows, columns))
        for row in range(rows):
            for column in range(columns):
                hidden = {}
                for name, (height, width) in shapes.items():
                    cell = (_span(row, rows, height), _span(column, columns, width))
                    hidden[name] = inputs[name][:, :, *cell].copy()
                    inputs[name][:, :, *cell] = means[name][cell]
                changes[:, row, column] = np.linalg.norm((_predict(head, inputs) - predicted) / deviation, axis=1)
                for name, (height, width) in shapes.items():
                    inputs[name][:, :, _span(row, rows, height), _span(column, columns, width)] = hidden[name]
        maps.append(changes)
    return np.concatenate(maps)


def _predict(head: Head, inputs: dict[str, NDArray[np.float32]]) -> Floats:
    return np.asarray(head.model_.predict_on_batch(model_inputs(inputs)), np.float64)


def _span(cell: int, cells: int, size: int) -> slice:
    """The rows or columns of a cell; cells that do not divide the map overlap, as in pooling."""
    return slice(cell * size // cells, -(-(cell + 1) * size // cells))
