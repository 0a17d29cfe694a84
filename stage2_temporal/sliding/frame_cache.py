"""Compute features of frames and of pairs of frames once, although the windows of a stream overlap.

Neighbouring windows share nearly all their frames, and a map has a hundred times as many numbers as its features, so
that gathering windows of maps costs more than the head does.
"""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.config import Config
from stage2_temporal.data.pooling import as_maps, feature_name
from stage2_temporal.heads import find_head
from stage2_temporal.heads.frame_pairs import FramePairsHead
from stage2_temporal.training.keras_models import NamedTensors, submodel_from

MIN_REUSE = 2  # windows that a frame must be in, on average, for the cache to pay


class FrameCache:
    """The features of a stream's frames, each from its map and those that lie a lag before it.

    `head` is the model from windows of features to the prediction; `lags` says for each feature how many frames at a
    window's start have none.
    """

    def __init__(self, pooled: FramePairsHead, model: keras.Model, maps: NamedTensors, stride: int) -> None:
        (length,) = {tensor.shape[1] for tensor in maps.values()}
        self._pooled, self._stride = pooled, stride
        self._input_lags = pooled.feature_lags(length)
        self.lags = {feature_name(name, lag): lag for name in maps for lag in self._input_lags}
        self.head = submodel_from({name: model.get_layer(name).output for name in self.lags}, model)
        self._before: NamedTensors = {}

    @classmethod
    def of(cls, config: Config, model: keras.Model, maps: NamedTensors, rows: NDArray[np.int64]) -> Self | None:
        """Make the cache for a run's model and windows of the frames `rows` (n, T); None if it would save nothing.

        `maps` are the model's tensors of windows of maps (batch, T, h, w, c), by input.
        """
        head, strides = find_head(config.head.name), np.unique(np.diff(rows, axis=1))
        reused = rows.size >= MIN_REUSE * (rows.max() - rows.min() + 1)
        if not issubclass(head, FramePairsHead) or len(strides) != 1 or not reused:
            return None
        return cls(head.from_config(config).restore(model), model, maps, int(strides[0]))

    def __call__(self, maps: NamedTensors) -> dict[str, NDArray[np.float32]]:
        """Compute the features (n, F) of the stream's next n frames from their maps (n, h, w, c), by input.

        Changes from before the stream's first frame are undefined; no window uses them.
        """
        features: dict[str, NDArray[np.float32]] = {}
        for name, values in maps.items():
            frames = self._pooled.reduce_frames(name, as_maps(tf.cast(values, tf.float32)[None]))
            kept = max(self._input_lags) * self._stride
            if name not in self._before:
                self._before[name] = tf.zeros((1, kept, *frames.shape[2:]))
            frames = tf.concat([self._before[name], frames], axis=1)
            self._before[name] = frames[:, frames.shape[1] - kept :]
            for lag in self._input_lags:
                step = lag * self._stride
                changes: Any = self._pooled.frame_features(frames[:, kept - step :], step)
                features[feature_name(name, lag)] = np.asarray(changes[0])
        return features
