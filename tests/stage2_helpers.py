"""Clips, maps and configs that several tests of stage two share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.config import Config
from features.head_config import HeadConfig
from features.sequences import FrameSequence, Label
from features.store_tables import TopRecord
from features.streams import FEATURES
from stage2_temporal.heads import find_head
from stage2_temporal.training.scaling import Scale

CLIP_LENGTH, MAP_SHAPE = 6, (3, 4, 16)
# of a config, as the recipe of `write_store` has them
RECIPE_SECTIONS = """
[frames]
width = 32
height = 18
[backbone]
name = "Tiny"
preprocess = false
[extract]
dtype = "float32"
"""


def drifting_clips(counts: Mapping[str, int], noise: float = 0.02) -> tuple[NDArray[np.float16], list[FrameSequence]]:
    """Clips whose maps drift along a fixed pattern, the faster the car drives.

    Args:
        counts: clips per split.
        noise: standard deviation of what is added to each map.

    Returns:
        Maps (clips · CLIP_LENGTH, *MAP_SHAPE), and a sequence per clip with one label at its last frame.
    """
    rng = np.random.default_rng(5)
    pattern, maps, sequences = rng.normal(size=MAP_SHAPE), [], []
    for split, count in counts.items():
        for i in range(1, count + 1):
            speed, vx, vy = rng.uniform(5, 30), rng.normal(0.5, 2.3), rng.normal(0, 0.3)
            start = rng.normal()
            drift = [(start + speed / 30 * t) * pattern for t in range(CLIP_LENGTH)]
            maps.append(np.array(drift) + rng.normal(0, noise, (CLIP_LENGTH, *MAP_SHAPE)))
            targets = {"ego_speed": speed, "vx": vx, "vy": vy}
            label = Label(CLIP_LENGTH - 1, targets, position=(rng.uniform(5, 80), 0.0))
            sequences.append(
                FrameSequence(f"{split.title()}/{i}", split, CLIP_LENGTH, 10.0, (64, 36), f"{split}{i}", (label,))
            )
    return np.concatenate(maps).astype(np.float16), sequences


def conv_top(shape: tuple[int, ...] = MAP_SHAPE) -> TopRecord:
    """Unfrozen layers for maps of a shape (h, w, c): a 1x1 convolution to 8 channels, batch norm, relu."""
    keras.utils.set_random_seed(3)
    maps = keras.Input(shape)
    x = keras.layers.Conv2D(8, 1, use_bias=False, name="conv")(maps)
    x = keras.layers.Activation("relu", name="ac")(keras.layers.BatchNormalization(name="bn")(x))
    model = keras.Model(maps, x)
    return TopRecord(model.to_json(), model.get_weights())


def train_config(
    head: Mapping[str, Any] | None = None,
    target: str = "ego_speed",
    window: Mapping[str, Any] | None = None,
    **train: Any,
) -> Config:
    """A config that trains on `drifting_clips` within a second or two: three epochs of a small pooled LSTM.

    Args:
        head: the section [head] in place of the small pooled LSTM; without a name, changes to it.
        window: the section [window]; default: whole clips.
        train: changes to the section [train].
    """
    small_lstm = {"name": "pooled_lstm", "units": 16, "dense": 8, "dropout": 0.0, "difference": True}
    return Config.model_validate(
        {
            "data": {"target": target},
            "window": window or {"length": CLIP_LENGTH},
            "head": head if head and "name" in head else small_lstm | dict(head or {}),
            "train": {"epochs": 3, "batch": 8, "learning_rate": 0.01} | train,
        }
    )


def build_model(
    shape: tuple[int, ...],
    settings: HeadConfig,
    targets: int,
    *,
    top: TopRecord | None = None,
    target: Scale | None = None,
    vectors: Scale | None = None,
) -> keras.Model:
    """The untrained model of a gradient-trained head, from maps (batch, T, h, w, c) of one shape to (batch, targets).

    Its vectors are standardised by the scale `vectors`, and its output is converted to a unit by `target`.
    """
    head = find_head(settings.name).from_config(Config(head=settings))
    head._read_settings()
    head._shapes, head._targets = {FEATURES: shape}, targets
    head._top, head._target, head._scale = top, target, vectors
    return head._build_model(head._build_graph())
