"""The engine: runs the trunk over batches of uint8 frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features.config import Config
from features.errors import ConfigError
from features.recipe import Recipe
from features.store import StreamInfo, TopRecord
from stage1_extract import cut as cuts
from stage1_extract.backbones import Loaded, load
from stage1_extract.clips import Image


@dataclass(frozen=True)
class Trunk:
    """The frozen part of a backbone, from uint8 frames to the map at the cut.

    Attributes:
        model: uint8 (batch, height, width, 3) → float32 map; preprocessing inside.
        backbone: the whole backbone it was cut from.
        cut: where.
        recipe: what its numbers follow from.
        with_top: whether the layers above the cut go into the store.
    """

    model: keras.Model
    backbone: Loaded
    cut: cuts.Cut
    recipe: Recipe
    with_top: bool

    @property
    def stream(self) -> StreamInfo:
        """Shape and type of one frame's map in the store."""
        return StreamInfo(tuple(self.model.output.shape[1:]), self.recipe.dtype)

    def top(self) -> TopRecord | None:
        """The unfrozen layers as the store keeps them."""
        part = cuts.top(self.backbone.model, self.cut)
        if part is None or not self.with_top:
            return None
        # Keras makes up the input's name; the store's bytes must not depend on it
        text = part.to_json().replace(part.layers[0].name, "map")
        return TopRecord(text, part.get_weights())


def build_trunk(config: Config) -> Trunk:
    """The backbone a config names, cut, with preprocessing in front.

    Raises:
        ConfigError, DataError: see `load` and `find_cut`; or preprocessing of BGR, which no backbone was trained on.
    """
    if config.backbone.preprocess and config.frames.colour == "bgr":
        raise ConfigError(
            "preprocess_input takes RGB",
            expected='frames.colour = "rgb", or backbone.preprocess = false for raw 0–255',
            got='"bgr"',
            mend="--frames.colour rgb",
        )
    loaded = load(config.backbone, config.frames)
    cut = cuts.find_cut(loaded.model, config.backbone)
    frozen = cuts.trunk(loaded.model, cut)
    pixels = keras.Input((config.frames.height, config.frames.width, 3), dtype="uint8", name="frames")
    x = keras.ops.cast(pixels, "float32")
    if loaded.preprocess is not None:
        x = loaded.preprocess(x)
    model = keras.Model(pixels, frozen(x, training=False), name="trunk")
    recipe = Recipe(
        decode="cv2",
        size=(config.frames.width, config.frames.height),
        interpolation=config.frames.interpolation,
        colour=config.frames.colour,
        preprocess=config.backbone.name if loaded.preprocess is not None else "none",
        backbone=config.backbone.name,
        arguments=dict(config.backbone.arguments),
        weights=config.backbone.weights,
        weights_digest=loaded.digest,
        top_layers=cut.layers,
        precision="float32",
        dtype=config.extract.dtype,
    )
    return Trunk(model, loaded, cut, recipe, config.backbone.top)


class Engine:
    """Runs a trunk over full batches: a shorter one is padded, so that a frame's numbers don't depend on its batch.

    Args:
        trunk: what to run.
        batch: frames a pass.
    """

    def __init__(self, trunk: Trunk, batch: int) -> None:
        self.trunk, self.batch, self.passes = trunk, batch, 0
        shape = (batch, *trunk.model.input.shape[1:])

        def run(frames: Any) -> Any:
            return tf.cast(trunk.model(frames, training=False), trunk.recipe.dtype)

        self._run = tf.function(run, input_signature=[tf.TensorSpec(shape, tf.uint8)], autograph=False)

    def __call__(self, frames: Image) -> NDArray[Any]:
        """(n ≤ batch, height, width, 3) uint8 → (n, …) maps in the stored type."""
        count = len(frames)
        if count < self.batch:
            frames = np.concatenate([frames, np.zeros((self.batch - count, *frames.shape[1:]), np.uint8)])
        self.passes += 1
        maps: NDArray[Any] = self._run(tf.constant(frames)).numpy()[:count]
        return maps
