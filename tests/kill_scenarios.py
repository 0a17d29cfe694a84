"""The commands that are killed, and what they work on."""

from __future__ import annotations

import shutil
from pathlib import Path

from features.store_writer import unpack_store
from tests.helpers import flip
from tests.kill_helpers import STORE, Scenario

SWEEP = """
[sweep]
name = "s"
jobs = {jobs}
reports = 1
[[entries]]
"head.name" = "ridge"
"head.alpha" = [1.0, 10.0]
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


def unpacked(folder: Path) -> None:
    unpack_store(folder / STORE)


def damaged(folder: Path) -> None:
    flip(folder / STORE, "appearance", 3)


CONFIG = ["--config", "task.toml"]
SWEEP_COMMAND = ["sweep", *CONFIG, "--sweep", "sweep.toml"]
PREDICT = ["predict", "--run", "r", "--output", "predicted.csv", "--level", "0.5"]
SCENARIOS = {
    "render": Scenario(["render", "sample"], ("sample",), next=("extract", *CONFIG, "--data.path", "./clips")),
    "extract": Scenario(["extract", *CONFIG], (STORE,), nothing_extracted, ("extract", *CONFIG, "--dry_run", "true")),
    "extract more": Scenario(["extract", *CONFIG, "--extract.motion", "true"], (STORE,)),
    "repair": Scenario(["repair", *CONFIG], (), damaged),
    "derive": Scenario(["derive", "--store", STORE, "--stream", "grid1x2"], (STORE,)),
    "unpack": Scenario(["unpack", "--store", STORE], (STORE,)),
    "pack": Scenario(["pack", "--store", STORE], (STORE,), unpacked),
    "train": Scenario(["train", *CONFIG, "--run", "r", "--train.seed", "3"], ("runs/r",), next=("leaderboard",)),
    "sweep": Scenario(SWEEP_COMMAND, (), next=tuple(SWEEP_COMMAND)),  # others do not use its folder
    "finetune": Scenario(
        ["finetune", "--run", "r", "--finetune.epochs", "2", "--finetune.unfreeze", "4"],
        ("runs/r",),
        next=("report", "--run", "r"),
    ),
    "predict": Scenario(PREDICT, ("predicted.csv",), next=tuple(PREDICT)),  # others do not use its folder
    "export": Scenario(
        ["export", "--run", "r", "--format", "saved_model"], ("runs/r/export",), next=("report", "--run", "r")
    ),
    "evaluate": Scenario(["evaluate", "--run", "r"], ("runs/r",), next=("leaderboard",)),
    "report": Scenario(["report", "--run", "r"], ("runs/r",), next=("leaderboard",)),
    "leaderboard": Scenario(
        ["leaderboard"], ("runs/leaderboard.csv", "runs/leaderboard.html"), next=("report", "--run", "r")
    ),
}
