"""Every head in the commands train, evaluate, fuse, predict and export, from real images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from features.head_config import head_settings_class
from stage1_extract.__main__ import main as stage1
from stage2_temporal.__main__ import main as stage2
from stage2_temporal.heads import HEADS
from stage2_temporal.heads.vehicle import VehicleHead
from tests.helpers import write_clips

ON_MAPS = [name for name, head in HEADS.items() if not issubclass(head, VehicleHead)]
CONFIG = """
[data]
layout = "competition"
path = "{data}"
target = "ego_speed"
[frames]
width = 64
height = 48
[backbone]
cut = "block3b_add"
top = false
[window]
length = 4
[train]
epochs = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heads")
    write_clips(root / "data", {"Train": 8, "Validation": 3, "Test": 3})
    (root / "c.toml").write_text(CONFIG.format(data=root / "data"))
    assert stage1(["extract", "--config", str(root / "c.toml"), "--store", str(root / "s.h5")]) == 0
    return root


def test_ridge_is_trained_evaluated_fused_and_predicts(folder: Path) -> None:
    check_commands(folder, "ridge")


@pytest.mark.soak
@pytest.mark.parametrize("name", ON_MAPS)
def test_head_works_in_every_command(folder: Path, name: str) -> None:
    run = check_commands(folder, name)
    assert stage2(["export", "--run", str(run)]) == 0
    assert {p.name for p in (run / "export").iterdir()} == {"model", "model.onnx", "model.tflite"}


def check_commands(folder: Path, name: str) -> Path:
    """Train, evaluate, fuse and predict with a head; the run."""
    run = folder / name
    small = {"units": "4", "dense": "4", "difference": "true", "grid": "2 2"}
    fields = head_settings_class(name).model_fields
    flags = [word for key, value in small.items() if key in fields for word in (f"--head.{key}", *value.split())]
    where = ["--config", str(folder / "c.toml"), "--store", str(folder / "s.h5"), "--run", str(run)]
    assert stage2(["train", *where, "--head.name", name, *flags]) == 0
    before = {f: (run / f).read_bytes() for f in ("predictions.csv", "metrics.json")}
    assert json.loads(before["metrics.json"])["head"] == name
    assert stage2(["evaluate", "--run", str(run)]) == 0
    assert {f: (run / f).read_bytes() for f in before} == before
    assert stage2(["fuse", "--run", str(run)]) == 0
    fused = keras.models.load_model(run / "fused.keras", safe_mode=True)
    assert fused.input.shape == (None, 4, 48, 64, 3)
    assert stage2(["predict", "--run", str(run), "--output", str(run / "p.csv")]) == 0
    values = [read(run / file, "ego_speed_pred") for file in ("p.csv", "predictions.csv")]
    np.testing.assert_allclose(*values, rtol=5e-3)  # from images, so maps are not rounded to half precision
    return run


def read(path: Path, column: str) -> list[float]:
    with path.open(newline="") as f:
        return [float(row[column]) for row in csv.DictReader(f)]
