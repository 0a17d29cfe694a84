"""A small transformer encoder over the frames of pooled maps."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Tensor
from features.head_config import AttentionConfig
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.pooled import PooledFrames
from stage2_temporal.heads.recurrent import output_layers

ATTENTION_HEADS = 4


class Attention(PooledFrames, GradientHead):
    """Self-attention over the frames, `layers` blocks of `units` numbers a frame, averaged over time at the end.

    After Vaswani et al., "Attention is all you need" (2017), with the norm before each step as is usual since.
    """

    settings = AttentionConfig

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        head, width = self._head, self._head.units
        x = keras.layers.Dense(width, name="enter")(vectors) + positional_encoding(vectors.shape[1], width)
        for i in range(head.layers):
            y = keras.layers.LayerNormalization(name=f"norm{i}a")(x)
            y = keras.layers.MultiHeadAttention(
                ATTENTION_HEADS, max(1, width // ATTENTION_HEADS), name=f"attention{i}"
            )(y, y)
            x = x + keras.layers.Dropout(head.dropout, name=f"dropout{i}a")(y)
            y = keras.layers.LayerNormalization(name=f"norm{i}b")(x)
            y = keras.layers.Dense(2 * width, activation="relu", name=f"wide{i}")(y)
            x = x + keras.layers.Dropout(head.dropout, name=f"dropout{i}b")(
                keras.layers.Dense(width, name=f"back{i}")(y)
            )
        x = keras.layers.LayerNormalization(name="norm")(x)
        return output_layers(self, keras.ops.mean(x, axis=1), targets)


def positional_encoding(time: int, width: int) -> NDArray[np.float32]:
    """(time, width) sines and cosines that tell the frames apart."""
    rate = 10000.0 ** (-2 * (np.arange(width) // 2) / width)
    angle = np.arange(time)[:, None] * rate
    return np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)
