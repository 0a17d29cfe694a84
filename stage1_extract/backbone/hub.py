"""Backbones of KerasHub by the name of a preset, or by the folder of a preset that was saved or downloaded before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from features._common.user_path import expand_user
from features.errors import ConfigError, DataError


def hub_backbone(preset: str) -> tuple[Callable[..., keras.Model], Callable[[Any], Any]]:
    """Return a function that builds the backbone of a preset, like those of keras.applications, and its preprocessing.

    With weights, they are the preset's own. The preprocessing is that of the preset's image converter, without
    resizing.

    Raises:
        ConfigError: KerasHub is not installed.
        DataError: there is no such preset, or it cannot be downloaded.
    """
    try:
        import keras_hub
    except ImportError:
        raise ConfigError("KerasHub is not installed", hint='pip install "framebank[hub]"') from None

    folder = expand_user(preset)
    source = str(folder) if folder.is_dir() else preset

    def load(function: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return function(source, **arguments)
        except Exception as e:  # downloads fail with errors of several libraries
            line = " ".join(str(e).split())[:300]
            raise DataError(
                f"hub:{preset} cannot be loaded ({line})",
                hint="--backbone.name hub:NAME of a preset of KerasHub, or hub:FOLDER of one that is on this machine",
            ) from None

    def build(
        include_top: bool, weights: str | None, input_shape: tuple[int, int, int], **arguments: Any
    ) -> keras.Model:
        model = load(
            keras_hub.models.Backbone.from_preset,
            load_weights=weights is not None,
            image_shape=input_shape,
            **arguments,
        )
        if not isinstance(model.output, keras.KerasTensor) or not isinstance(model.input, keras.KerasTensor):
            raise ConfigError(f"hub:{preset} is no backbone from one image to one map", hint="another preset")
        return keras.Model(model.input, model.output, name=model.name)

    def preprocess_input(images: Any) -> Any:
        converter = load(keras_hub.layers.ImageConverter.from_preset)
        scale = 1.0 if converter.scale is None else converter.scale
        offset = 0.0 if converter.offset is None else converter.offset
        return images * keras.ops.convert_to_tensor(scale, "float32") + keras.ops.convert_to_tensor(offset, "float32")

    return build, preprocess_input
