"""Heads that convolve: over the frames of pooled maps, or over the maps themselves."""

from __future__ import annotations

import keras

from features._common.types import Tensor
from features.head_config import ConvLSTMConfig, DeltaConfig, TCNConfig
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.pooled import PooledFrames
from stage2_temporal.training.keras_models import NamedTensors, concatenate


class TCN(PooledFrames, GradientHead):
    """Dilated causal convolutions over time in residual blocks; the output uses the last frame's.

    After Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and recurrent networks for sequence
    modeling" (2018): kernel size 3, and a dilation that doubles from block to block.
    """

    settings = TCNConfig

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        width = self.settings_.units
        x = keras.layers.Dense(width, name="enter")(vectors)
        for i in range(self.settings_.layers):
            # LiteRT has no causal Conv1D with dilation: pad explicitly
            padded = keras.layers.ZeroPadding1D((2 * 2**i, 0), name=f"pad{i}")(x)
            y = keras.layers.Conv1D(width, 3, dilation_rate=2**i, activation="relu", name=f"conv{i}")(padded)
            x = x + keras.layers.Dropout(self.settings_.dropout, name=f"dropout{i}")(y)
        return self.dense_output(x[:, -1], targets)


class Delta(GradientHead):
    """Convolutions over the maps and their differences from frame to frame, averaged over space and time.

    Unlike pooled heads it keeps the sign of the differences, from which a small filter can tell where an edge moved.
    """

    settings = DeltaConfig
    standardises_vectors = False

    def vectors(self, features: NamedTensors) -> Tensor:
        parts = []
        for name, values in features.items():
            maps = self.with_top(values, name)
            _, time, height, width, channels = maps.shape
            steps = max(time - 1, 1)
            now, before = maps[:, -steps:], maps[:, :steps]  # a single frame is compared with itself
            both = keras.ops.concatenate([now - before, now], axis=-1)
            x = keras.ops.reshape(both, (-1, height, width, 2 * channels))
            x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
            for i in range(self.settings_.layers):
                x = keras.layers.Conv2D(
                    self.settings_.units, 3, strides=2, padding="same", activation="relu", name=f"{name}_conv{i}"
                )(x)
            x = keras.ops.mean(x, axis=(1, 2))
            parts.append(keras.ops.mean(keras.ops.reshape(x, (-1, steps, self.settings_.units)), axis=1))
        return concatenate(parts)


class ConvLSTM(GradientHead):
    """An LSTM whose state is a map and whose gates are 3x3 convolutions; its last state is averaged over the map."""

    settings = ConvLSTMConfig
    standardises_vectors = False

    def vectors(self, features: NamedTensors) -> Tensor:
        parts = []
        for name, values in features.items():
            maps = self.with_top(values, name)
            x = keras.layers.ConvLSTM2D(self.settings_.units, 3, padding="same", name=f"{name}_conv_lstm")(maps)
            parts.append(keras.ops.mean(x, axis=(1, 2)))
        return concatenate(parts)
