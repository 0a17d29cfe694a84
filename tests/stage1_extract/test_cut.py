"""The cut and the trunk, for real Keras backbones: where the cut is, and the maps of the trunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import BackboneConfig, Config, ExtractConfig, FramesConfig
from features.errors import ConfigError, DataError
from stage1_extract.backbone.cut import find_cut, top_model, trunk_model
from stage1_extract.backbone.registry import find_backbone, load_backbone, weights_digest
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.engine import Engine

FRAMES = FramesConfig()  # 320x180, as published
SMALL = FramesConfig(width=64, height=48)


@pytest.mark.parametrize(
    ("name", "description", "layers"),
    [
        ("VGG16", "after block4_pool (11x20x512)", 4),
        pytest.param("Xception", "after block14_sepconv1_act (6x10x1536)", 3, marks=pytest.mark.soak),
        ("MobileNetV2", "after block_16_project (6x10x320)", 4),
        ("EfficientNetLite0", "after block7a_project_conv (6x10x320)", 4),
        pytest.param("InceptionV3", "the output, mixed10 (4x8x2048)", 0, marks=pytest.mark.soak),
        pytest.param(
            "NASNetMobile", "the output, activation_", 0, marks=pytest.mark.soak
        ),  # a layer with an automatic name
    ],
)
def test_unfreeze_4_at_320x180(name: str, description: str, layers: int) -> None:
    backbone = BackboneConfig(name=name, weights="random", unfreeze=4)
    model = load_backbone(backbone, FRAMES).model
    cut = find_cut(model, backbone)
    assert cut.layers == layers
    assert cut.description.startswith(description)
    top = top_model(model, cut)
    assert trunk_model(model, cut).count_params() + (top.count_params() if top else 0) == model.count_params()
    assert (top is None) == (layers == 0)


def test_the_published_cut() -> None:
    backbone = BackboneConfig(name="InceptionResNetV2", weights="random", unfreeze=4)
    model = load_backbone(backbone, FRAMES).model
    cut = find_cut(model, backbone)
    trunk, top = trunk_model(model, cut), top_model(model, cut)
    assert trunk.count_params() == 51_137_248
    assert trunk.output["appearance"].shape[1:] == (4, 8, 2080)
    assert top is not None
    assert [layer.name for layer in top.layers[1:]] == ["conv_7b", "conv_7b_bn", "conv_7b_ac"]
    assert sum(int(np.prod(w.shape)) for w in top.trainable_weights) == 53_807_810 - (50_594_816 + 16_448 + 130)


@pytest.mark.parametrize(
    ("name", "entering"),
    [
        ("ResNet50", "conv5_block3_2_relu, conv5_block2_out"),
        pytest.param("DenseNet121", "conv5_block16_1_relu, conv5_block15_concat", marks=pytest.mark.soak),
    ],
)
def test_a_cut_through_a_branch_is_refused_with_the_nearest_valid_ones(name: str, entering: str) -> None:
    backbone = BackboneConfig(name=name, weights="random", unfreeze=4)
    model = load_backbone(backbone, FRAMES).model
    with pytest.raises(ConfigError, match="several tensors") as error:
        find_cut(model, backbone)
    assert f"got {entering}" in str(error.value)
    suggested = [int(part.split(":")[0]) for part in str(error.value).split("unfreeze = ")[2:]]
    assert min(suggested) < 4 < max(suggested)
    for count in suggested:
        assert find_cut(model, BackboneConfig(name=name, weights="random", unfreeze=count)).layers == count


def test_a_layer_to_cut_after_can_be_named() -> None:
    backbone = BackboneConfig(name="EfficientNetLite0", weights="random", cut="block3b_add")
    model = load_backbone(backbone, FRAMES).model
    assert find_cut(model, backbone).description == "after block3b_add (23x40x40)"
    for cut, message in (
        ("block3b_dwconv", "several tensors"),
        ("block3b_ad", r"mean block3b_add\?.*e\.g\. block3b_add\."),
    ):
        with pytest.raises(ConfigError, match=message):
            find_cut(model, backbone.model_copy(update={"cut": cut}))


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"got ResNet51; .*InceptionResNetV2"):
        find_backbone("ResNet51")


def config(name: str, *, dtype: str = "float32", **backbone: object) -> Config:
    return Config(
        frames=SMALL,
        backbone=BackboneConfig.model_validate({"name": name, "weights": "random", **backbone}),
        extract=ExtractConfig.model_validate({"dtype": dtype, "batch": 4}),
    )


def pixels(count: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SMALL.height, SMALL.width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("EfficientNetLite0", "block5c_add"),
        pytest.param("MobileNet", "conv_pw_3_relu", marks=pytest.mark.soak),
        pytest.param("VGG16", "block4_pool", marks=pytest.mark.soak),
        pytest.param("ResNet50V2", "conv4_block6_out", marks=pytest.mark.soak),
    ],
)
def test_maps_are_those_of_an_independent_model(name: str, layer: str) -> None:
    """Of the same pixels, preprocessed in NumPy, through a Keras model built without the trunk's code."""
    trunk = build_trunk(config(name, cut=layer))
    build, preprocess = find_backbone(name)
    keras.utils.set_random_seed(0)
    model = build(include_top=False, weights=None, input_shape=(SMALL.height, SMALL.width, 3))
    x = preprocess(pixels().astype(np.float32))
    expected = keras.Model(model.input, model.get_layer(layer).output)(x, training=False).numpy()
    maps = Engine(trunk, 4)(pixels())["appearance"]
    assert np.abs(maps - expected).max() <= 1e-5 * np.abs(expected).max()
    halves = Engine(replace(trunk, recipe=replace(trunk.recipe, dtype="float16")), 4)(pixels())["appearance"]
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, maps.astype(np.float16))


def test_raw_bgr_is_not_preprocessed() -> None:
    raw = config("MobileNet", cut="conv_pw_3_relu", preprocess=False).model_copy(
        update={"frames": FramesConfig(width=64, height=48, colour="bgr")}
    )
    trunk = build_trunk(raw)
    model = keras.Model(trunk.backbone.model.input, trunk.cut.tensor)
    expected = model(pixels().astype(np.float32), training=False).numpy()
    np.testing.assert_allclose(
        Engine(trunk, 6)(pixels())["appearance"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )
    assert trunk.recipe.preprocess == "none"
    with pytest.raises(ConfigError, match="takes RGB"):
        build_trunk(raw.model_copy(update={"backbone": BackboneConfig(name="MobileNet", weights="random")}))


def test_recipe_and_top_are_the_same_each_time_and_the_top_continues_the_trunk() -> None:
    trunk, again = (build_trunk(config("MobileNet", arguments={"alpha": 0.25})) for _ in range(2))
    assert trunk.recipe.fingerprint == again.recipe.fingerprint
    record, record_again = trunk.top(), again.top()
    assert record is not None and record_again is not None
    assert record.architecture == record_again.architecture
    top = keras.models.model_from_json(record.architecture)
    top.set_weights(record.weights)
    x = find_backbone("MobileNet")[1](pixels().astype(np.float32))
    expected = trunk.backbone.model(x, training=False).numpy()
    maps = Engine(trunk, 6)(pixels())["appearance"]
    np.testing.assert_allclose(top(maps, training=False), expected, rtol=1e-4, atol=1e-5)


def test_weights_by_path(real: Path) -> None:
    """Keras' own ImageNet weights, in a legacy HDF5 file."""
    path = real / "weights" / "mobilenet_2_5_224_tf_no_top.h5"
    quarter = {"name": "MobileNet", "weights": str(path), "arguments": {"alpha": 0.25}}
    loaded = load_backbone(BackboneConfig.model_validate(quarter), FRAMES)
    assert loaded.digest != load_backbone(BackboneConfig.model_validate(quarter | {"weights": "random"}), FRAMES).digest
    assert loaded.digest == weights_digest(loaded.model)
    with pytest.raises(DataError, match="not the weights of MobileNet"):
        load_backbone(BackboneConfig.model_validate(quarter | {"arguments": {"alpha": 0.5}}), FRAMES)


def test_weights_saved_by_keras_load_by_path(tmp_path: Path) -> None:
    model = find_backbone("MobileNet")[0](include_top=False, weights=None, input_shape=(48, 64, 3), alpha=0.25)
    for name in ("w.weights.h5", "m.keras"):
        path = tmp_path / name
        model.save(path) if path.suffix == ".keras" else model.save_weights(path)
        backbone = BackboneConfig(name="MobileNet", weights=str(path), arguments={"alpha": 0.25})
        assert load_backbone(backbone, SMALL).digest == weights_digest(model)


def test_unreadable_weights_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk.h5").write_bytes(b"junk")
    for name in ("junk.h5", "nowhere.h5"):
        with pytest.raises(DataError, match=name):
            load_backbone(BackboneConfig(name="MobileNet", weights=str(tmp_path / name)), SMALL)


def test_a_failed_download_suggests_a_weights_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no server there
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"--backbone\.weights FILE"):
        load_backbone(BackboneConfig(name="VGG16"), SMALL)
    assert not list(tmp_path.rglob("*.h5"))
