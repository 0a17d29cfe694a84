"""Recurrent heads: LSTM and GRU over the frames, then dense relu → dropout → linear."""

from __future__ import annotations

from typing import ClassVar

import keras

from features._common.types import Tensor
from features.head_config import FlattenLSTMConfig, GRUConfig, PooledLSTMConfig
from stage2_temporal.data.examples import as_maps
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.graph import NamedTensors, concatenate
from stage2_temporal.heads.pooled import PooledFrames


class Recurrent(GradientHead):
    """A recurrent layer over time and what follows it."""

    layer: ClassVar[str] = "LSTM"

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        make = getattr(keras.layers, self.layer)
        x = make(self._head.units, activation=self._head.activation, name=self.layer.lower())(vectors)
        return output_layers(self, x, targets)


class FlattenLSTM(Recurrent):
    """Every cell and channel of a frame's map as one vector of h·w·c numbers, then the LSTM: the published head."""

    settings = FlattenLSTMConfig
    standardised = False

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        flat = []
        for name, values in arrays.items():
            maps = self._with_top(as_maps(values), name)
            label = "flatten" if len(arrays) == 1 else f"flatten_{name}"
            flat.append(keras.layers.Reshape((maps.shape[1], -1), name=label)(maps))
        return concatenate(flat)


class PooledLSTM(PooledFrames, Recurrent):
    """LSTM over pooled maps."""

    settings = PooledLSTMConfig


class GRU(PooledFrames, Recurrent):
    """GRU over pooled maps."""

    settings = GRUConfig
    layer = "GRU"


def output_layers(head: Head, x: Tensor, targets: int) -> Tensor:
    """Dense relu → dropout → linear, on (batch, features)."""
    if head._head.dense:
        x = keras.layers.Dense(head._head.dense, activation="relu", name="dense")(x)
    x = keras.layers.Dropout(head._head.dropout, name="dropout")(x)
    return keras.layers.Dense(targets, name="output")(x)
