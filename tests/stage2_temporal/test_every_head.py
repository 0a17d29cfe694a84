"""Every head on the way a user takes: train, evaluate, fuse, predict and export, from real images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from stage1_extract.__main__ import main as stage1
from stage2_temporal.__main__ import main as stage2
from stage2_temporal.heads import HEADS
from stage2_temporal.heads.vehicle import VehicleHead
from tests.helpers import write_clips

QUICK = ("ridge",)
WHOLE = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.soak)
    for name, head in HEADS.items()
    if not issubclass(head, VehicleHead)
]
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
[head]
units = 4
dense = 4
difference = true
grid = [2, 2]
[train]
epochs = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("all")
    write_clips(root / "data", {"Train": 8, "Validation": 3, "Test": 3})
    (root / "c.toml").write_text(CONFIG.format(data=root / "data"))
    assert stage1(["extract", "--config", str(root / "c.toml"), "--store", str(root / "s.h5")]) == 0
    return root


@pytest.mark.parametrize("name", WHOLE)
def test_train_evaluate_fuse_export_predict(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / name
    where = ["--config", str(folder / "c.toml"), "--store", str(folder / "s.h5"), "--run", str(run)]
    assert stage2(["train", *where, "--head.name", name]) == 0
    before = {f: (run / f).read_bytes() for f in ("predictions.csv", "metrics.json")}
    assert json.loads(before["metrics.json"])["head"] == name
    assert stage2(["evaluate", "--run", str(run)]) == 0
    assert {f: (run / f).read_bytes() for f in before} == before
    assert stage2(["fuse", "--run", str(run)]) == 0, capsys.readouterr().err
    fused = keras.models.load_model(run / "fused.keras", safe_mode=True)
    assert fused.input.shape == (None, 4, 48, 64, 3)
    assert stage2(["predict", "--run", str(run), "--output", str(run / "p.csv")]) == 0
    values = [read(run / file, "ego_speed_pred") for file in ("p.csv", "predictions.csv")]
    np.testing.assert_allclose(*values, rtol=5e-3)  # decoded anew, not rounded to half precision
    assert stage2(["export", "--run", str(run)]) == 0, capsys.readouterr().err
    assert {p.name for p in (run / "export").iterdir()} == {"model", "model.onnx", "model.tflite"}


def read(path: Path, column: str) -> list[float]:
    with path.open(newline="") as f:
        return [float(row[column]) for row in csv.DictReader(f)]
