"""Heads that convolve: over the frames of pooled maps, or over the maps themselves."""

from __future__ import annotations

import keras

from features._common.types import Tensor
from features.head_config import ConvLSTMConfig, DeltaConfig, TCNConfig
from stage2_temporal.data.examples import as_maps
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.graph import NamedTensors, concatenate
from stage2_temporal.heads.pooled import PooledFrames
from stage2_temporal.heads.recurrent import output_layers


class TCN(PooledFrames, GradientHead):
    """Dilated causal convolutions over time, each block with a way around it; the last frame's answer counts.

    After Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and recurrent networks for sequence
    modeling" (2018): kernel 3, dilation doubled from block to block.
    """

    settings = TCNConfig

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        width = self._head.units
        x = keras.layers.Dense(width, name="enter")(vectors)
        for i in range(self._head.layers):
            # padded by hand: a causal Conv1D with dilation is no operation of LiteRT's
            padded = keras.layers.ZeroPadding1D((2 * 2**i, 0), name=f"pad{i}")(x)
            y = keras.layers.Conv1D(width, 3, dilation_rate=2**i, activation="relu", name=f"conv{i}")(padded)
            x = x + keras.layers.Dropout(self._head.dropout, name=f"dropout{i}")(y)
        return output_layers(self, x[:, -1], targets)


class Delta(GradientHead):
    """What moved from frame to frame: the maps' differences, convolved to `units` channels and averaged over time.

    The differences' sign is kept, which pooling loses: a small filter can tell which way an edge went.
    """

    settings = DeltaConfig
    standardised = False

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        parts = []
        for name, values in arrays.items():
            maps = self._with_top(as_maps(values), name)
            _, time, height, width, channels = maps.shape
            steps = max(time - 1, 1)
            now, before = maps[:, -steps:], maps[:, :steps]  # one frame alone shows no change
            both = keras.ops.concatenate([now - before, now], axis=-1)
            x = keras.ops.reshape(both, (-1, height, width, 2 * channels))
            x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
            for i in range(self._head.layers):
                x = keras.layers.Conv2D(
                    self._head.units, 3, strides=2, padding="same", activation="relu", name=f"{name}_conv{i}"
                )(x)
            x = keras.ops.mean(x, axis=(1, 2))
            parts.append(keras.ops.mean(keras.ops.reshape(x, (-1, steps, self._head.units)), axis=1))
        return concatenate(parts)

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        return output_layers(self, vectors, targets)


class ConvLSTM(GradientHead):
    """An LSTM whose state is a map: its gates are 3x3 convolutions, its last state is averaged over the map."""

    settings = ConvLSTMConfig
    standardised = False

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        parts = []
        for name, values in arrays.items():
            maps = self._with_top(as_maps(values), name)
            x = keras.layers.ConvLSTM2D(self._head.units, 3, padding="same", name=f"{name}_conv_lstm")(maps)
            parts.append(keras.ops.mean(x, axis=(1, 2)))
        return concatenate(parts)

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        return output_layers(self, vectors, targets)
