"""The fused model: equal to the two stages for every backbone and head, refused where any part was changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import BackboneConfig, Config, ExtractConfig, FramesConfig
from features.head_config import FlattenLSTMConfig, PooledLSTMConfig
from features.store import Store
from stage1_extract.__main__ import main as stage1
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.engine import Engine
from stage2_temporal.__main__ import main as stage2
from stage2_temporal.fused.fuse import Equality, build_fused_model, compare_models
from stage2_temporal.heads import build_model
from stage2_temporal.training.keras_models import count_parameters
from stage2_temporal.training.scaling import Scale
from tests.helpers import write_clips

BACKBONES = {
    # name: (width, height) its graph allows, small
    "EfficientNetLite0": (64, 48), "MobileNetV2": (64, 48), "VGG16": (64, 48), "VGG19": (64, 48), "Xception": (96, 80),
    "InceptionV3": (96, 80), "InceptionResNetV2": (96, 80), "NASNetMobile": (64, 48), "NASNetLarge": (64, 48),
}  # fmt: skip
HEADS = {
    "pooled_lstm": PooledLSTMConfig(units=8, dense=4, difference=True),
    "flatten_lstm": FlattenLSTMConfig(units=8, dense=4, activation="relu"),
}
QUICK = {("EfficientNetLite0", "pooled_lstm"), ("MobileNetV2", "flatten_lstm")}
PAIRS = [pytest.param(n, h, marks=[] if (n, h) in QUICK else pytest.mark.soak) for n in BACKBONES for h in HEADS]
WINDOWS, TIME = 8, 3


def parts(name: str, head: str, dtype: str = "float32") -> tuple[keras.Model, keras.Model, np.ndarray, np.ndarray]:
    """A fused model, the two-stage model it was made of, and windows with their stored maps."""
    width, height = BACKBONES[name]
    # with its real weights where they are installed: maps of random deep networks hardly differ from zero
    weights = "imagenet" if name == "EfficientNetLite0" else "random"
    config = Config(
        frames=FramesConfig(width=width, height=height),
        backbone=BackboneConfig(name=name, weights=weights),
        extract=ExtractConfig.model_validate({"dtype": dtype, "batch": 8}),
    )
    trunk = build_trunk(config)
    frames = np.random.default_rng(0).integers(0, 256, (WINDOWS, TIME, height, width, 3), dtype=np.uint8)
    engine = Engine(trunk, 8)
    flat = frames.reshape(-1, height, width, 3)
    maps = np.concatenate([engine(flat[i : i + 8]) for i in range(0, len(flat), 8)])
    maps = maps.reshape(WINDOWS, TIME, *maps.shape[1:])
    scale = Scale(np.array([0.5, -0.1]), np.array([2.3, 0.3]))
    keras.utils.set_random_seed(0)  # the same head whichever test comes before
    stage_two = build_model(maps.shape[1:], HEADS[head], 2, top=trunk.top(), target=scale)
    return build_fused_model(trunk.model, stage_two), copy(stage_two), frames, maps


def copy(model: keras.Model) -> keras.Model:
    """An equal model with weights of its own."""
    twin = keras.Model.from_config(model.get_config())
    twin.set_weights(model.get_weights())
    return twin


@pytest.mark.parametrize(("name", "head"), PAIRS)
def test_fused_equals_two_stage(name: str, head: str) -> None:
    fused, reference, frames, maps = parts(name, head)
    equality = compare_models(fused, reference, frames, maps)
    assert equality.output.relative <= 1e-4, equality
    assert equality.windows == 8
    assert equality.rounding == 0
    assert equality.fault("float32") is None


def test_half_precision_differs_by_its_rounding_alone() -> None:
    fused, reference, frames, maps = parts("EfficientNetLite0", "pooled_lstm", "float16")
    assert compare_models(fused, reference, frames, maps).fault("float16") is None
    # the engine's own batches may round the other way where a value lies between two halves: here the very same passes
    seen = np.stack([fused.get_layer("trunk").predict(window, verbose=0) for window in frames])
    equality = compare_models(fused, reference, frames, seen.astype(np.float16))
    assert 0 < equality.output.relative <= equality.rounding + 1e-6
    assert equality.fault("float16") is None


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.soak)])
@pytest.mark.parametrize("part", ["trunk", "top", "head"])
def test_a_changed_weight_is_refused_and_its_part_named(part: str, dtype: str) -> None:
    fused, reference, frames, maps = parts("EfficientNetLite0", "pooled_lstm", dtype)
    stage_two = fused.get_layer(reference.name)
    layer = {
        "trunk": fused.get_layer("trunk"),
        "top": stage_two.get_layer("top"),
        "head": stage_two.get_layer("output"),
    }
    changed = next(w for w in layer[part].weights if "kernel" in w.path)
    changed.assign(changed * 1.02)
    fault = compare_models(fused, reference, frames, maps).fault(dtype)
    assert fault is not None
    assert fault[0] == part


def test_not_a_number_is_a_difference() -> None:
    fused, reference, frames, maps = parts("EfficientNetLite0", "pooled_lstm")
    weights = fused.get_layer(reference.name).get_layer("output").weights[0]
    weights.assign(weights * np.nan)
    fault = compare_models(fused, reference, frames, maps).fault("float32")
    assert fault is not None
    assert fault[0] == "head"


def test_the_published_config_has_the_published_parameters() -> None:
    """InceptionResNetV2: 104,948,130 in all, 53,807,810 trainable, 51,140,320 not; as two stages and fused."""
    config = Config(
        frames=FramesConfig(), backbone=BackboneConfig(name="InceptionResNetV2", weights="random", unfreeze=4)
    )
    trunk = build_trunk(config)
    assert (trunk.model.count_params(), trunk.model.output.shape[1:]) == (51_137_248, (4, 8, 2080))
    published = FlattenLSTMConfig(units=256, dense=64, dropout=0.5, activation="relu")
    stage_two = build_model((8, 4, 8, 2080), published, 2, top=trunk.top())
    expected = {"total": 104_948_130, "trainable": 53_807_810, "frozen": 51_140_320}
    assert count_parameters(stage_two, trunk.model.count_params()) == expected
    assert stage_two.get_layer("lstm").count_params() == 50_594_816
    assert [tuple(w.shape) for w in stage_two.get_layer("dense").weights] == [(256, 64), (64,)]
    fused = build_fused_model(trunk.model, stage_two)
    trainable = sum(int(np.prod(w.shape)) for w in fused.trainable_weights)
    assert (fused.count_params(), trainable) == (expected["total"], expected["trainable"])
    assert fused.input.shape == (None, 8, 180, 320, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a few clips, with data set, config and store beside it."""
    root = tmp_path_factory.mktemp("fuse")
    write_clips(root / "data", {"Train": 10, "Test": 3})
    (root / "c.toml").write_text(
        f"""
[data]
layout = "competition"
path = "{root / "data"}"
target = "velocity"
[frames]
width = 64
height = 48
[window]
length = 4
[head]
units = 8
[train]
epochs = 1
validation_split = 0.2
"""
    )
    where = ["--config", str(root / "c.toml"), "--store", str(root / "s.h5")]
    assert stage1(["extract", *where]) == 0
    assert stage2(["train", *where, "--run", str(root / "run")]) == 0
    return root / "run"


def test_the_command_writes_a_model_that_stands_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage2(["fuse", "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "fused.keras" in shown and "largest difference" in shown
    recorded = json.loads((run / "fused.json").read_text())
    assert recorded["windows"] == 8
    assert set(recorded) == set(Equality.__dataclass_fields__)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 64, 3), dtype=np.uint8)
    np.save(run / "frames.npy", frames)
    code = "import keras, numpy as np, sys; m = keras.models.load_model('fused.keras', safe_mode=True); "
    code += "np.save('out.npy', m.predict(np.load('frames.npy'), verbose=0)); sys.exit('features' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=run, check=True, capture_output=True)
    own = keras.models.load_model(run / "fused.keras").predict(frames, verbose=0)
    np.testing.assert_allclose(np.load(run / "out.npy"), own, rtol=1e-6)


def test_images_that_are_gone_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = run.parent / "data/Train/Train/1"
    hidden = clip.rename(clip.with_name("hidden"))
    try:
        assert stage2(["fuse", "--run", str(run)]) == 2
    finally:
        hidden.rename(clip)
    assert "Train/1" in capsys.readouterr().err


def test_another_backbone_than_the_stores_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.toml"
    before = config.read_text()
    config.write_text(before.replace('weights = "imagenet"', 'weights = "random"'))
    try:
        assert stage2(["fuse", "--run", str(run)]) == 2
    finally:
        config.write_text(before)
    assert "weights_digest" in capsys.readouterr().err
    with Store(run.parent / "s.h5") as store:
        assert store.complete
