"""Sweeps that search with Optuna: one study for interrupted and parallel processes, pruned runs, the sweep's page."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from features._common.leftovers import writer_name
from features.config import Config, read_config
from features.errors import BadInputs, ConfigError
from features.store import Store
from features.strict_model import read_toml
from framebank.cli import main
from stage2_temporal.runs.leaderboard import find_pruned
from stage2_temporal.sweep.search import run_search
from stage2_temporal.sweep.spec import Sweep, search_spaces
from stage2_temporal.sweep.study import SweepStudy, TrialRecord
from tests.helpers import ROOT, write_store
from tests.stage2_helpers import CLIP_LENGTH, RECIPE_SECTIONS, drifting_clips

pytest.importorskip("optuna")

TASK = f"""{RECIPE_SECTIONS}[window]
length = {CLIP_LENGTH}
[head]
difference = true
dense = 0
units = 4
[train]
epochs = 3
batch = 8
"""
SEARCH = """
[sweep]
name = "s"
search = "optuna"
pruner = "none"
jobs = 1
reports = 0
[[entries]]
draws = 6
"train.learning_rate" = { low = 1e-4, high = 0.1, log = true }
"head.grid" = [[1, 1], [3, 4]]
"""
COMMAND = ["sweep", "--config", "task.toml", "--sweep", "sweep.toml"]
RATE = {"low": 1e-4, "high": 0.1, "log": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    maps, sequences = drifting_clips({"train": 14, "validation": 6, "test": 6})
    return write_store(tmp_path_factory.mktemp("store") / "task.h5", sequences, {"appearance": maps})


@pytest.fixture
def folder(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it has a store, a config and a sweep."""
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "task.h5").hardlink_to(store)
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "sweep.toml").write_text(SEARCH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts(*entries: dict[str, Any], **plan: Any) -> tuple[Sweep, Config]:
    settings = {"name": "s", "search": "optuna", "jobs": 1, "pruner": "none", "reports": 0}
    return Sweep.model_validate({"sweep": settings | plan, "entries": list(entries)}), read_config("task.toml")


def study(*entries: dict[str, Any], **more: Any) -> SweepStudy:
    sweep, base = parts(*entries)
    return SweepStudy(Path("runs/s"), sweep.sweep, search_spaces(sweep, base), base, **more)


def records(folder: Path) -> list[TrialRecord]:
    """The trials of the folder's sweep."""
    sweep, base = read_toml(Sweep, folder / "sweep.toml"), read_config(folder / "task.toml")
    with Store(folder / "stores" / "task.h5") as opened:
        return SweepStudy(
            folder / "runs" / "s", sweep.sweep, search_spaces(sweep, base), base, opened.fingerprint
        ).records()


def test_search_learns_and_shows_pruned_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SEARCH.replace('"none"', '"median"').replace("draws = 6", "draws = 9").replace("low = 1e-4", "low = 1e-6")
    (folder / "sweep.toml").write_text(text.replace("reports = 0", "reports = 1"))
    assert main(COMMAND) == 0
    printed = capsys.readouterr()
    assert "9/9 trial" in printed.err
    trials = records(folder)
    assert [t.number for t in trials] == list(range(9))
    pruned = [t for t in trials if t.state == "pruned"]
    assert pruned and {t.state for t in trials} == {"complete", "pruned"}
    with (folder / "runs" / "s" / "leaderboard.csv").open(newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["split"] == "validation"]
    assert [r["run"] for r in rows if r["pruned_epoch"]] == [
        t.runs[0] for t in sorted(pruned, key=lambda t: (-t.skill, t.runs))
    ]
    line = next(line for line in printed.out.splitlines() if pruned[0].runs[0] in line)
    assert line.split()[0] == "pruned" and "stopped after epoch" in line
    assert len(find_pruned(folder / "runs")[0]) == len(pruned)
    best = max(t.skill for t in trials if t.state == "complete")
    assert float(rows[0]["skill"]) == pytest.approx(best)
    page = (folder / "runs" / "s" / "leaderboard.html").read_text()
    assert "Which settings matter" in page and "train.learning_rate" in page

    modified = {p: p.stat().st_mtime_ns for p in (folder / "runs" / "s").glob("*/*.json")}
    assert main(COMMAND) == 0  # nothing is left to do
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs" / "s").glob("*/*.json")} == modified


def test_trial_of_a_process_that_ended_is_continued(folder: Path) -> None:
    entry = {"draws": 4, "train.learning_rate": RATE}
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    host, _, random_part = writer_name().rsplit("-", 2)
    first = study(entry, writer=f"{host}-{int(ended.stdout)}-{random_part}").claim()
    own = study(entry)
    again, second = own.claim(), own.claim()
    assert first is not None and again is not None and second is not None
    assert (again.number, again.runs) == (first.number, first.runs)
    assert second.number == 1 and second.name != first.name
    other = study(entry)  # a second process at the same time
    third = other.claim()
    assert third is not None and third.number == 2
    own.release()
    assert [t.number for t in (other.claim(), other.claim(), other.claim()) if t] == [0, 1, 3]


def test_what_a_trial_tries_does_not_depend_on_interruptions(folder: Path) -> None:
    def search(name: str, *, interrupted: bool) -> list[Any]:
        entry = {"draws": 8, "train.learning_rate": RATE, "head.units": {"low": 4, "high": 64}}
        sweep, base = parts(entry, name=name)
        settings = []
        current = SweepStudy(Path("runs") / name, sweep.sweep, search_spaces(sweep, base), base)
        while trial := current.claim():
            settings.append(trial.runs[f"{trial.name}-seed0"])
            current.tell(trial.number, -abs(settings[-1].train.learning_rate - 0.01), "complete")
            if interrupted:
                current = SweepStudy(Path("runs") / name, sweep.sweep, search_spaces(sweep, base), base)
        return settings

    assert search("a", interrupted=False) == search("b", interrupted=True)


def test_settings_are_not_tried_twice(folder: Path) -> None:
    current = study(
        {"draws": 50, "head.units": [4, 5, 6]},
    )
    names = []
    while trial := current.claim():
        names.append(trial.name)
        current.tell(trial.number, 0.5, "complete")
    assert len(names) == len(set(names)) == 3
    assert [r.state for r in current.records()] == ["complete"] * 3


def test_entries_are_searched_together(folder: Path) -> None:
    current = study(
        {"draws": 8, "head.name": "gru", "train.learning_rate": RATE}, {"head.name": ["ridge"], "head.alpha": [1, 2]}
    )
    heads = set()
    while trial := current.claim():
        heads |= {config.head.name for config in trial.runs.values()}
        current.tell(trial.number, 0.5, "complete")
    assert heads == {"gru", "ridge"}
    assert {len(r.parameters) for r in current.records()} == {2}


def test_failed_trial_is_replaced_by_the_next_call(folder: Path) -> None:
    entry = {"draws": 2, "train.learning_rate": {"low": 1e14, "high": 1e15}, "train.weight_decay": 1e12}
    sweep, base = parts(entry)
    spaces = search_spaces(sweep, base)
    result = run_search(sweep.sweep, spaces, base, Path("stores/task.h5"))
    assert len(result.failed) == 2 and "loss became NaN" in result.failed[0]
    assert (result.names, result.remaining) == ((), 0)
    again = run_search(sweep.sweep, spaces, base, Path("stores/task.h5"))
    assert len(again.failed) == 2 and set(again.failed) != set(result.failed)


def test_wrong_searches_are_refused(folder: Path) -> None:
    with pytest.raises(BadInputs, match="number of draws"):
        search_spaces(*parts({"train.learning_rate": RATE}))
    with pytest.raises(BadInputs, match=r"data.target cannot vary"):
        search_spaces(*parts({"data.target": ["ego_speed", "vx"]}))
    with pytest.raises(BadInputs, match=r"head\.unit"):
        search_spaces(*parts({"head.unit": [1, 2]}))
    assert study({"draws": 2, "train.learning_rate": RATE}).claim() is not None
    with pytest.raises(ConfigError, match="a search over other settings"):
        study({"draws": 2, "head.units": [4, 5]}).claim()
    sweep, base = parts({"head.grid": [[1, 1], [9, 9]]}, name="grids")
    with pytest.raises(BadInputs, match="grid"):
        run_search(sweep.sweep, search_spaces(sweep, base), base, Path("stores/task.h5"))


def test_time_limits_a_search(folder: Path) -> None:
    sweep, base = parts({"train.learning_rate": RATE}, minutes=1e-6)
    result = run_search(sweep.sweep, search_spaces(sweep, base), base, Path("stores/task.h5"))
    assert (result.names, result.remaining) == ((), 0)


@pytest.mark.soak
def test_search_killed_at_five_moments_goes_on_with_the_same_study(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SEARCH.replace("draws = 6", "draws = 9").replace('"none"', '"median"'))
    started = time.monotonic()
    start(folder).wait()
    duration = time.monotonic() - started
    expected = records(folder)
    assert len(expected) == 9
    (folder / "runs").rename(folder / "uninterrupted")
    moments = random.Random(time.time_ns())
    count = 0
    for _ in range(5):
        process = start(folder)
        try:
            process.wait(timeout=moments.uniform(0.3, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.wait()
        done = sum(r.state in ("complete", "pruned") for r in records(folder)) if (folder / "runs").exists() else 0
        assert done >= count
        count = done
    assert start(folder).wait() == 0
    assert records(folder) == expected


@pytest.mark.soak
def test_two_searches_at_once_share_the_study(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SEARCH.replace("draws = 6", "draws = 10").replace("jobs = 1", "jobs = 2"))
    processes = [start(folder), start(folder)]
    assert [p.wait() for p in processes] == [0, 0]
    trials = records(folder)
    assert len(trials) == 10 and {t.state for t in trials} == {"complete"}
    assert len(list((folder / "runs" / "s").glob("*/metrics.json"))) == 10


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the sweep in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "framebank", *COMMAND]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment, **quiet)
