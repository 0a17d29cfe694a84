"""Backbones by name, with their weights and their own preprocessing."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from features.config import BackboneConfig, FramesConfig
from features.errors import ConfigError, DataError
from stage1_extract.backbone import efficientnet_lite


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights.

    Attributes:
        model: include_top = False, input float32 (height, width, 3), output its last map.
        preprocess: its preprocess_input, or None for raw 0–255.
        digest: SHA-256 over all weights, see `weights_digest`.
    """

    model: keras.Model
    preprocess: Callable[[Any], Any] | None
    digest: str


def load_backbone(backbone: BackboneConfig, frames: FramesConfig) -> LoadedBackbone:
    """Build a backbone for the given frame size and load its weights.

    Raises:
        ConfigError: no such backbone, or arguments or a size it does not take.
        DataError: the weights cannot be had or are another network's.
    """
    build, preprocess = find_backbone(backbone.name)
    if backbone.weights == "random":
        keras.utils.set_random_seed(0)  # a random backbone is still the same in every process
    try:
        model = build(
            include_top=False, weights=None, input_shape=(frames.height, frames.width, 3), **backbone.arguments
        )
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{backbone.name} cannot be built: {_line(e)}", hint="edit [backbone] or [frames]") from None
    if backbone.weights == "imagenet":
        _load_imagenet(model, build, backbone, frames)
    elif backbone.weights != "random":
        _load_file(model, Path(backbone.weights), backbone.name)
    model.trainable = False
    return LoadedBackbone(model, preprocess if backbone.preprocess else None, weights_digest(model))


def find_backbone(name: str) -> tuple[Callable[..., keras.Model], Callable[[Any], Any]]:
    """The function that builds a backbone, and its preprocess_input.

    Raises:
        ConfigError: no such name; lists what there is.
    """
    if name == "EfficientNetLite0":
        return efficientnet_lite.EfficientNetLite0, efficientnet_lite.preprocess_input
    # each function's own module holds its preprocess_input, also for MobileNetV3, which has no public module
    found = {n: f for n, f in vars(keras.applications).items() if n[:1].isupper() and inspect.isfunction(f)}
    if name not in found:
        names = ", ".join(["EfficientNetLite0", *sorted(found)])
        raise ConfigError("no such backbone", expected=f"one of {names}", got=name, hint="--backbone.name NAME")
    return found[name], vars(inspect.getmodule(found[name]))["preprocess_input"]


def _load_imagenet(
    model: keras.Model, build: Callable[..., keras.Model], backbone: BackboneConfig, frames: FramesConfig
) -> None:
    """ImageNet's weights, copied into `model` so that every path builds the same graph."""
    shape = (frames.height, frames.width, 3)
    try:
        pretrained = build(include_top=False, weights="imagenet", input_shape=shape, **backbone.arguments)
    except Exception as e:  # keras raises a bare Exception when a download fails
        if isinstance(e, DataError):
            raise
        raise DataError(
            f"{backbone.name}: its ImageNet weights could not be downloaded ({_line(e)})",
            hint="download the no-top .h5 of keras.applications elsewhere and give its path: --backbone.weights FILE, "
            "or take --backbone.name EfficientNetLite0, whose weights are installed",
        ) from None
    model.set_weights(pretrained.get_weights())


def _load_file(model: keras.Model, path: Path, name: str) -> None:
    hint = f"give the weights of {name} without top: --backbone.weights FILE"
    if not path.is_file():
        raise DataError(f"{path}: no such weights file", hint=hint)
    before = [np.array(w) for w in model.get_weights()]
    try:
        if path.suffix == ".keras":
            given = keras.models.load_model(path, compile=False, safe_mode=True).get_weights()
            if [w.shape for w in given] != [w.shape for w in before]:
                raise ValueError(f"{len(given)} weights where {name} has {len(before)}, or of other shapes")
            model.set_weights(given)
        else:
            model.load_weights(path)
    except (ValueError, OSError, KeyError, TypeError) as e:
        raise DataError(f"{path}: not the weights of {name} ({_line(e)})", hint=hint) from None
    if before and all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)):
        raise DataError(f"{path}: holds no weight of {name}", hint=hint)


def weights_digest(model: keras.Model) -> str:
    """SHA-256 over all weights in the model's order: shape, type and bytes of each."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
