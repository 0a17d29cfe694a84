"""The cut and the trunk: where design and issue say it lies, for real Keras backbones, and what leaves it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import BackboneConfig, Config, ExtractConfig, FramesConfig
from features.errors import ConfigError, DataError
from features.recipe import Recipe
from stage1_extract.backbone.cut import find_cut, top_model, trunk_model
from stage1_extract.backbone.registry import find_backbone, load_backbone, weights_digest
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.engine import Engine

FRAMES = FramesConfig()  # 320x180, as published
SMALL = FramesConfig(width=64, height=48)


@pytest.mark.parametrize(
    ("name", "words", "layers"),
    [
        ("VGG16", "after block4_pool (11x20x512)", 4),
        ("VGG19", "after block5_conv1 (11x20x512)", 4),
        ("Xception", "after block14_sepconv1_act (6x10x1536)", 3),
        ("MobileNetV2", "after block_16_project (6x10x320)", 4),
        ("EfficientNetLite0", "after block7a_project_conv (6x10x320)", 4),
        ("InceptionV3", "the output, mixed10 (4x8x2048)", 0),
        ("NASNetMobile", None, 0),
        ("NASNetLarge", None, 0),
    ],
)
def test_unfreeze_4_at_320x180(name: str, words: str | None, layers: int) -> None:
    wanted = BackboneConfig(name=name, weights="random", unfreeze=4)
    model = load_backbone(wanted, FRAMES).model
    cut = find_cut(model, wanted)
    assert cut.layers == layers
    assert cut.words == words if words else cut.words.startswith("the output")
    part = top_model(model, cut)
    assert trunk_model(model, cut).count_params() + (part.count_params() if part else 0) == model.count_params()
    assert (part is None) == (layers == 0)


def test_the_published_cut() -> None:
    wanted = BackboneConfig(name="InceptionResNetV2", weights="random", unfreeze=4)
    model = load_backbone(wanted, FRAMES).model
    cut = find_cut(model, wanted)
    frozen, part = trunk_model(model, cut), top_model(model, cut)
    assert frozen.count_params() == 51_137_248
    assert frozen.output.shape[1:] == (4, 8, 2080)
    assert part is not None
    assert [layer.name for layer in part.layers[1:]] == ["conv_7b", "conv_7b_bn", "conv_7b_ac"]
    assert sum(int(np.prod(w.shape)) for w in part.trainable_weights) == 53_807_810 - (50_594_816 + 16_448 + 130)


@pytest.mark.parametrize(
    ("name", "entered"),
    [
        ("ResNet50", "conv5_block3_2_relu, conv5_block2_out"),
        ("DenseNet121", "conv5_block16_1_relu, conv5_block15_concat"),
    ],
)
def test_a_top_entered_by_two_tensors_is_refused(name: str, entered: str) -> None:
    wanted = BackboneConfig(name=name, weights="random", unfreeze=4)
    model = load_backbone(wanted, FRAMES).model
    with pytest.raises(ConfigError, match="several tensors") as error:
        find_cut(model, wanted)
    assert f"got {entered}" in str(error.value)
    offered = [int(part.split(":")[0]) for part in str(error.value).split("unfreeze = ")[2:]]
    assert min(offered) < 4 < max(offered)
    for count in offered:  # what is offered is valid
        assert find_cut(model, BackboneConfig(name=name, weights="random", unfreeze=count)).layers == count


def test_a_named_cut_is_exactly_there() -> None:
    wanted = BackboneConfig(name="EfficientNetLite0", weights="random", cut="block3b_add")
    model = load_backbone(wanted, FRAMES).model
    assert find_cut(model, wanted).words == "after block3b_add (23x40x40)"


@pytest.mark.parametrize(("cut", "says"), [("block3b_dwconv", "several tensors"), ("block3b_ad", "block3b_add")])
def test_a_named_cut_that_cannot_be_is_refused(cut: str, says: str) -> None:
    wanted = BackboneConfig(name="EfficientNetLite0", weights="random", cut=cut)
    with pytest.raises(ConfigError, match=says):
        find_cut(load_backbone(wanted, FRAMES).model, wanted)


def test_no_such_backbone_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"InceptionResNetV2.*got ResNet51"):
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
    "name", ["VGG16", "MobileNetV2", "EfficientNetLite0", pytest.param("ResNet50V2", marks=pytest.mark.soak)]
)
def test_stored_values_are_those_of_an_independent_model(name: str) -> None:
    """Same pixels, preprocessed in numpy, through a Keras model built apart from the trunk's code."""
    layer = {"ResNet50V2": "conv4_block6_out", "EfficientNetLite0": "block5c_add"}.get(name)
    made = build_trunk(config(name, cut=layer))
    build, preprocess = find_backbone(name)
    keras.utils.set_random_seed(0)
    own = build(include_top=False, weights=None, input_shape=(SMALL.height, SMALL.width, 3))
    at = own.get_layer(layer or {"VGG16": "block4_pool", "MobileNetV2": "block_16_project"}[name]).output
    expected = keras.Model(own.input, at).predict(preprocess(pixels().astype(np.float32)), verbose=0)
    got = np.concatenate([Engine(made, 4)(pixels()[:4]), Engine(made, 4)(pixels()[4:])])
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    halves = Engine(build_trunk(config(name, cut=layer, dtype="float16")), 4)(pixels()[:4])
    assert halves.dtype == np.float16
    np.testing.assert_array_equal(halves, got[:4].astype(np.float16))


def test_a_frames_numbers_do_not_depend_on_its_batch() -> None:
    engine, frames = Engine(build_trunk(config("EfficientNetLite0", cut="block5c_add")), 4), pixels()
    apart = np.concatenate([engine(frames[i : i + 1]) for i in range(6)])
    np.testing.assert_array_equal(np.concatenate([engine(frames[:4]), engine(frames[4:])]), apart)
    np.testing.assert_array_equal(engine(frames[[3, 1, 5, 0]]), apart[[3, 1, 5, 0]])
    assert engine.passes == 9


def test_raw_bgr_enters_as_it_is() -> None:
    wanted = config("VGG16", preprocess=False).model_copy(
        update={"frames": FramesConfig(width=64, height=48, colour="bgr")}
    )
    made = build_trunk(wanted)
    expected = keras.Model(made.backbone.model.input, made.cut.tensor).predict(pixels().astype(np.float32), verbose=0)
    np.testing.assert_allclose(Engine(made, 6)(pixels()), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert made.recipe.preprocess == "none"
    with pytest.raises(ConfigError, match="takes RGB"):
        build_trunk(wanted.model_copy(update={"backbone": BackboneConfig(name="VGG16", weights="random")}))


def test_the_recipe_is_the_same_each_time() -> None:
    def recipe() -> Recipe:
        return build_trunk(config("MobileNet", arguments={"alpha": 0.25})).recipe

    assert recipe().fingerprint == recipe().fingerprint


def test_the_top_in_the_store_continues_the_trunk(tmp_path: Path) -> None:
    made = build_trunk(config("MobileNetV2"))
    record = made.top()
    assert record is not None and record.architecture == build_trunk(config("MobileNetV2")).top().architecture  # type: ignore[union-attr]
    part = keras.models.model_from_json(record.architecture)
    part.set_weights(record.weights)
    whole = made.backbone.model.predict(find_backbone("MobileNetV2")[1](pixels().astype(np.float32)), verbose=0)
    np.testing.assert_allclose(part.predict(Engine(made, 6)(pixels()), verbose=0), whole, rtol=1e-4, atol=1e-5)


def test_weights_by_path(real: Path) -> None:
    """Keras' own ImageNet weights in a legacy HDF5 file."""
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
        wanted = BackboneConfig(name="MobileNet", weights=str(path), arguments={"alpha": 0.25})
        assert load_backbone(wanted, SMALL).digest == weights_digest(model)


def test_wrong_weights_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "junk.h5").write_bytes(b"junk")
    for name in ("junk.h5", "nowhere.h5"):
        with pytest.raises(DataError, match=name):
            load_backbone(BackboneConfig(name="MobileNet", weights=str(tmp_path / name)), SMALL)


def test_imagenet_without_a_network_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.utils.file_utils.config.keras_home", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"--backbone\.weights FILE"):
        load_backbone(BackboneConfig(name="VGG16"), SMALL)
    assert not list(tmp_path.rglob("*.h5"))
