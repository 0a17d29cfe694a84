"""Every command killed again and again, at system calls and at random moments: the table of kills."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_helpers import AT_CALLS, KILL, Fault, Faults, fault_server
from tests.helpers import flip, write_clips
from tests.image_runs import image_config
from tests.kill_helpers import STORE, Scenario, Undisturbed

SWEEP = """
[sweep]
name = "s"
jobs = {jobs}
reports = 1
[[entries]]
"head.name" = "ridge"
"head.penalties" = [[1.0], [10.0]]
"""
BASE = (
    ["extract", "--config", "task.toml"],
    ["train", "--config", "task.toml", "--run", "r"],
    ["finetune", "--run", "r", "--finetune.epochs", "1", "--finetune.unfreeze", "4"],
    ["export", "--run", "r", "--format", "onnx", "saved_model"],
    ["predict", "--run", "r", "--output", "predicted.csv"],
    ["leaderboard"],
)


def nothing_extracted(folder: Path) -> None:
    shutil.rmtree(folder / "stores")


def damaged(folder: Path) -> None:
    flip(folder / STORE, "appearance", 3)


CONFIG = ["--config", "task.toml"]
SCENARIOS = {
    "render": Scenario(["render", "sample"], ("sample",), next=("extract", *CONFIG, "--data.path", "./clips")),
    "extract": Scenario(["extract", *CONFIG], (STORE,), nothing_extracted, ("leaderboard",)),
    "extract more": Scenario(["extract", *CONFIG, "--extract.motion", "true"], (STORE,)),
    "repair": Scenario(["repair", *CONFIG], (), damaged),
    "derive": Scenario(["derive", "--store", STORE, "--stream", "grid1x2"], (STORE,)),
    "unpack": Scenario(["unpack", "--store", STORE], (STORE,)),
    "train": Scenario(["train", *CONFIG, "--run", "r", "--train.seed", "3"], ("runs/r",), next=("leaderboard",)),
    "sweep": Scenario(["sweep", *CONFIG, "--sweep", "sweep.toml"], (), next=("leaderboard",)),
    "finetune": Scenario(
        ["finetune", "--run", "r", "--finetune.epochs", "2", "--finetune.unfreeze", "4"],
        ("runs/r",),
        next=("report", "--run", "r"),
    ),
    "predict": Scenario(
        ["predict", "--run", "r", "--output", "predicted.csv", "--level", "0.5"],
        ("predicted.csv",),
        next=("info", *CONFIG),
    ),
    "export": Scenario(
        ["export", "--run", "r", "--format", "onnx", "saved_model"], ("runs/r/export",), next=("report", "--run", "r")
    ),
    "evaluate": Scenario(["evaluate", "--run", "r"], ("runs/r",), next=("leaderboard",)),
    "report": Scenario(["report", "--run", "r"], ("runs/r",), next=("leaderboard",)),
    "leaderboard": Scenario(
        ["leaderboard"], ("runs/leaderboard.csv", "runs/leaderboard.html"), next=("report", "--run", "r")
    ),
}


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A server with all libraries."""
    with fault_server(tmp_path_factory.mktemp("heavy"), "tensorflow") as faults:
        yield faults


@pytest.fixture(scope="module")
def base(heavy: Faults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, a store, and a run that was fine-tuned, exported and used for a prediction."""
    folder = tmp_path_factory.mktemp("base")
    write_clips(folder / "clips", {"Train": 4, "Validation": 2, "Test": 2}, frames=4)
    extract = {"dtype": "float32", "engine": "tensorflow", "shard": 8, "threads": 2}
    config = image_config(Path("clips"), extract=extract, train={"epochs": 1, "batch": 4})
    (folder / "task.toml").write_text(config.to_toml())
    (folder / "sweep.toml").write_text(SWEEP.format(jobs=1))
    for arguments in BASE:
        ended = heavy.run(folder, arguments)
        assert ended.status == 0, ended.text
    return folder


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_commands_killed_two_hundred_times_lose_nothing(heavy: Faults, base: Path, tmp_path: Path) -> None:
    """Sixty times at a system call, otherwise at random moments; prints the number of kills of each command."""
    rng, kills = random.Random(17), dict[str, Counter[str]]()
    for name, scenario in SCENARIOS.items():
        counts = kills[name] = Counter[str]()
        undisturbed = Undisturbed(heavy, scenario, base, tmp_path / name)
        calls = range(1, undisturbed.calls + 1)
        for at in rng.sample(calls, min(len(calls), 5)):
            counts["at a system call"] += undisturbed.kill(Fault(AT_CALLS, at, KILL), other_first=at % 2 == 0)
        while counts["at a random moment"] < 10:
            moment = rng.uniform(0, undisturbed.seconds)
            counts["at a random moment"] += undisturbed.kill(None, moment, other_first=rng.random() < 0.5)
        print(f"| {name} | {counts['at a system call']} | {counts['at a random moment']} |", flush=True)
        shutil.rmtree(tmp_path / name)
    assert sum(c["at a system call"] for c in kills.values()) >= 60
    assert sum(sum(c.values()) for c in kills.values()) >= 200
