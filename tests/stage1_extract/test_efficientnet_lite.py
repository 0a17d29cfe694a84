"""EfficientNet-Lite0: it classifies photographs correctly and computes what its weights file defines."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import skimage.data
import tensorflow as tf

from features.errors import DataError
from stage1_extract.backbone.efficientnet_lite import (
    LITE_VARIANTS,
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
    packaged_weights,
    preprocess_input,
    read_tensors,
)
from stage1_extract.backbone.registry import weights_digest

LITE0 = LITE_VARIANTS["EfficientNetLite0"]
ESPRESSO, CATS, MISSILE, TRIPOD = {967}, set(range(281, 286)), {657}, {872}
DIGEST = "f158e7ce63c8c26821376087ea2c6550f13f9ee3fd2b778bd25f467a39bd9eac"  # part of the recipe of existing stores


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    return EfficientNetLite0(include_top=True)


@pytest.fixture(scope="module")
def trunk() -> keras.Model:
    return EfficientNetLite0(input_shape=(180, 320, 3))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Two photographs at 180x320, uint8 RGB: (2, 180, 320, 3)."""
    images = [photograph(name) for name in ("coffee.png", "chelsea.png")]
    return np.stack([cv2.resize(image, (320, 180), interpolation=cv2.INTER_AREA) for image in images])


def photograph(name: str) -> np.ndarray:
    """A file of the scikit-image package: uint8 RGB (height, width, 3)."""
    image = cv2.imread(str(Path(skimage.data.__file__).parent / name))
    assert image is not None
    return image[..., ::-1]


def centre(image: np.ndarray) -> np.ndarray:
    """The central square of 7/8 of the shorter side, resized to 224x224, as in ImageNet's evaluation."""
    height, width = image.shape[:2]
    side = min(height, width) * 7 // 8
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top : top + side, left : left + side]
    return cv2.resize(crop, (224, 224), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("coffee.png", ESPRESSO), ("chelsea.png", CATS), ("rocket.jpg", MISSILE), ("camera.png", TRIPOD)],
)
def test_photographs_are_classified_correctly(classifier: keras.Model, name: str, classes: set[int]) -> None:
    probabilities = classifier(preprocess_input(centre(photograph(name))[None]), training=False).numpy()[0]
    assert probabilities.shape == (1000,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert int(probabilities.argmax()) in classes


@pytest.mark.parametrize(("build", "parameters"), [(EfficientNetLite1, 5_416_680), (EfficientNetLite2, 6_092_072)])
def test_larger_variants_have_the_published_size_and_classify_photographs(
    build: Callable[..., keras.Model], parameters: int
) -> None:
    """5.42 and 6.09 million weights, as published."""
    variant = LITE_VARIANTS[build.__name__]
    if find_spec(variant.package) is None:
        pytest.skip("needs the extra lite")
    classifier = build(include_top=True)
    assert sum(math.prod(w.shape) for w in classifier.trainable_weights) == parameters
    height, width = classifier.input_shape[1:3]
    for name, classes in (("coffee.png", ESPRESSO), ("chelsea.png", CATS)):
        image = cv2.resize(centre(photograph(name)), (width, height), interpolation=cv2.INTER_CUBIC)
        probabilities = classifier(preprocess_input(image[None]), training=False).numpy()[0]
        assert int(probabilities.argmax()) in classes


def test_variant_whose_weights_are_not_installed_is_refused_by_package(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = replace(LITE_VARIANTS["EfficientNetLite1"], package="efficientnet_lite1_not_installed")
    monkeypatch.setitem(LITE_VARIANTS, "EfficientNetLite1", variant)
    with pytest.raises(DataError, match=r"Try: pip install .*efficientnet-lite1-not-installed"):
        EfficientNetLite1(input_shape=(32, 32, 3))


def test_rgb_is_classified_with_more_confidence_than_bgr(classifier: keras.Model) -> None:
    image = centre(photograph("coffee.png"))
    rgb, bgr = classifier(preprocess_input(np.stack([image, image[..., ::-1]])), training=False).numpy()[:, 967]
    assert rgb > 0.9 and rgb > bgr


def test_weights_are_those_of_existing_stores(trunk: keras.Model) -> None:
    assert weights_digest(trunk) == DIGEST


def test_parameters_are_counted(classifier: keras.Model, trunk: keras.Model) -> None:
    trainable = sum(math.prod(w.shape) for w in classifier.trainable_weights)
    assert trainable == 4_652_008  # the published 4.65 million
    assert classifier.count_params() == 4_694_024
    assert trunk.count_params() == 4_694_024 - 1_281_000


@pytest.mark.parametrize(("size", "expected"), [((181, 319), (6, 10)), ((33, 32), (2, 1))])
def test_shape_of_the_map(size: tuple[int, int], expected: tuple[int, int]) -> None:
    model = EfficientNetLite0(weights=None, input_shape=(*size, 3))
    assert model.output_shape == (None, *expected, 1280)
    assert model.layers[-1].name == "top_activation"


def test_the_input_size_can_be_left_open(frames: np.ndarray, trunk: keras.Model) -> None:
    anysize = EfficientNetLite0(input_shape=(None, None, 3))
    assert anysize.output_shape == (None, None, None, 1280)
    x = preprocess_input(frames)
    np.testing.assert_allclose(anysize(x), trunk(x), rtol=1e-5, atol=1e-5)


def reference(tensors: dict[str, np.ndarray], x: Any) -> Any:
    """The same network, built directly from PyTorch's tensors and TensorFlow's primitive operations.

    Padding follows TensorFlow's documentation: ceil(n / stride) outputs, an odd pixel of padding at the end.
    """
    strides = {1: 2, 3: 2, 5: 2, 11: 2}
    repeats = {2, 4, 6, 7, 9, 10, 12, 13, 14}

    def convolve(x: Any, name: str, stride: int = 1) -> Any:
        kernel = tensors[name + ".weight"]
        size = kernel.shape[2]
        pads = []
        for n in x.shape[1:3]:
            total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
            pads.append((total // 2, total - total // 2))
        x = tf.pad(x, [(0, 0), *pads, (0, 0)])
        if "depthwise" in name:
            return tf.nn.depthwise_conv2d(x, kernel.transpose(2, 3, 0, 1), (1, stride, stride, 1), "VALID")
        return tf.nn.conv2d(x, kernel.transpose(2, 3, 1, 0), stride, "VALID")

    def normalise(x: Any, name: str) -> Any:
        weight, bias = tensors[name + ".weight"], tensors[name + ".bias"]
        mean, variance = tensors[name + ".running_mean"], tensors[name + ".running_var"]
        return (x - mean) / np.sqrt(variance + 1e-3) * weight + bias

    x = tf.nn.relu6(normalise(convolve(x, "_conv_stem", 2), "_bn0"))
    for i in range(16):
        block_input, block = x, f"_blocks.{i}."
        if i:
            x = tf.nn.relu6(normalise(convolve(x, block + "_expand_conv"), block + "_bn0"))
        x = tf.nn.relu6(normalise(convolve(x, block + "_depthwise_conv", strides.get(i, 1)), block + "_bn1"))
        x = normalise(convolve(x, block + "_project_conv"), block + "_bn2")
        if i in repeats:
            x = x + block_input
    return tf.nn.relu6(normalise(convolve(x, "_conv_head"), "_bn1"))


@pytest.mark.parametrize("size", [(180, 320), (75, 101)])
def test_maps_equal_those_of_an_independent_implementation(frames: np.ndarray, size: tuple[int, int]) -> None:
    """Maps of odd sizes (45 rows, 23 rows, …) are padded before a stride as in TensorFlow."""
    x = preprocess_input(frames[:, : size[0], : size[1]])
    ours = EfficientNetLite0(input_shape=(*size, 3))(x, training=False).numpy()
    theirs = reference(read_tensors(packaged_weights(LITE0)), x).numpy()
    assert ours.shape == theirs.shape and theirs.std() > 0.1
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_layer_names_are_the_same_in_every_model(trunk: keras.Model) -> None:
    names = [layer.name for layer in EfficientNetLite0(weights=None, input_shape=(180, 320, 3)).layers]
    assert names == [layer.name for layer in trunk.layers]  # the second model in this process, the same names
    assert names[:4] == ["input", "stem_conv", "stem_bn", "stem_activation"]
    assert names[-3:] == ["top_conv", "top_bn", "top_activation"]
    block = r"block[1-7][a-d]_((expand_|project_)?bn|expand_conv|dwconv|project_conv|(expand_)?activation|add)"
    assert all(re.fullmatch(block, name) for name in names[4:-3])
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("cut", "shape"),
    [
        ("block3b_add", (23, 40, 40)),
        ("block6a_expand_activation", (12, 20, 672)),
    ],
)
def test_the_model_can_be_split_at_a_layer(
    trunk: keras.Model, frames: np.ndarray, cut: str, shape: tuple[int, ...]
) -> None:
    at = trunk.get_layer(cut).output
    below, above = keras.Model(trunk.input, at), keras.Model(at, trunk.output)
    assert below.output_shape == (None, *shape)
    x = preprocess_input(frames)
    np.testing.assert_allclose(above(below(x)), trunk(x), rtol=1e-5, atol=1e-5)
    assert below.count_params() + above.count_params() == trunk.count_params()


def test_a_saved_model_predicts_the_same(trunk: keras.Model, frames: np.ndarray, tmp_path: Path) -> None:
    image = keras.Input((180, 320, 3), dtype="uint8", name="frames")
    pixels = keras.ops.cast(image, "float32")
    keras.Model(image, trunk(preprocess_input(pixels))).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(frames), trunk(preprocess_input(frames)), rtol=1e-5, atol=1e-5)


def test_preprocesses_arrays_and_tensors() -> None:
    x = np.array([0, 127, 255], np.uint8)
    expected = np.array([-127 / 128, 0, 1], np.float32)
    for pixels in (x, x.astype(np.float32), tf.constant(x, tf.float32)):
        preprocessed = preprocess_input(pixels)
        assert preprocessed.dtype == np.float32
        np.testing.assert_array_equal(preprocessed, expected)


def test_random_weights_are_random() -> None:
    a, b = (EfficientNetLite0(weights=None, input_shape=(32, 32, 3)) for _ in range(2))
    assert not np.array_equal(a.get_layer("stem_conv").get_weights()[0], b.get_layer("stem_conv").get_weights()[0])


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[[str], object], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("function", [os.system, exec, importlib.import_module])
def test_a_weights_file_that_calls_a_function_is_refused_unexecuted(function: Callable[[str], object]) -> None:
    with pytest.raises(DataError, match=rf"refers to \w+\.{function.__name__}.*tensors only"):
        read_tensors(pickle.dumps(Call(function, "antigravity"), protocol=2))
    assert "antigravity" not in sys.modules


def test_weights_are_read_without_torch() -> None:
    tensors = read_tensors(packaged_weights(LITE0))
    assert len(tensors) == 296
    assert tensors["_blocks.0._depthwise_conv.weight"].shape == (32, 1, 3, 3)
    assert tensors["_bn0.num_batches_tracked"].dtype == np.int64
    assert "torch" not in sys.modules


def test_a_changed_or_missing_weights_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(packaged_weights(LITE0))
    data[-1] ^= 1
    folder = tmp_path / "changed_weights" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / LITE0.file).write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(LITE_VARIANTS, "EfficientNetLite0", replace(LITE0, package="changed_weights"))
    with pytest.raises(DataError, match=rf"expected SHA-256 {LITE0.sha256}; got [0-9a-f]{{64}}.*Try: "):
        EfficientNetLite0()
    (folder / LITE0.file).unlink()
    with pytest.raises(DataError, match=r"cannot be read.*Try: "):
        EfficientNetLite0()
    monkeypatch.setitem(LITE_VARIANTS, "EfficientNetLite0", replace(LITE0, package="no_such_package"))
    with pytest.raises(DataError, match=r"no_such_package.*Try: "):
        EfficientNetLite0()
