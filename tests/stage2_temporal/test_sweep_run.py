"""Sweeps carried out on a small real store: by processes, again, in part, and killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from features._common.lock import exclusive_write_lock
from features.config import Config, read_config
from features.errors import BadInputs, StoreError
from features.store import Store
from stage2_temporal.runs.folder import read_metrics
from stage2_temporal.sweep.runner import SweepResult, run_sweep
from stage2_temporal.sweep.spec import Sweep, read_sweep, sweep_entries
from stage2_temporal.train import evaluate
from tests.helpers import write_store
from tests.stage2_helpers import CLIP_LENGTH, drifting_clips

ROOT = Path(__file__).parents[2]
TASK = f"""
[frames]
width = 32
height = 18
[backbone]
name = "Tiny"
preprocess = false
[extract]
dtype = "float32"
[window]
length = {CLIP_LENGTH}
[head]
difference = true
dense = 0
[train]
epochs = 3
batch = 8
"""
SWEEP = """
[sweep]
name = "s"
folds = 2
jobs = 2
reports = 1
[[entries]]
"head.units" = [4]
"train.learning_rate" = [0.01]
[[entries]]
"head.units" = 5
"train.learning_rate" = 1e30
"""
GOOD = SWEEP[: SWEEP.rindex("[[entries]]")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where sweeps are made: a store, a config and a sweep."""
    maps, sequences = drifting_clips({"train": 14, "validation": 6, "test": 6})
    (tmp_path / "stores").mkdir()
    write_store(tmp_path / "stores" / "task.h5", sequences, {"appearance": maps})
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def begin(folder: Path, *arguments: str, threads: int = 0) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": str(threads)}
    command = [sys.executable, "-m", "stage2_temporal", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell's background job is deaf to Ctrl-C, and so is all it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def sweep(folder: Path) -> tuple[int, str, str]:
    process = begin(folder, "sweep", "--config", "task.toml", "--sweep", "sweep.toml")
    out, err = process.communicate()
    return process.returncode, out, err


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """All figures, but how long it took."""
    with (folder / "runs" / "s" / "leaderboard.csv").open(newline="", encoding="utf-8") as f:
        return [{k: v for k, v in row.items() if k not in ("seconds", "report")} for row in csv.DictReader(f)]


def runs(folder: Path) -> dict[str, int]:
    """Each finished run, and what tells its file from another's."""
    return {p.parent.name: p.stat().st_ino for p in (folder / "runs" / "s").glob("*/model.keras")}


def test_what_fails_is_recorded_and_the_rest_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = sweep(folder)
    assert status == 2, err
    *_, first, second, last = err.splitlines()
    assert "s/pooled_lstm-" in first and "the loss is no number any more" in first and "fold1" in second
    assert "2 of 4 runs failed" in last
    assert "4/4 run" in err and "best skill" in err and "beside the constant's" in err
    assert "on the validation split (2 folds, 20 examples)" in out
    assert out.splitlines()[-1] == "runs/s/leaderboard.html"
    there = runs(folder)
    assert len(there) == 2
    errors = sorted((folder / "runs" / "s").glob("*/error.json"))
    assert len(errors) == 2
    assert "the loss is no number" in json.loads(errors[0].read_text())["error"]
    assert {p.name for p in errors[0].parent.iterdir()} == {"config.toml", "error.json"}
    reports = list((folder / "runs" / "s").glob("*/report.html"))
    assert [p.parent.name for p in reports] == [leaderboard(folder)[0]["run"]]

    # the same run by itself, with the threads of one of two workers
    name = next(name for name in there if name.endswith("fold1"))
    alone = begin(
        folder, "train", "--config", f"runs/s/{name}/config.toml", "--store", "stores/task.h5", "--run", "alone",
        threads=max(1, len(os.sched_getaffinity(0)) // 2),
    )  # fmt: skip
    _, err = alone.communicate()
    assert alone.returncode == 0, err
    predictions = [(folder / "runs" / p / "predictions.csv").read_bytes() for p in (f"s/{name}", "alone")]
    assert predictions[0] == predictions[1]

    # again, without what failed: what is finished stays
    (folder / "sweep.toml").write_text(GOOD)
    monkeypatch.chdir(folder)
    wanted = read_sweep(Path("sweep.toml"))
    done = run_sweep(wanted.sweep, sweep_entries(wanted, read_config("task.toml")), Path("stores/task.h5"))
    assert (set(done.names), done.failed, done.left) == (set(there), (), 0)
    assert runs(folder) == there


def carried(
    folder: Path, monkeypatch: pytest.MonkeyPatch, entry: dict[str, object] | None = None, **plan: object
) -> SweepResult:
    """A sweep in this process."""
    monkeypatch.chdir(folder)
    units = {"head.name": "pooled_lstm", "head.units": [4, 5, 6], "train.epochs": 1}
    wanted = Sweep.model_validate({"sweep": {"name": "s", "jobs": 1, **plan}, "entries": [entry or units]})
    base = Config.model_validate(
        {"window": {"length": CLIP_LENGTH}, "frames": {"width": 32, "height": 18}, "extract": {"dtype": "float32"}}
        | {"backbone": {"name": "Tiny", "preprocess": False}}
    )
    return run_sweep(wanted.sweep, sweep_entries(wanted, base), Path("stores/task.h5"))


def test_a_time_budget_begins_nothing_more_and_the_rest_comes_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = carried(folder, monkeypatch, minutes=1e-6)
    assert (done.names, done.failed, done.left) == ((), (), 3)
    done = carried(folder, monkeypatch, seeds=[7], limit=2, reports=0)
    assert done.failed == ()
    assert (len(done.names), done.left) == (2, 0)
    assert capsys.readouterr().out == ""
    there = runs(folder)
    assert set(there) == set(done.names)
    done = carried(folder, monkeypatch, seeds=[7], reports=0)
    assert len(done.names) == 3 and set(there.items()) < set(runs(folder).items())
    assert not list((folder / "runs").glob("s/*/report.html"))
    done = carried(folder, monkeypatch, seeds=[7], reports=2)
    assert len(list((folder / "runs").glob("s/*/report.html"))) == 2


def test_auto_becomes_a_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = carried(folder, monkeypatch, {"head.name": "auto", "train.epochs": 1}, reports=0)
    assert done.names[0].startswith("auto-")
    assert read_config(done.folder / done.names[0] / "config.toml").head.name == "ridge"
    there = runs(folder)
    assert carried(folder, monkeypatch, {"head.name": "auto", "train.epochs": 1}, reports=0) == done
    assert runs(folder) == there


def test_a_fold_is_an_ordinary_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = carried(folder, monkeypatch, folds=2, limit=1, reports=0)
    path = done.folder / done.names[1]
    metrics = read_metrics(path)
    assert metrics["splits"]["validation"]["examples"] == metrics["splits"]["train"]["examples"] == 10
    assert metrics["splits"]["test"]["examples"] == 6
    with Store("stores/task.h5") as store:
        evaluate(path, store)
    again = read_metrics(path)
    assert again["splits"] == metrics["splits"] and again["labels"] == metrics["labels"]
    assert (path / "report.html").is_file()
    assert read_metrics(done.folder / done.names[0])["labels"] == metrics["labels"]


def test_what_does_not_fit_the_store_is_found_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    base = Config.model_validate(
        {"window": {"length": CLIP_LENGTH}, "frames": {"width": 32, "height": 18}, "extract": {"dtype": "float32"}}
        | {"backbone": {"name": "Tiny", "preprocess": False}}
    )
    tables = [
        {"head.name": ["bert", "pooled_lstm"]},
        {"head.grid": [[9, 9]]},
        {"window.length": CLIP_LENGTH + 1},
        {"data.target": "weight"},
    ]
    wanted = Sweep.model_validate({"sweep": {"name": "s", "jobs": 1}, "entries": tables})
    with pytest.raises(BadInputs) as caught:
        run_sweep(wanted.sweep, sweep_entries(wanted, base), Path("stores/task.h5"))
    for said, part in zip(caught.value.faults, ("no such head", "grid", "no window fits", "weight"), strict=True):
        assert part in said
    assert not list((folder / "runs" / "s").glob("*/"))
    with pytest.raises(StoreError, match="holds other features"):
        run_sweep(wanted.sweep, sweep_entries(wanted, Config()), Path("stores/task.h5"))
    wanted = Sweep.model_validate({"sweep": {"name": "s", "folds": 50}, "entries": [{}]})
    with pytest.raises(BadInputs, match="2 to 20"):
        run_sweep(wanted.sweep, sweep_entries(wanted, base), Path("stores/task.h5"))


def test_two_sweeps_of_one_name_do_not_run_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        exclusive_write_lock(folder / "runs" / "s" / "sweep"),
        pytest.raises(StoreError, match="being written by process"),
    ):
        carried(folder, monkeypatch)


def test_a_wrong_sweep_needs_no_tensorflow(folder: Path) -> None:
    (folder / "sweep.toml").write_text('[[entries]]\n"head.unit" = 3\n')
    script = (
        "import sys; from stage2_temporal.__main__ import main\n"
        "assert main(['sweep', '--config', 'task.toml', '--sweep', 'sweep.toml']) == 2\n"
        "assert main(['sweep', '--config', 'task.toml']) == 2\n"
        "assert 'tensorflow' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    assert "unknown key head.unit" in ended.stderr and "which sweep?" in ended.stderr


@pytest.mark.soak
def test_ctrl_c_keeps_what_is_done(folder: Path) -> None:
    """As a terminal sends it: to the sweep and all its workers."""
    (folder / "sweep.toml").write_text(GOOD.replace("[4]", "[4, 5, 6, 7, 8]"))
    process = begin(folder, "sweep", "--config", "task.toml", "--sweep", "sweep.toml")
    while len(runs(folder)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is kept" in err and "Traceback" not in err
    there = runs(folder)
    assert 3 <= len(there) < 10
    status, _, err = sweep(folder)
    assert status == 0, err
    assert len(runs(folder)) == 10 and there.items() <= runs(folder).items()
    assert not list((folder / "runs" / "s").glob(".unfinished-*"))


@pytest.mark.soak
def test_killed_five_times_it_ends_with_the_same_leaderboard(folder: Path) -> None:
    """SIGKILL for the sweep alone: its workers see to their own end."""
    (folder / "sweep.toml").write_text(GOOD.replace("[4]", "[4, 5, 6, 7, 8, 9]"))
    began = time.monotonic()
    status, _, err = sweep(folder)
    whole = time.monotonic() - began
    assert status == 0, err
    expected = leaderboard(folder)
    (folder / "runs").rename(folder / "uninterrupted")

    moments = random.Random(time.time_ns())
    kept = 0
    for _ in range(5):
        process = begin(folder, "sweep", "--config", "task.toml", "--sweep", "sweep.toml")
        try:
            process.wait(timeout=moments.uniform(0.2, 0.9) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert len(runs(folder)) >= kept
        kept = len(runs(folder))
    status, _, err = sweep(folder)
    assert status == 0, err
    assert leaderboard(folder) == expected
    names = {p.name for p in (folder / "runs" / "s").iterdir() if p.is_dir()}
    assert names == {p.name for p in (folder / "uninterrupted" / "s").iterdir() if p.is_dir()}
