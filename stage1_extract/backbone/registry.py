"""Backbones by name, with their weights and their own preprocessing.

A plugin adds a backbone by the entry point group `framebank.backbones`. Its entry point is a function like those of
keras.applications: it takes include_top, weights and input_shape, and its module also defines `preprocess_input`.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from features._common.plain_text import one_line
from features.backbone_names import HUB
from features.config import BackboneConfig, FramesConfig
from features.errors import ConfigError, DataError
from features.hdf5 import check_weights
from features.model_file import read_model_config
from features.plugins import BACKBONES, load_plugin, plugin_error, plugin_names
from features.strict_model import did_you_mean
from stage1_extract.backbone import efficientnet_lite
from stage1_extract.backbone.efficientnet_lite import LITE_VARIANTS
from stage1_extract.backbone.hub import hub_backbone
from stage1_extract.backbone.safetensors_file import load_safetensors


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone with its weights."""

    model: keras.Model  # without its classifier, from float32 images (batch, height, width, 3) to its last map
    preprocess: Callable[[Any], Any] | None  # its preprocess_input, or None for raw values 0 to 255
    digest: str  # SHA-256 over all weights, see `weights_digest`


def load_backbone(backbone: BackboneConfig, frames: FramesConfig) -> LoadedBackbone:
    """Build a backbone for the given frame size and load its weights.

    A ConfigError if it is unknown or does not accept the arguments or the size; a DataError if the weights are missing
    or belong to another network.
    """
    build, preprocess = find_backbone(backbone.name)
    arguments = {"include_top": False, "input_shape": (frames.height, frames.width, 3)}
    if backbone.weights == "random":
        keras.utils.set_random_seed(0)  # so that the weights are the same in every process
    try:
        model = build(weights=None, **arguments, **backbone.arguments)  # a TypeError if they overlap
    except (ValueError, TypeError) as e:
        what = f"{backbone.name} cannot be built: {_one_line(e)}"
        raise ConfigError(what, hint="edit [backbone] or [frames]") from None
    if backbone.weights == "imagenet":
        # copied into `model`, so that the graph is built in the same way whatever the weights are
        pretrained = _imagenet_model(build, arguments | backbone.arguments, backbone.name)
        model.set_weights(pretrained.get_weights())
    elif backbone.weights != "random":
        _load_file(model, Path(backbone.weights), backbone.name)
    model.trainable = False
    return LoadedBackbone(model, preprocess if backbone.preprocess else None, weights_digest(model))


def find_backbone(name: str) -> tuple[Callable[..., keras.Model], Callable[[Any], Any]]:
    """Find the function that builds a backbone, and its preprocess_input; a ConfigError lists all if it is unknown."""
    if name.startswith(HUB):
        return hub_backbone(name.removeprefix(HUB))
    functions = {**vars(keras.applications), **{name: getattr(efficientnet_lite, name) for name in LITE_VARIANTS}}
    built_in = {n: f for n, f in functions.items() if n[:1].isupper() and inspect.isfunction(f)}
    build = built_in.get(name) or load_plugin(BACKBONES, name)
    if build is None:
        names = [*sorted(built_in), *plugin_names(BACKBONES)]
        what = f"no such backbone{did_you_mean(name, names)}"
        raise ConfigError(what, expected=f"one of {', '.join(names)}", got=name, hint="--backbone.name NAME")
    # preprocess_input is in each function's own module, also for MobileNetV3, which has no public module
    preprocess = getattr(inspect.getmodule(build), "preprocess_input", None)
    if preprocess is None:
        raise plugin_error(BACKBONES, name, "there is no function preprocess_input in the module that defines it")
    return build, preprocess


def _imagenet_model(build: Callable[..., keras.Model], arguments: dict[str, Any], name: str) -> keras.Model:
    try:
        return build(weights="imagenet", **arguments)
    except DataError:
        raise
    except Exception as e:  # keras raises a bare Exception when a download fails
        raise DataError(
            f"{name}: the ImageNet weights could not be downloaded ({_one_line(e)})",
            hint="download the no-top .h5 of keras.applications elsewhere and give its path by "
            "--backbone.weights FILE, or use --backbone.name EfficientNetLite0, whose weights are installed",
        ) from None


def _load_file(model: keras.Model, path: Path, name: str) -> None:
    hint = f"give a file with the weights of {name} without its classifier: --backbone.weights FILE"
    if not path.is_file():
        raise DataError(f"{path}: no such weights file", hint=hint)
    if path.suffix == ".safetensors":
        load_safetensors(model, path)
        return
    try:
        if path.suffix == ".keras":
            read_model_config(path)
        else:
            check_weights(path, path.stat().st_size)
        model.load_weights(path)  # of a .keras file, too, only the weights are read; nothing is built
    except MemoryError:
        raise
    except Exception as e:  # Keras and h5py raise what they happen to on a file that is none
        raise DataError(f"{path}: not the weights of {name} ({_one_line(e)})", hint=hint) from None


def weights_digest(model: keras.Model) -> str:
    """Compute the SHA-256 over all weights in the model's order: the shape, type and bytes of each."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _one_line(error: BaseException) -> str:
    return one_line(" ".join(str(error).split())[:300])
