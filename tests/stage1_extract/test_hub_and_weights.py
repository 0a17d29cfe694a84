"""Backbones of KerasHub from a folder, and weights in safetensors files, where these packages are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from features.config import Config
from features.errors import ConfigError, DataError, FramebankError
from stage1_extract.backbone.registry import load_backbone
from stage1_extract.backbone.trunk import build_trunk

SIZE = {"width": 64, "height": 48}


def mobile_net(**backbone: Any) -> Config:
    settings = {"name": "MobileNet", "arguments": {"alpha": 0.25}, "weights": "random"} | backbone
    return Config.model_validate({"backbone": settings, "frames": SIZE})


def test_weights_are_read_by_name_from_safetensors(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    cfg = mobile_net()
    random = load_backbone(cfg.backbone, cfg.frames)
    tensors = {weight.path: np.asarray(weight) for weight in random.model.weights}
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    path = tmp_path / "weights.safetensors"
    save_file(dict(reversed(tensors.items())), path)
    loaded = load_backbone(mobile_net(weights=str(path)).backbone, cfg.frames)
    for weight in loaded.model.weights:
        np.testing.assert_array_equal(np.asarray(weight), tensors[weight.path])
    assert loaded.digest != random.digest
    for change, message in (
        ({name: tensors[name][..., :1].copy()}, "has another shape"),
        ({name: np.full_like(tensors[name], np.nan)}, "NaN or infinity"),
        ({"extra": np.zeros(3, np.float32)}, "names of the tensors are not those of the weights.*extra"),
    ):
        save_file(tensors | change, path)
        with pytest.raises(DataError, match=message):
            load_backbone(mobile_net(weights=str(path)).backbone, cfg.frames)
    for content in (b"", b"\xff" * 64, path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a safetensors file"):
            load_backbone(mobile_net(weights=str(path)).backbone, cfg.frames)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, keras.Model]:
    """A small ResNet of KerasHub with random weights, saved with its image converter."""
    hub = pytest.importorskip("keras_hub")
    folder = tmp_path_factory.mktemp("hub") / "small_resnet"
    keras.utils.set_random_seed(4)
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    backbone.save_to_preset(str(folder))
    hub.layers.ResNetImageConverter(scale=1 / 50, offset=-2.0).save_to_preset(str(folder))
    return folder, backbone


def test_hub_backbone_gives_its_own_maps(preset: tuple[Path, keras.Model]) -> None:
    folder, backbone = preset
    cfg = Config.model_validate({"backbone": {"name": f"hub:{folder}", "unfreeze": 0}, "frames": SIZE})
    trunk = build_trunk(cfg)
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    expected = backbone.predict(frames.astype(np.float32) / 50 - 2, verbose=0)
    np.testing.assert_allclose(trunk.model.predict(frames, verbose=0)["appearance"], expected, atol=1e-4)
    assert trunk.recipe.backbone == "hub:small_resnet" and trunk.recipe.preprocess == "hub:small_resnet"
    layers = [layer.name for layer in trunk.backbone.model.layers]
    tapped = build_trunk(cfg.with_settings({"backbone.taps": (layers[len(layers) // 2],)}))
    assert len(tapped.streams) == 2


def test_unknown_preset_or_missing_package_is_refused() -> None:
    cfg = Config.model_validate({"backbone": {"name": "hub:./no_such_preset"}, "frames": SIZE})
    with pytest.raises(FramebankError, match=r"hub:|KerasHub is not installed"):
        build_trunk(cfg)


@pytest.mark.parametrize("name", ["onnx:x.onnx", "import:dino"])
def test_what_is_no_keras_model_is_not_built_as_one(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no Keras model|cannot compute them from images"):
        build_trunk(Config.model_validate({"backbone": {"name": name}}))
