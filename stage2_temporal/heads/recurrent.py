"""Recurrent heads: an LSTM or GRU over the frames, then a dense layer, dropout and a linear output."""

from __future__ import annotations

from typing import ClassVar

import keras

from features._common.types import Tensor
from features.head_config import FlattenLSTMConfig, GRUConfig, PooledLSTMConfig
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.pooled import PooledFrames
from stage2_temporal.training.keras_models import NamedTensors, concatenate


class Recurrent(GradientHead):
    """A recurrent layer over vectors (batch, T, F), and the dense output."""

    layer: ClassVar[str] = "LSTM"  # the Keras layer's name

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        layer = getattr(keras.layers, self.layer)
        x = layer(self.settings_.units, activation=self.settings_.activation, name=self.layer.lower())(vectors)
        return self.dense_output(x, targets)


class FlattenLSTM(Recurrent):
    """The published head: an LSTM on each frame's whole map, flattened to h·w·c numbers."""

    settings = FlattenLSTMConfig
    standardises_vectors = False

    def vectors(self, features: NamedTensors) -> Tensor:
        flat = []
        for name, values in features.items():
            maps = self.with_top(values, name)
            layer = "flatten" if len(features) == 1 else f"flatten_{name}"
            flat.append(keras.layers.Reshape((maps.shape[1], -1), name=layer)(maps))
        return concatenate(flat)


class PooledLSTM(PooledFrames, Recurrent):
    """An LSTM over pooled maps."""

    settings = PooledLSTMConfig


class GRU(PooledFrames, Recurrent):
    """A GRU over pooled maps."""

    settings = GRUConfig
    layer = "GRU"
