"""The fused model: equal to the two stages for every backbone and head, and refused if a part of it differs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from features.config import BackboneConfig, Config, FramesConfig, read_run_config
from features.errors import BadInputs, StoreError
from features.head_config import FlattenLSTMConfig, PooledLSTMConfig
from features.store import Store
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.engines.engine import Engine
from stage2_temporal.__main__ import main
from stage2_temporal.fused.fuse import FusedModelCheck, build_fused_model, compare_models, fuse_run
from stage2_temporal.training.keras_models import count_parameters
from stage2_temporal.training.scaling import Scale
from tests.image_runs import train_on_images
from tests.stage2_helpers import build_model

BACKBONES = {
    # name: (width, height) its graph allows, small
    "EfficientNetLite0": (64, 48), "MobileNetV2": (64, 48), "VGG16": (64, 48), "VGG19": (64, 48), "Xception": (96, 80),
    "InceptionV3": (96, 80), "InceptionResNetV2": (96, 80), "NASNetMobile": (64, 48), "NASNetLarge": (64, 48),
}  # fmt: skip
HEADS = {
    "pooled_lstm": PooledLSTMConfig(units=8, dense=4, difference=True),
    "flatten_lstm": FlattenLSTMConfig(units=8, dense=4, activation="relu"),
}
WINDOWS, TIME = 8, 3
Parts = tuple[keras.Model, keras.Model, np.ndarray, np.ndarray]


def make_parts(name: str, head: str) -> Parts:
    """A fused model, a copy of its stage-two model, and windows of frames with their stored maps."""
    width, height = BACKBONES[name]
    # real weights where they are installed: maps of random deep networks hardly differ from zero
    weights = "imagenet" if name == "EfficientNetLite0" else "random"
    frames_config = FramesConfig(width=width, height=height)
    config = Config.model_validate(
        {"frames": frames_config, "backbone": {"name": name, "weights": weights}, "extract": {"dtype": "float32"}}
    )
    trunk = build_trunk(config)
    frames = np.random.default_rng(0).integers(0, 256, (WINDOWS, TIME, height, width, 3), dtype=np.uint8)
    flat = frames.reshape(-1, height, width, 3)
    engine = Engine(trunk, 8)
    maps = np.concatenate([engine(flat[i : i + 8])["appearance"] for i in range(0, len(flat), 8)])
    maps = maps.reshape(WINDOWS, TIME, *maps.shape[1:])
    scale = Scale(np.array([0.5, -0.1]), np.array([2.3, 0.3]))
    keras.utils.set_random_seed(0)  # the same head in every order of tests
    stage_two = build_model(maps.shape[1:], HEADS[head], 2, top=trunk.top(), target=scale)
    fused = build_fused_model(trunk.model, stage_two)
    reference = keras.Model.from_config(stage_two.get_config())
    reference.set_weights(stage_two.get_weights())
    return fused, reference, frames, maps


def compare(fused: keras.Model, stage_two: keras.Model, frames: np.ndarray, maps: np.ndarray) -> FusedModelCheck:
    return compare_models(fused, stage_two, frames, {"features": maps})


@pytest.fixture(scope="module")
def parts() -> Parts:
    """EfficientNet-Lite0 with its top and a pooled LSTM; weights that a test changes must be set back."""
    return make_parts("EfficientNetLite0", "pooled_lstm")


def test_fused_equals_two_stages(parts: Parts) -> None:
    check = compare(*parts)
    assert check.output.relative <= 1e-4, check
    assert (check.windows, check.rounding) == (WINDOWS, 0)
    assert check.first_fault("float32") is None


@pytest.mark.soak
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "EfficientNetLite0"])
def test_every_backbone_fused_equals_two_stages(name: str, head: str) -> None:
    check = compare(*make_parts(name, head))
    assert check.output.relative <= 1e-4, check
    assert check.first_fault("float32") is None


@pytest.mark.soak
def test_half_precision_differs_only_by_rounding(parts: Parts) -> None:
    fused, reference, frames, _ = parts
    # an engine's batches may round a value between two halves the other way, so the maps are of the very same passes
    maps = np.stack([fused.get_layer("trunk").predict(window, verbose=0)["appearance"] for window in frames])
    check = compare(fused, reference, frames, maps.astype(np.float16))
    assert 0 < check.output.relative <= check.rounding + 1e-6
    assert check.first_fault("float16") is None


@pytest.mark.parametrize(("part", "factor"), [("trunk", 1.02), ("top", 1.02), ("head", 1.02), ("head", np.nan)])
def test_part_with_a_changed_weight_is_named(part: str, factor: float, parts: Parts) -> None:
    fused, reference, frames, maps = parts
    stage_two = fused.get_layer(reference.name)
    layers = {
        "trunk": fused.get_layer("trunk"),
        "top": stage_two.get_layer("top"),
        "head": stage_two.get_layer("output"),
    }
    kernel = next(w for w in layers[part].weights if "kernel" in w.path)
    original = kernel.numpy()
    kernel.assign(original * factor)
    try:
        fault = compare(fused, reference, frames, maps).first_fault("float32")
    finally:
        kernel.assign(original)
    assert fault is not None and fault[0] == part


def test_published_config_has_the_published_parameters() -> None:
    """InceptionResNetV2: 104,948,130 in all, 53,807,810 trainable, 51,140,320 frozen; in two stages and fused."""
    backbone = BackboneConfig(name="InceptionResNetV2", weights="random", unfreeze=4)
    trunk = build_trunk(Config(frames=FramesConfig(), backbone=backbone))
    assert (trunk.model.count_params(), trunk.model.output["appearance"].shape[1:]) == (51_137_248, (4, 8, 2080))
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
    """A finished run on a few clips, which are in `clips`, with its store `s.h5` beside its folder `runs`."""
    return train_on_images(tmp_path_factory.mktemp("fuse"), {"Train": 8, "Validation": 2})


@pytest.mark.soak
def test_command_writes_a_model_that_loads_without_framebank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "fused.keras" in out and "largest difference" in out
    recorded = json.loads((run / "fused.json").read_text())
    assert recorded["windows"] == 8 and set(recorded) == set(FusedModelCheck.__dataclass_fields__)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 48, 64, 3), dtype=np.uint8)
    np.save(run / "frames.npy", frames)
    code = "import keras, numpy as np, sys; m = keras.models.load_model('fused.keras', safe_mode=True); "
    code += "np.save('out.npy', m.predict(np.load('frames.npy'), verbose=0)); sys.exit('features' in sys.modules)"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=run, check=True, capture_output=True)
    predicted = keras.models.load_model(run / "fused.keras").predict(frames, verbose=0)
    np.testing.assert_allclose(np.load(run / "out.npy"), predicted, rtol=1e-6)


def test_missing_images_are_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parents[1] / "clips", tmp_path / "clips")
    shutil.rmtree(tmp_path / "clips/Train/Train/1")
    config = read_run_config(run)
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(tmp_path / "clips")})})
    with Store(run.parents[1] / "s.h5") as store, pytest.raises(BadInputs, match="Train/1 is missing"):
        fuse_run(run, store, config)


def test_other_backbone_than_the_stores_is_refused(run: Path) -> None:
    config = read_run_config(run)
    backbone = config.backbone.model_copy(update={"arguments": {"alpha": 0.5}})
    config = config.model_copy(update={"backbone": backbone})
    with Store(run.parents[1] / "s.h5") as store, pytest.raises(StoreError, match="arguments"):
        fuse_run(run, store, config)
