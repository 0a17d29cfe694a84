"""Sweeps on a small real store: with several processes, repeated, in part, interrupted and killed."""

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

from features._common.atomic import exclusive_write_lock
from features.config import Config, read_config
from features.errors import BadInputs, StoreError
from features.store import Store
from framebank.cli import main
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.sweep.runner import SweepResult, run_sweep
from stage2_temporal.sweep.spec import Sweep, sweep_entries
from stage2_temporal.train import evaluate
from tests.helpers import ROOT, write_store
from tests.stage2_helpers import CLIP_LENGTH, RECIPE_SECTIONS, drifting_clips

TASK = f"""{RECIPE_SECTIONS}[window]
length = {CLIP_LENGTH}
[head]
difference = true
dense = 0
[train]
epochs = 3
batch = 8
"""
GOOD_ENTRY = """
[sweep]
name = "s"
folds = 2
jobs = 2
reports = 1
[[entries]]
"head.units" = [4]
"train.learning_rate" = [0.01]
"""
FAILING_ENTRY = """
[[entries]]
"head.units" = 5
"train.learning_rate" = 1e15
"train.weight_decay" = 1e12
"""
COMMAND = ["sweep", "--config", "task.toml", "--sweep", "sweep.toml"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it has a store, a config and a sweep."""
    maps, sequences = drifting_clips({"train": 14, "validation": 6, "test": 6})
    (tmp_path / "stores").mkdir()
    write_store(tmp_path / "stores" / "task.h5", sequences, {"appearance": maps})
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "sweep.toml").write_text(GOOD_ENTRY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(folder: Path, *arguments: str, threads: int = 0) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a terminal does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_NUM_INTRAOP_THREADS": str(threads)}
    return subprocess.Popen(
        [sys.executable, "-m", "framebank", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # a shell's background job ignores Ctrl-C, and so does all that it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def sweep_in_process(folder: Path, entry: dict[str, object] | None = None, **plan: object) -> SweepResult:
    """Run a sweep with one job in this process."""
    small_heads = {"head.name": "ridge", "head.alpha": [1, 2, 3]}
    sweep = Sweep.model_validate({"sweep": {"name": "s", "jobs": 1, **plan}, "entries": [entry or small_heads]})
    return run_sweep(sweep.sweep, sweep_entries(sweep, read_config(folder / "task.toml")), Path("stores/task.h5"))


def leaderboard(folder: Path) -> list[dict[str, str]]:
    """All that the leaderboard's CSV says, except training times and links."""
    with (folder / "runs" / "s" / "leaderboard.csv").open(newline="", encoding="utf-8") as f:
        return [{k: v for k, v in row.items() if k not in ("seconds", "report")} for row in csv.DictReader(f)]


def finished_runs(folder: Path) -> dict[str, int]:
    """The inode of each finished run's model, which changes if it is trained again."""
    return {p.parent.name: p.stat().st_ino for p in (folder / "runs" / "s").glob("*/model.keras")}


def test_failed_runs_are_recorded_and_the_others_finish(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sweep.toml").write_text(GOOD_ENTRY + FAILING_ENTRY)
    assert main(COMMAND) == 2
    printed = capsys.readouterr()
    *_, first, second, last = printed.err.splitlines()
    assert "s/pooled_lstm-" in first and "loss" in first and "fold1" in second
    assert "2 of 4 runs failed" in last
    assert "4/4 run" in printed.err and "best skill" in printed.err and "(constant " in printed.err
    assert "on the validation split (2 folds, 20 examples)" in printed.out
    assert printed.out.splitlines()[-1] == "runs/s/leaderboard.html"
    runs = finished_runs(folder)
    assert len(runs) == 2
    errors = sorted((folder / "runs" / "s").glob("*/error.json"))
    assert len(errors) == 2
    assert "loss" in json.loads(errors[0].read_text())["error"]
    assert {p.name for p in errors[0].parent.iterdir()} == {"config.toml", "error.json"}
    reports = list((folder / "runs" / "s").glob("*/report.html"))
    assert [p.parent.name for p in reports] == [leaderboard(folder)[0]["run"]]

    (folder / "sweep.toml").write_text(GOOD_ENTRY)
    assert main(COMMAND) == 0
    assert finished_runs(folder) == runs  # nothing was trained again


def test_sweep_continues_after_its_time_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sweep_in_process(folder, minutes=1e-6)
    assert (result.names, result.failed, result.remaining) == ((), (), 3)
    result = sweep_in_process(folder, seeds=[7], limit=2, reports=0)
    assert result.failed == ()
    assert (len(result.names), result.remaining) == (2, 0)
    assert capsys.readouterr().out == ""
    runs = finished_runs(folder)
    assert set(runs) == set(result.names)
    result = sweep_in_process(folder, seeds=[7], reports=2)
    assert len(result.names) == 3 and set(runs.items()) < set(finished_runs(folder).items())
    assert len(list((folder / "runs").glob("s/*/report.html"))) == 2


def test_auto_is_replaced_by_a_head(folder: Path) -> None:
    entry = {"head.name": "auto", "train.epochs": 1}
    result = sweep_in_process(folder, entry, reports=0)
    assert result.names[0].startswith("auto-")
    assert read_config(result.folder / result.names[0] / "config.toml").head.name == "ridge"
    runs = finished_runs(folder)
    assert sweep_in_process(folder, entry, reports=0) == result
    assert finished_runs(folder) == runs


def test_fold_can_be_evaluated_like_any_run(folder: Path) -> None:
    result = sweep_in_process(folder, {"head.name": "ridge"}, folds=2, reports=0)
    first, second = (result.folder / name for name in result.names)
    metrics = read_metrics(second)
    assert metrics.splits["validation"].examples == metrics.splits["train"].examples == 10
    assert metrics.splits["test"].examples == 6
    with Store("stores/task.h5") as store:
        evaluated = evaluate(second, store)
    assert evaluated == read_metrics(second) == metrics
    assert (second / "report.html").is_file()
    assert read_metrics(first).labels == metrics.labels


def test_entries_that_do_not_fit_the_store_are_reported_before_training(folder: Path) -> None:
    base = read_config(folder / "task.toml")
    entries = [
        {"head.grid": [[9, 9]]},
        {"window.length": CLIP_LENGTH + 1},
        {"data.target": "weight"},
    ]
    sweep = Sweep.model_validate({"sweep": {"name": "s", "jobs": 1}, "entries": entries})
    with pytest.raises(BadInputs) as caught:
        run_sweep(sweep.sweep, sweep_entries(sweep, base), Path("stores/task.h5"))
    for error, part in zip(caught.value.faults, ("grid", "no window fits", "weight"), strict=True):
        assert part in error
    assert not list((folder / "runs" / "s").glob("*/"))
    with pytest.raises(StoreError):
        run_sweep(sweep.sweep, sweep_entries(sweep, Config()), Path("stores/task.h5"))
    with pytest.raises(BadInputs, match="2 to 20"):
        sweep_in_process(folder, {"head.units": 4}, folds=50)


def test_two_sweeps_of_one_name_cannot_run_at_once(folder: Path) -> None:
    with exclusive_write_lock(folder / "runs" / "s" / "sweep"), pytest.raises(StoreError, match="process"):
        sweep_in_process(folder)


def test_error_in_the_sweep_file_is_found_without_tensorflow(folder: Path) -> None:
    (folder / "sweep.toml").write_text('[[entries]]\n"head.unit" = 3\n')
    script = (
        f"import sys; from framebank.cli import main; assert main({COMMAND}) == 2; assert 'keras' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    assert "unknown key head.unit" in process.stderr


@pytest.mark.soak
def test_run_trained_alone_repeats_the_sweeps_numbers(folder: Path) -> None:
    """With the threads of one of two workers."""
    assert main(COMMAND) == 0
    name = next(name for name in finished_runs(folder) if name.endswith("fold1"))
    config = ["--config", f"runs/s/{name}/config.toml", "--store", "stores/task.h5", "--run", "alone"]
    process = start(folder, "train", *config, threads=max(1, len(os.sched_getaffinity(0)) // 2))
    _, err = process.communicate()
    assert process.returncode == 0, err
    first, second = ((folder / "runs" / run / "predictions.csv").read_bytes() for run in (f"s/{name}", "alone"))
    assert first == second


@pytest.mark.soak
def test_ctrl_c_keeps_finished_runs(folder: Path) -> None:
    """A terminal sends the signal to the sweep and to all its workers."""
    (folder / "sweep.toml").write_text(GOOD_ENTRY.replace("[4]", "[4, 5, 6, 7, 8]"))
    process = start(folder, *COMMAND)
    while len(finished_runs(folder)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Interrupted" in err and "Traceback" not in err
    runs = finished_runs(folder)
    assert 3 <= len(runs) < 10
    assert main(COMMAND) == 0
    assert len(finished_runs(folder)) == 10 and runs.items() <= finished_runs(folder).items()
    assert not list((folder / "runs" / "s").glob(".unfinished-*"))


@pytest.mark.soak
def test_killed_sweep_continues_to_the_same_leaderboard(folder: Path) -> None:
    """SIGKILL goes to the sweep alone; its workers end by themselves."""
    (folder / "sweep.toml").write_text(GOOD_ENTRY.replace("[4]", "[4, 5, 6, 7, 8, 9]"))
    started = time.monotonic()
    assert main(COMMAND) == 0
    duration = time.monotonic() - started
    expected = leaderboard(folder)
    (folder / "runs").rename(folder / "uninterrupted")

    moments = random.Random(time.time_ns())
    count = 0
    for _ in range(5):
        process = start(folder, *COMMAND)
        try:
            process.wait(timeout=moments.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert len(finished_runs(folder)) >= count
        count = len(finished_runs(folder))
    assert main(COMMAND) == 0
    assert leaderboard(folder) == expected
    names = {p.name for p in (folder / "runs" / "s").iterdir() if p.is_dir()}
    assert names == {p.name for p in (folder / "uninterrupted" / "s").iterdir() if p.is_dir()}
