"""The commands of stage two as a user runs them: what they print and write, and how they end."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.config import read_config
from features.sequences import FrameSequence, Label
from framebank.workflows import best_run_on_maps
from stage2_temporal.__main__ import main
from tests.helpers import write_store

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
CONFIG = """
[data]
layout = "competition"
target = "velocity"

[frames]
width = 32
height = 18

[backbone]
name = "Tiny"
weights = "random"
preprocess = false

[extract]
dtype = "float32"

[window]
length = 4

[head]
units = 4
dense = 0

[train]
epochs = 2
batch = 8
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a config and its store: 12 training clips, 3 validation, 11 test clips without labels."""
    rng = np.random.default_rng(0)
    nan = math.nan
    sequences = []
    for split, count in (("Train", 12), ("Validation", 3), ("Test", 11)):
        for i in range(1, count + 1):
            vx, vy = (nan, nan) if split == "Test" else rng.normal(size=2).tolist()
            label = Label(3, {"vx": vx, "vy": vy, "ego_speed": rng.uniform(5, 30)}, position=(10.0 * i, 0.0))
            sequences.append(FrameSequence(f"{split}/{i}", split.lower(), 4, 20.0, (64, 36), f"{split}{i}", (label,)))
    maps = rng.normal(size=(26 * 4, 2, 3, 8)).astype(np.float32)
    (tmp_path / "stores").mkdir()
    write_store(tmp_path / "stores" / "task.h5", sequences, {"appearance": maps})
    incomplete = [replace(s, id=f"{s.id}/again") for s in sequences[:2]]
    write_store(tmp_path / "part.h5", incomplete, {"appearance": maps[:8]}, complete=False)
    (tmp_path / "task.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: its exit status, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main(list(arguments))
        return status, *capfd.readouterr()

    return command


def test_train_evaluate_report(folder: Path, run: Run) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # the command silences TensorFlow by itself
    train = ["train", "--config", "task.toml", "--head.dropout", "0.1"]
    command = [sys.executable, "-m", "stage2_temporal", *train]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    derived, *epochs, intervals, warning = first.stderr.splitlines()
    assert "no 90 % intervals" in intervals  # of three validation sequences
    assert "task.h5: pooled derived" in derived
    assert "UNTRAINED" in warning  # the store's recipe says that the backbone's weights are random
    assert len(epochs) == 2, first.stderr  # one line per epoch, and nothing of TensorFlow's
    assert all(line.startswith("train: epoch ") for line in epochs)
    path = folder / "runs" / "task-velocity-pooled_lstm"
    assert first.stdout.splitlines()[-1] == "runs/task-velocity-pooled_lstm/report.html"
    assert "constant on the validation split" in first.stdout  # test has no labels, so no verdict on it
    assert "constant" in first.stdout.split("model", 1)[1]
    assert (path / "report.html").stat().st_size > 10_000
    metrics = json.loads((path / "metrics.json").read_text())
    assert set(metrics["splits"]) == {"train", "validation"}
    assert metrics["dropped"] == {"window": 0, "unknown": 11}
    assert "dropout = 0.1" in (path / "config.toml").read_text()

    with (path / "predictions.csv").open(newline="") as f:
        test_rows = [row for row in csv.DictReader(f) if row["split"] == "test"]
    assert {row["vx_true"] for row in test_rows} == {""}
    with (path / "submission.csv").open(newline="") as f:
        submission = list(csv.DictReader(f))
    assert [row["ID"] for row in submission] == [str(i) for i in range(1, 12)]
    for row, submitted in zip(test_rows, submission, strict=True):
        assert float(submitted["speed"]) == math.hypot(float(row["vx_pred"]), float(row["vy_pred"]))

    status, out, err = run(*train)
    assert (status, err) == (0, "")
    assert out.startswith("runs/task-velocity-pooled_lstm: trained already; to train it again, delete this folder\n")
    assert metrics["verdict"] in out

    before = (path / "metrics.json").read_text()
    status, out, err = run("evaluate", "--run", "task-velocity-pooled_lstm")
    assert (status, err) == (0, "")
    assert metrics["verdict"] in out
    assert (path / "metrics.json").read_text() == before

    (path / "report.html").unlink()
    status, out, _ = run("report", "--run", "runs/task-velocity-pooled_lstm", "--store", "stores/task.h5")
    assert (status, out) == (0, "runs/task-velocity-pooled_lstm/report.html\n")
    assert (path / "report.html").exists()


def test_named_run_is_replaced(folder: Path, run: Run) -> None:
    train = ["train", "--config", "task.toml", "--run", "mine", "--train.epochs", "1", "--head.name", "ridge"]
    path = folder / "runs" / "mine"
    assert run(*train, "--data.target", "ego_speed")[0] == 0
    assert not (path / "submission.csv").exists()
    assert run(*train)[0] == 0
    assert json.loads((path / "metrics.json").read_text())["target"] == ["vx", "vy"]
    assert [p.name for p in (folder / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --config none.toml", "none.toml: no such config"),
        ("train", "which store?"),
        ("train --config task.toml --store none.h5", "none.h5"),
        ("train --config task.toml --store part.h5", "incomplete"),
        ("train --config task.toml --data.target weight", "expected one of ego_speed, vx, vy, x, y, velocity, pos"),
        ("train --config task.toml --window.length 5", "no window fits"),
        ("train --config task.toml --frames.width 640", "frames.width 32 in the store, 640"),
        ("train --config task.toml --head.grid 9 9", "head.grid does not fit the map"),
        ("train --config task.toml --run stores", "is not a run"),
        ("train --config task.toml --run task/mine", "--run task/mine: neither a name nor a run's folder"),
        ("train --config task.toml --run ..", "--run ..: .. leads out of runs/"),
        ("train --config task.toml --data.target velocty", "velocty (did you mean velocity?); got velocty"),
        ("evaluate --run nothing", "no metrics.json"),
        ("evaluate", "--run NAME is required"),
        ("report --run nothing --frobnicate", "unknown option --frobnicate"),
    ],
)
def test_error_is_one_line_with_a_hint(folder: Path, run: Run, arguments: str, message: str) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "stores").symlink_to(folder / "stores")
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1, err
    assert "Try: " in err
    assert [p.name for p in (folder / "runs").iterdir()] == ["stores"]


def test_early_errors_load_no_tensorflow(folder: Path) -> None:
    script = (
        "import sys; from stage2_temporal.__main__ import main\n"
        "assert main(['train', '--config', 'task.toml', '--store', 'part.h5']) == 2\n"
        "assert 'tensorflow' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True, capture_output=True)


def test_each_target_gets_a_run(folder: Path, run: Run) -> None:
    text = CONFIG.replace('target = "velocity"', 'target = "velocity"\nalso = ["ego_speed"]')
    (folder / "two.toml").write_text(text.replace("units = 4\ndense = 0", 'name = "ridge"'))
    train = ["train", "--config", "two.toml", "--store", "stores/task.h5"]
    assert run(*train)[0] == 0
    targets = {p.name: json.loads((p / "metrics.json").read_text())["target"] for p in (folder / "runs").iterdir()}
    assert targets == {"two-velocity-ridge": ["vx", "vy"], "two-ego_speed-ridge": ["ego_speed"]}
    assert run(*train, "--data.target", "ego_speed")[1].count("trained already") == 1
    assert run(*train)[1].count("trained already") == 2


COMPARE = """
[[compare]]
label = "the mean of the maps"
"head.name" = "ridge"
[[compare]]
label = "recurrent"
[[compare]]
label = "speed"
"data.target" = "ego_speed"
"head.name" = "ridge"
"head.difference" = true
"""


def test_compared_runs_end_in_one_table_per_target(folder: Path, run: Run) -> None:
    (folder / "several.toml").write_text(CONFIG + COMPARE)
    train = ["train", "--config", "several.toml", "--store", "stores/task.h5"]
    status, out, err = run(*train)
    assert status == 0, err
    assert err.count("derived and saved in the store") == 1  # of all heads at once
    runs = ["several-velocity-ridge", "several-velocity-pooled_lstm", "several-ego_speed-ridge"]
    assert [line for line in out.splitlines() if "report.html" in line][:3] == [f"runs/{r}/report.html" for r in runs]
    tables = out[out.index("vx, vy on the validation split, 3 examples") :].splitlines()
    names = ("the mean of the maps (ridge)", "recurrent (pooled_lstm)", "speed (ridge)", "constant predictor")
    order = [name for line in tables for name in names if line.startswith(name)]
    assert order == [names[0], names[1], names[3], names[2], names[3]]
    for name in runs[:2]:
        metrics = json.loads((folder / "runs" / name / "metrics.json").read_text())
        low, high = metrics["splits"]["validation"]["skill_interval"]
        assert low <= metrics["splits"]["validation"]["model"]["skill"] <= high
        assert f"{low:.3f} to {high:.3f}" in out
        assert not read_config(folder / "runs" / name / "config.toml").compare
    assert run(*train)[1].count("trained already") == 3
    # a head or target on the command line asks for one run
    assert run(*train, "--head.name", "svr")[1].count("report.html") == 1
    assert run(*train, "--train.epochs", "1")[1].count("trained already") == 0


def test_wrong_entry_to_compare_is_named(folder: Path, run: Run) -> None:
    (folder / "wrong.toml").write_text(CONFIG + '[[compare]]\n"head.unitz" = 3\n')
    status, _, err = run("train", "--config", "wrong.toml", "--store", "stores/task.h5")
    assert status == 2
    assert "[[compare]] number 1: " in err and "unitz" in err


def test_fine_tuning_without_a_run_takes_the_best_on_maps(folder: Path, run: Run) -> None:
    assert "no run whose head reads the CNN's maps alone" in run("finetune")[2]
    for name, alpha in (("stiff", "1000"), ("loose", "1")):
        train = ["train", "--config", "task.toml", "--head.name", "ridge", "--head.alpha", alpha]
        assert run(*train, "--run", name)[0] == 0
    skills = {
        name: json.loads((folder / "runs" / name / "metrics.json").read_text())["splits"]["validation"]["model"][
            "skill"
        ]
        for name in ("stiff", "loose")
    }
    best = max(skills, key=lambda name: skills[name])
    assert skills["stiff"] != skills["loose"]
    assert best_run_on_maps() == f"runs/{best}"
    track = folder / "runs" / best / "ground.json"  # what a head that reads a vehicle's track, too, has learnt of it
    track.touch()
    other = best_run_on_maps()
    track.unlink()
    assert {other, f"runs/{best}"} == {"runs/stiff", "runs/loose"}


def test_head_from_the_command_line_keeps_shared_settings(folder: Path, run: Run) -> None:
    status, _, err = run("train", "--config", "task.toml", "--head.name", "gru", "--train.epochs", "1")
    assert status == 0, err
    config = read_config(folder / "runs" / "task-velocity-gru" / "config.toml")
    assert config.head.model_dump()["units"] == 4
    status, _, err = run("train", "--config", "task.toml", "--head.name", "ridge", "--head.alpha", "2")
    assert status == 0, err
    assert "Settings of pooled_lstm that ridge does not have are dropped: dense, units." in err
    assert read_config(folder / "runs" / "task-velocity-ridge" / "config.toml").head.model_dump()["alpha"] == 2
