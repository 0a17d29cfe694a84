"""`python -m stage2_temporal` as a user runs it: what it prints, writes, and how it ends."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.sequences import FrameSequence, Label
from stage2_temporal.__main__ import main
from tests.helpers import write_store

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
def folder(tmp_path: Path) -> Path:
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
    return tmp_path


def stage2(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # the command silences TensorFlow by itself
    return subprocess.run(
        [sys.executable, "-m", "stage2_temporal", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_train_evaluate_report(folder: Path) -> None:
    first = stage2(folder, "train", "--config", "task.toml", "--head.dropout", "0.1")
    assert first.returncode == 0, first.stderr
    derived, *lines, warning = first.stderr.splitlines()
    assert derived.endswith("task.h5: pooled derived, for this head and others")
    assert "UNTRAINED" in warning  # the store's recipe says that the backbone's weights are random
    assert len(lines) == 2, first.stderr  # one an epoch, and nothing of TensorFlow's
    assert all(line.startswith("train: epoch ") for line in lines)
    run = folder / "runs" / "task-velocity-pooled_lstm"
    assert first.stdout.splitlines()[-1] == "runs/task-velocity-pooled_lstm/report.html"
    assert "constant on the validation split" in first.stdout  # test has no labels: no verdict on it
    assert "constant" in first.stdout.split("model", 1)[1]
    assert (run / "report.html").stat().st_size > 10_000
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["splits"]) == {"train", "validation"}
    assert metrics["dropped"] == {"window": 0, "unknown": 11}
    assert "dropout = 0.1" in (run / "config.toml").read_text()

    with (run / "predictions.csv").open(newline="") as f:
        test = [r for r in csv.DictReader(f) if r["split"] == "test"]
    assert {r["vx_true"] for r in test} == {""}
    with (run / "submission.csv").open(newline="") as f:
        submission = list(csv.DictReader(f))
    assert [r["ID"] for r in submission] == [str(i) for i in range(1, 12)]
    for row, given in zip(test, submission, strict=True):
        assert float(given["speed"]) == math.hypot(float(row["vx_pred"]), float(row["vy_pred"]))

    second = stage2(folder, "train", "--config", "task.toml", "--head.dropout", "0.1")
    assert second.returncode == 0
    assert second.stderr == ""
    assert second.stdout.startswith("runs/task-velocity-pooled_lstm: trained already\n")
    assert metrics["verdict"] in second.stdout

    before = (run / "metrics.json").read_text()
    again = stage2(folder, "evaluate", "--run", "task-velocity-pooled_lstm")
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert (run / "metrics.json").read_text() == before

    (run / "report.html").unlink()
    report = stage2(folder, "report", "--run", "runs/task-velocity-pooled_lstm", "--store", "stores/task.h5")
    assert (report.returncode, report.stdout) == (0, "runs/task-velocity-pooled_lstm/report.html\n")
    assert (run / "report.html").exists()

    other = stage2(folder, "train", "--config", "task.toml", "--data.target", "ego_speed", "--run", "mine")
    assert other.returncode == 0, other.stderr
    assert not (folder / "runs" / "mine" / "submission.csv").exists()
    replaced = stage2(folder, "train", "--config", "task.toml", "--run", "mine", "--train.epochs", "1")
    assert replaced.returncode == 0, replaced.stderr
    assert json.loads((folder / "runs" / "mine" / "metrics.json").read_text())["target"] == ["vx", "vy"]
    assert sorted(p.name for p in (folder / "runs").iterdir()) == ["mine", "task-velocity-pooled_lstm"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("train --config none.toml", "none.toml: no such config"),
        ("train", "which store?"),
        ("train --config task.toml --store none.h5", "none.h5"),
        ("train --config task.toml --store part.h5", "not complete"),
        ("train --config task.toml --data.target weight", "expected one of ego_speed, vx, vy, x, y; got weight"),
        ("train --config task.toml --window.length 5", "no window fits"),
        ("train --config task.toml --head.name bert", "flatten_lstm, pooled_lstm"),
        ("train --config task.toml --head.grid 9 9", "head.grid does not fit the map"),
        ("train --config task.toml --run stores", "is no run"),
        ("evaluate --run nothing", "no metrics.json"),
        ("evaluate", "which run?"),
        ("report --run nothing --frobnicate", "unknown flags"),
    ],
)
def test_what_the_user_can_mend(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "stores").symlink_to(folder / "stores")
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1, said
    assert "Try: " in said
    assert [p.name for p in (folder / "runs").iterdir()] == ["stores"]


def test_help(folder: Path) -> None:
    assert "python -m stage2_temporal train" in stage2(folder, "--help").stdout
    text = stage2(folder, "train", "--help").stdout
    for part in ("--config", "--run", "--train.learning-rate", "flatten_lstm", "pooled_lstm"):
        assert part in text, part


def test_faults_need_no_tensorflow(folder: Path) -> None:
    script = (
        "import sys; from stage2_temporal.__main__ import main\n"
        "assert main(['train', '--config', 'task.toml', '--store', 'part.h5']) == 2\n"
        "assert 'tensorflow' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True, capture_output=True)


def test_a_config_of_other_features_than_the_stores_is_refused(folder: Path) -> None:
    ended = stage2(folder, "train", "--config", "task.toml", "--frames.width", "640")
    assert ended.returncode == 2
    assert "frames.width 32 in the store, 640 asked for" in ended.stderr


@pytest.mark.parametrize("flags", [["--train.seed", "-5"], ["--train.seed", str(2**32)], ["--data.target"]])
def test_values_out_of_range_end_with_status_2(flags: list[str], folder: Path) -> None:
    assert stage2(folder, "train", "--config", "task.toml", *flags).returncode == 2


def test_a_run_for_each_target(folder: Path) -> None:
    (folder / "two.toml").write_text(CONFIG.replace('target = "velocity"', 'target = "velocity"\nalso = ["ego_speed"]'))
    where = ["train", "--config", "two.toml", "--store", "stores/task.h5"]
    assert stage2(folder, *where).returncode == 0
    runs = {p.name: json.loads((p / "metrics.json").read_text()) for p in (folder / "runs").iterdir()}
    assert {name: run["target"] for name, run in runs.items()} == {
        "two-velocity-pooled_lstm": ["vx", "vy"],
        "two-ego_speed-pooled_lstm": ["ego_speed"],
    }
    assert stage2(folder, *where, "--data.target", "ego_speed").stdout.count("trained already") == 1
    assert stage2(folder, *where).stdout.count("trained already") == 2
