"""The trunk: the frozen part of a backbone, with preprocessing inside, and the recipe of its numbers."""

from __future__ import annotations

from dataclasses import dataclass

import keras

from features.config import Config
from features.errors import ConfigError
from features.recipe import Recipe
from features.store import StreamInfo, TopRecord
from stage1_extract.backbone.cut import Cut, find_cut, top_model, trunk_model
from stage1_extract.backbone.registry import LoadedBackbone, load_backbone


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
    backbone: LoadedBackbone
    cut: Cut
    recipe: Recipe
    with_top: bool

    @property
    def stream(self) -> StreamInfo:
        """Shape and type of one frame's map in the store."""
        return StreamInfo(tuple(self.model.output.shape[1:]), self.recipe.dtype)

    def top(self) -> TopRecord | None:
        """The unfrozen layers as the store keeps them."""
        part = top_model(self.backbone.model, self.cut)
        if part is None or not self.with_top:
            return None
        # Keras makes up the input's name; the store's bytes must not depend on it
        text = part.to_json().replace(part.layers[0].name, "map")
        return TopRecord(text, part.get_weights())


def build_trunk(config: Config) -> Trunk:
    """The backbone a config names, cut, with preprocessing in front.

    Raises:
        ConfigError, DataError: see `load_backbone` and `find_cut`; or preprocessing of BGR, which no backbone was trained on.
    """
    if config.backbone.preprocess and config.frames.colour == "bgr":
        raise ConfigError(
            "preprocess_input takes RGB",
            expected='frames.colour = "rgb", or backbone.preprocess = false for raw 0–255',
            got='"bgr"',
            hint="--frames.colour rgb",
        )
    loaded = load_backbone(config.backbone, config.frames)
    cut = find_cut(loaded.model, config.backbone)
    frozen = trunk_model(loaded.model, cut)
    pixels = keras.Input((config.frames.height, config.frames.width, 3), dtype="uint8", name="frames")
    x = keras.ops.cast(pixels, "float32")
    if loaded.preprocess is not None:
        x = loaded.preprocess(x)
    model = keras.Model(pixels, frozen(x, training=False), name="trunk")
    recipe = Recipe(
        decode={"full": "cv2", "fast": "cv2-reduced"}[config.frames.decode],
        size=(config.frames.width, config.frames.height),
        interpolation=config.frames.interpolation,
        colour=config.frames.colour,
        preprocess=config.backbone.name if loaded.preprocess is not None else "none",
        backbone=config.backbone.name,
        arguments=dict(config.backbone.arguments),
        weights=config.backbone.weights,
        weights_digest=loaded.digest,
        top_layers=cut.layers,
        precision=config.extract.precision,
        dtype=config.extract.dtype,
    )
    return Trunk(model, loaded, cut, recipe, config.backbone.top)
