"""Folding batch normalisation and scales into kernels: the same maps, with fewer operations."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from features._common.types import Tensor
from features.config import BackboneConfig, Config, FramesConfig
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.engine import relative_error
from stage1_extract.engines.folding import SCALED_ADDITION, fold_scales
from tests.extraction_helpers import extraction_config

CONVOLUTIONS: dict[str, Callable[[], keras.Layer]] = {
    "plain": lambda: layers.Conv2D(6, 3, use_bias=False),
    "bias": lambda: layers.Conv2D(6, 3, strides=2, padding="same"),
    "grouped": lambda: layers.Conv2D(6, 3, groups=3),
    "depthwise": lambda: layers.DepthwiseConv2D(3, use_bias=False),
    "depth multiplier": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    "separable": lambda: layers.SeparableConv2D(6, 3, use_bias=False),
}


def with_random_weights(model: keras.Model) -> keras.Model:
    random = np.random.default_rng(0)
    for weight in model.weights:
        low, high = (0.1, 2.0) if "variance" in weight.path else (-1.0, 1.0)
        weight.assign(random.uniform(low, high, weight.shape))
    return model


def count(model: keras.Model, kind: type) -> int:
    return sum(isinstance(layer, kind) for layer in model._flatten_layers())


def assert_same_maps(model: keras.Model, folded: keras.Model) -> None:
    x = np.random.default_rng(1).normal(size=(2, *model.input.shape[1:])).astype(np.float32)
    assert relative_error(folded(x, training=False).numpy(), model(x, training=False).numpy()) < 1e-6


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_batch_norm_goes_into_the_kernel(kind: str) -> None:
    image = keras.Input((9, 9, 6))
    x = layers.BatchNormalization(scale=False)(CONVOLUTIONS[kind]()(image))
    model = with_random_weights(keras.Model(image, layers.ReLU()(x)))
    folded = fold_scales(model)
    assert count(folded, layers.BatchNormalization) == 0
    assert_same_maps(model, folded)


def test_scaled_branch_goes_into_the_kernel() -> None:
    image = keras.Input((5, 5, 6))
    model = with_random_weights(keras.Model(image, SCALED_ADDITION(0.17)([image, layers.Conv2D(6, 1)(image)])))
    folded = fold_scales(model)
    assert count(folded, SCALED_ADDITION) == 0
    assert_same_maps(model, folded)


def read_twice(x: Tensor) -> list[Tensor]:
    x = layers.Conv2D(6, 3)(x)
    return [x, layers.BatchNormalization()(x)]


def activated(x: Tensor) -> list[Tensor]:
    return [layers.BatchNormalization()(layers.Conv2D(6, 3, activation="relu")(x))]


def called_twice(x: Tensor) -> list[Tensor]:
    convolution = layers.Conv2D(6, 3, padding="same")
    return [layers.BatchNormalization()(convolution(convolution(x)))]


def before_convolution(x: Tensor) -> list[Tensor]:
    return [layers.Conv2D(6, 3)(layers.BatchNormalization()(x))]


@pytest.mark.parametrize("build", [read_twice, activated, called_twice, before_convolution])
def test_batch_norm_that_does_not_follow_a_convolution_alone_stays(build: Callable[[Tensor], list[Tensor]]) -> None:
    image = keras.Input((9, 9, 6))
    model = with_random_weights(keras.Model(image, layers.Concatenate(axis=1)(build(image))))
    folded = fold_scales(model)
    assert count(folded, layers.BatchNormalization) == 1
    assert_same_maps(model, folded)


def test_the_model_itself_is_not_changed() -> None:
    image = keras.Input((9, 9, 6))
    model = with_random_weights(keras.Model(image, layers.BatchNormalization()(layers.Conv2D(6, 3)(image))))
    before = model.get_weights()
    fold_scales(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_a_trunk_with_taps_keeps_its_maps() -> None:
    config = extraction_config().with_settings({"backbone.taps": ("conv_pw_1_bn", "conv_pw_2")})
    model = with_random_statistics(build_trunk(config).model)
    folded = fold_scales(model)
    assert (count(model, layers.BatchNormalization), count(folded, layers.BatchNormalization)) == (7, 1)  # a tap's
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = model(frames)
    assert set(expected) == {"appearance", "conv_pw_1_bn", "conv_pw_2"}
    for name, maps in folded(frames).items():
        assert relative_error(maps.numpy(), expected[name].numpy()) < 1e-5


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", ["InceptionResNetV2", "Xception", "DenseNet121", "NASNetMobile", "ResNet50V2", "VGG16"]
)
def test_backbones_keep_their_maps(name: str) -> None:
    config = Config(backbone=BackboneConfig(name=name, weights="random"), frames=FramesConfig(width=96, height=96))
    model = with_random_statistics(build_trunk(config).model)
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    folded = fold_scales(model)
    if name == "InceptionResNetV2":
        assert count(model, SCALED_ADDITION) == 40 and count(folded, SCALED_ADDITION) == 0
        assert count(folded, layers.BatchNormalization) == 0
    expected = model(frames)
    for stream, maps in folded(frames).items():
        assert relative_error(maps.numpy(), expected[stream].numpy()) < 1e-5


def with_random_statistics(model: keras.Model) -> keras.Model:
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, layer.moving_variance.shape))
    return model
