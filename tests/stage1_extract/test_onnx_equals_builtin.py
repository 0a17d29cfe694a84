"""EfficientNet-Lite0 exported to ONNX gives the maps and the skill that the built-in one gives."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from features.config import Config
from features.store import Store
from features.streams import APPEARANCE
from framebank.workflows import extract, train
from stage1_extract.backbone.efficientnet_lite import EfficientNetLite0
from tests.helpers import picture

pytestmark = pytest.mark.soak  # half a minute, most of it Keras' export

WIDTH, HEIGHT, LENGTH = 96, 64, 4
LAYER = "block3b_add"


def write_drives(folder: Path) -> Path:
    """A manifest of clips that pan over a picture, the faster the higher their speed."""
    scene = cv2.resize(picture(1, (160, 48)), (640, 96), interpolation=cv2.INTER_CUBIC)
    scene = cv2.add(scene, np.random.default_rng(0).integers(0, 60, scene.shape, np.uint8))
    rows = []
    for i, split in enumerate(["train"] * 40 + ["validation"] * 10 + ["test"] * 20):
        speed = 1 + i * 7 % 12
        for f in range(LENGTH):
            left = 11 * i % 400 + speed * f
            path = folder / "images" / f"{i}_{f}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), scene[16 : 16 + HEIGHT, left : left + WIDTH])
            rows.append([f"images/{path.name}", f"clip{i}", f, split, speed if f == LENGTH - 1 else ""])
    with (folder / "drives.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "sequence", "frame", "split", "ego_speed"], *rows])
    return folder / "drives.csv"


def settings(folder: Path, backbone: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "data": {"layout": "manifest", "path": str(folder / "drives.csv"), "fps": 10.0},
            "frames": {"width": WIDTH, "height": HEIGHT},
            "backbone": backbone,
            "extract": {"dtype": "float32"},
            "window": {"length": LENGTH},
            "head": {"name": "ridge", "difference": True, "grid": (2, 2)},
        }
    )


def residual_sums(path: Path) -> list[str]:
    """The tensors of a file that are sums of two computed ones, in order."""
    graph = onnx.load(path).graph
    fixed = {w.name for w in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    return [n.output[0] for n in graph.node if n.op_type == "Add" and not fixed.intersection(n.input)]


def test_exported_network_gives_the_same_maps_and_skill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_drives(tmp_path)
    path = tmp_path / "lite0.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from Keras' own converter (3.15)
        model = EfficientNetLite0(input_shape=(HEIGHT, WIDTH, 3))
        model(np.zeros((1, HEIGHT, WIDTH, 3), np.float32))  # Keras exports only models that have been called
        model.export(str(path), format="onnx", verbose=False)
    built_in = settings(tmp_path, {"name": "EfficientNetLite0", "cut": LAYER, "top": False})
    pixels = {"name": f"onnx:{path}", "mean": (127.0,) * 3, "deviation": (128.0,) * 3}
    foreign = settings(tmp_path, pixels | {"cut": residual_sums(path)[1]})  # block2b_add, block3b_add, block4b_add, …
    skills, maps = [], []
    for name, cfg in (("built_in", built_in), ("onnx", foreign)):
        store = extract(cfg, tmp_path / f"{name}.h5")
        (run,) = train(cfg, store, f"./{name}")
        skills.append(json.loads((run / "metrics.json").read_text())["splits"]["test"]["model"]["skill"])
        with Store(store) as opened:
            maps.append(opened.read(APPEARANCE, range(opened.frames)))
    difference = np.abs(maps[1] - maps[0]).max() / np.abs(maps[0]).max()
    print(f"maps differ by {difference:.2g} of the largest value, skill {skills[0]:.4f} and {skills[1]:.4f}")
    assert maps[0].shape == maps[1].shape and difference < 1e-4
    assert skills[0] > 0.5 and abs(skills[1] - skills[0]) < 0.005
