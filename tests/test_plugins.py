"""A package that is not part of framebank adds a head, a backbone and a data set, and is trained with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.helpers import ROOT, picture

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "tiny-plugin"
version = "0.1.0"

[project.entry-points."framebank.heads"]
bigru = "tiny_plugin.head:BiGRU"
no_settings = "tiny_plugin.data:find_clips"
no_module = "tiny_plugin.missing:Head"

[project.entry-points."framebank.backbones"]
TinyNet = "tiny_plugin.backbone:TinyNet"
NoPreprocessing = "tiny_plugin.data:find_clips"

[project.entry-points."framebank.datasets"]
folders = "tiny_plugin.data:find_clips"
"""
HEAD = '''
import keras
from features.head_config import PooledConfig, RecurrentConfig
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.pooled import PooledFrames


class BiGRUConfig(PooledConfig, RecurrentConfig):
    """Settings of `bigru`."""

    when = "For events that become clear only in later frames."
    merge: str = "concat"
    """How the two directions are combined."""


class BiGRU(PooledFrames, GradientHead):
    """A bidirectional GRU over pooled maps."""

    settings = BiGRUConfig

    def output(self, vectors, targets):
        gru = keras.layers.GRU(self.settings_.units, activation=self.settings_.activation)
        return self.dense_output(keras.layers.Bidirectional(gru, self.settings_.merge)(vectors), targets)
'''
BACKBONE = """
import keras


def TinyNet(include_top, weights, input_shape, filters=4):
    images = keras.Input(input_shape)
    return keras.Model(images, keras.layers.Conv2D(filters, 3, strides=8, activation="relu", name="conv")(images))


def preprocess_input(x):
    return x / 255.0
"""
DATA = """
from pathlib import Path
from features.sequences import Label
from stage1_extract.datasets.image_sequence import ClipSpec


def find_clips(data):
    specs = []
    for folder in sorted(Path(data.path).iterdir()):
        files = tuple(sorted(folder.glob("*.png")))
        speed = float((folder / "speed.txt").read_text())
        label = Label(len(files) - 1, {"ego_speed": speed})
        specs.append(ClipSpec(folder.name, folder.name.split("-")[0], data.fps, files, (label,)))
    return specs, []
"""
CONFIG = """
[data]
layout = "folders"
path = "clips"
target = "ego_speed"
[frames]
width = 64
height = 48
[backbone]
name = "TinyNet"
weights = "random"
cut = "conv"
top = false
arguments = { filters = 6 }
[extract]
engine = "tensorflow"
[window]
length = 4
[head]
name = "bigru"
units = 4
merge = "sum"
grid = [2, 2]
[train]
epochs = 1
"""
SESSION = """
import contextlib, io, json
from framebank.cli import main

commands = [
    "extract --config task.toml --store s.h5",
    "train --config task.toml --store s.h5 --run runs/plugin --head.units 5",
    "train --config task.toml --store s.h5 --run runs/plain --head.name ridge",
    "leaderboard",
    "train --help",
    "train --config task.toml --store s.h5 --head.alpha 1",
    "train --config task.toml --store s.h5 --head.name no_settings",
    "train --config task.toml --store s.h5 --head.name no_module",
    "extract --config task.toml --store t.h5 --backbone.name NoPreprocessing",
]
results = []
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(command.split())
        except SystemExit as e:
            status = e.code
    results.append([status or 0, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed into `site`, clips, and a config that uses all three extensions."""
    root = tmp_path_factory.mktemp("plugin")
    package = root / "project" / "tiny_plugin"
    package.mkdir(parents=True)
    (root / "project" / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").touch()
    for name, code in {"head": HEAD, "backbone": BACKBONE, "data": DATA}.items():
        (package / f"{name}.py").write_text(code)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", root / "site", root / "project"], check=True)
    for split, count in {"train": 6, "validation": 2, "test": 2}.items():
        for i in range(count):
            clip = root / "clips" / f"{split}-{i}"
            clip.mkdir(parents=True)
            for frame in range(4):
                cv2.imwrite(str(clip / f"{frame}.png"), picture(10 * i + frame))
            (clip / "speed.txt").write_text(str(5.0 + i))
    (root / "task.toml").write_text(CONFIG)
    return root


def test_plugins_are_found_trained_with_and_named_in_errors(folder: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{ROOT}"}
    session = subprocess.run(
        [sys.executable, "-c", SESSION], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert session.returncode == 0, session.stderr
    results = json.loads(session.stdout.splitlines()[-1])
    extract, plugin, plain, leaderboard, shown, wrong_setting, no_settings, no_module, no_preprocessing = results
    assert extract[0] == plugin[0] == plain[0] == leaderboard[0] == 0, results
    config = (folder / "runs/plugin/config.toml").read_text()
    assert 'name = "bigru"' in config and 'merge = "sum"' in config and "units = 5" in config
    assert "bigru" in leaderboard[1] and "ridge" in leaderboard[1]
    assert "A plugin of the package tiny-plugin." in " ".join(shown[1].split())
    assert wrong_setting[0] == 2 and "alpha" in wrong_setting[2] and "merge" in wrong_setting[2]
    for status, _, error in (no_settings, no_module, no_preprocessing):
        assert status == 2 and "of the package tiny-plugin" in error
    assert "not a subclass of HeadConfig" in no_settings[2]
    assert "ModuleNotFoundError" in no_module[2]
    assert "preprocess_input" in no_preprocessing[2]
