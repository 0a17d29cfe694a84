"""A small transformer encoder over pooled maps."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Tensor
from features.head_config import AttentionConfig
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.pooled import PooledFrames

ATTENTION_HEADS = 4


class Attention(PooledFrames, GradientHead):
    """Self-attention over the frames: `layers` blocks of width `units`, averaged over time at the end.

    After Vaswani et al., "Attention is all you need" (2017), with layer normalisation before each step instead of
    after it, as is usual today.
    """

    settings = AttentionConfig

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        width, dropout = self.settings_.units, self.settings_.dropout
        x = keras.layers.Dense(width, name="enter")(vectors) + positional_encoding(vectors.shape[1], width)
        for i in range(self.settings_.layers):
            y = keras.layers.LayerNormalization(name=f"norm{i}a")(x)
            y = keras.layers.MultiHeadAttention(
                ATTENTION_HEADS, max(1, width // ATTENTION_HEADS), name=f"attention{i}"
            )(y, y)
            x = x + keras.layers.Dropout(dropout, name=f"dropout{i}a")(y)
            y = keras.layers.LayerNormalization(name=f"norm{i}b")(x)
            y = keras.layers.Dense(2 * width, activation="relu", name=f"wide{i}")(y)
            x = x + keras.layers.Dropout(dropout, name=f"dropout{i}b")(keras.layers.Dense(width, name=f"back{i}")(y))
        x = keras.layers.LayerNormalization(name="norm")(x)
        return self.dense_output(keras.ops.mean(x, axis=1), targets)


def positional_encoding(time: int, width: int) -> NDArray[np.float32]:
    """(time, width) sines and cosines that encode each frame's position."""
    rate = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle = np.arange(time)[:, None] * rate
    return np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
