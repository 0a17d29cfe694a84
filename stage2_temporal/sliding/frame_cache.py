"""What a pooled head looks at, computed once a frame although windows overlap: its maps' cells, and how they changed.

A saved pooled model names what its maps are summarised to (`<input>.mean`, `<input>.change<lag>`, see
`heads.pooled.Pooled`). Of windows that slide along a stream, neighbours share nearly all of it; and a map has a hundred
times the numbers of its summary, so that gathering windows of maps costs more than the head does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from stage2_temporal.heads.graph import NamedTensors, submodel_from

Entries = dict[str, NDArray[np.float32]]
Rows = NDArray[np.int64]
KIND = re.compile(r"(?P<input>.+)\.(?:mean|change(?P<lag>[0-9]+))")
SAVED = 2  # times that a frame must be in windows, on average


class FrameCache:
    """Summaries of a stream's frames, each from its map and those `lag` steps before it.

    Attributes:
        head: from windows of summaries to the answer.
        lags: by the name of a summary, how many of a window's frames have none: the first `lag`.
    """

    def __init__(self, model: keras.Model, maps: NamedTensors, lags: Mapping[str, int], stride: int) -> None:
        """For windows of frames `stride` apart, of a model whose layers of these names give its summaries."""
        self.lags, self._stride = dict(lags), stride
        shapes = {name: tensor.shape[1:] for name, tensor in maps.items()}
        self._length = next(iter(shapes.values()))[0]
        outputs = {name: model.get_layer(name).output for name in lags}
        summarise = keras.Model(list(maps.values()), outputs)
        self.head = submodel_from(outputs, model)
        self._back = max(lags.values()) * stride
        self._before = {n: tf.zeros((self._back, *shape[1:])) for n, shape in shapes.items()}

        def run(before: NamedTensors, maps: NamedTensors, rows: Any) -> tuple[NamedTensors, NamedTensors]:
            whole = {n: tf.concat([before[n], tf.cast(maps[n], tf.float32)], 0) for n in shapes}
            found = summarise([tf.gather(whole[n], rows) for n in shapes], training=False)
            return {n: values[tf.shape(values)[0] - self._back :] for n, values in whole.items()}, found

        self._run = tf.function(run, reduce_retracing=True, autograph=False)

    @classmethod
    def of(cls, model: keras.Model, maps: NamedTensors, rows: Rows) -> Self | None:
        """That of a model for windows `rows` (n, T) of a stream; None where there is none, or it would save nothing.

        Args:
            maps: the model's tensors of windows of frames, by input.
        """
        found = {layer.name: match for layer in model.layers if (match := KIND.fullmatch(layer.name))}
        if not found or {m["input"] for m in found.values()} != set(maps):
            return None
        steps = np.unique(np.diff(rows, axis=1))
        if len(steps) != 1 or rows.size < SAVED * (rows.max() - rows.min() + 1):
            return None
        return cls(model, maps, {name: int(m["lag"] or 0) for name, m in found.items()}, int(steps[0]))

    def __call__(self, maps: NamedTensors) -> Entries:
        """The summaries of the stream's next frames, (n, F) each, from their maps (n, …), arrays or tensors, by input.

        What a summary compares with frames before the stream's first is undefined; no window has it.
        """
        count = len(next(iter(maps.values())))
        rows, window, place = covering_windows(count, self._length, self._stride, max(self.lags.values()))
        self._before, found = self._run(self._before, {n: tf.constant(m) for n, m in maps.items()}, tf.constant(rows))
        return {name: values.numpy()[window, place - self.lags[name]] for name, values in found.items()}


def covering_windows(count: int, length: int, stride: int, lag: int) -> tuple[Rows, Rows, Rows]:
    """The fewest windows in which each of `count` frames has the frame `lag` steps before it.

    Args:
        length: frames a window, more than `lag`.
        stride: frames from one of its frames to the next.

    Returns:
        (n, length) frames of each window, counted from `lag · stride` before the first of the `count`; those earlier
        still are replaced. Then for each frame its window, and its place there, `lag` or later.
    """
    rows: list[Rows] = []
    window, place = np.empty(count, np.int64), np.empty(count, np.int64)
    width = length - lag
    for first in range(min(stride, count)):
        own = np.arange(first, count, stride)
        for part in (own[at : at + width] for at in range(0, len(own), width)):
            window[part], place[part] = len(rows), length - len(part) + np.arange(len(part))
            rows.append(np.maximum(part[-1] + stride * (np.arange(length) - length + 1 + lag), 0))
    return np.stack(rows), window, place
