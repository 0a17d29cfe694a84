"""Run folders for the leaderboard, made up without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from features.config import Config


def write_run(path: Path, skill: float = 0.5, *, labels: str = "a", report: bool = False, **sections: Any) -> Path:
    """A run's folder with the files that the leaderboard reads; the constant's RMSE on validation is 4 + fold."""
    config = Config.model_validate(sections)
    fold = config.train.fold
    constant = {"validation": 4.0 + fold, "test": 5.0}

    def scores(rmse: float, skill: float, spread: float) -> dict[str, Any]:
        values: dict[str, Any] = {"rmse": rmse, "mae": rmse / 2, "skill": skill, "spread_ratio": spread}
        values["components"] = {}
        if config.data.columns == ("vx", "vy"):
            values["ev"] = {"near": 1.0, "medium": 2.0, "far": 3.0, "mean": rmse}
        return values

    def split(name: str, model_skill: float) -> dict[str, Any]:
        rmse = constant[name]
        return {
            "examples": 20,
            "model": scores(rmse * (1 - model_skill) ** 0.5, model_skill, 0.8),
            "constant": scores(rmse, 0.0, 0.0),
        }

    path.mkdir(parents=True)
    (path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    metrics = {
        "target": config.data.columns,
        "unit": "m/s",
        "head": config.head.name,
        "backbone": "Tiny",
        "weights": "random",
        "trained_backbone": False,
        "parameters": {"total": 12_345, "trainable": 1_234, "frozen": 11_111},
        "epochs": 3,
        "best_epoch": 2,
        "seconds": 2.0 + fold,
        "store": {"path": "s.h5", "fingerprint": "f", "frames": 1, "sequences": 1},
        "splits": {"train": split("validation", 0.99), "validation": split("validation", skill)}
        | {"test": split("test", skill - 0.1)},
        "verdict": "",
        "no_better_than_constant": False,
        "labels": labels,
    }
    (path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    if report:
        (path / "report.html").write_text("<title>report</title>", encoding="utf-8")
    return path


def write_runs(root: Path) -> Path:
    """Four single runs, one of them of another target, and a sweep of three settings on two folds."""
    write_run(root / "good", 0.8, report=True)
    write_run(root / "bad & <b>worse</b>", -0.3, head={"units": 8})
    write_run(root / "middling", 0.4, head={"name": "flatten_lstm"}, train={"seed": 3})
    write_run(root / "velocity", 0.1, data={"target": "velocity"})
    for units, skill in ((16, 0.6), (32, 0.7), (64, 0.65)):
        for fold in range(2):
            train = {"folds": 2, "fold": fold, "learning_rate": units / 1000}
            write_run(
                root / "sweep" / f"{units}-{fold}",
                skill + 0.1 * fold,
                head={"units": units},
                train=train,
                report=units == 32 and fold == 1,
            )
    (root / "sweep" / "failed").mkdir()
    (root / "sweep" / ".unfinished-x" / "16-0").mkdir(parents=True)
    (root / "sweep" / ".unfinished-x" / "16-0" / "metrics.json").write_text("{")
    return root
