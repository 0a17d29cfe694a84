"""How often intervals of 90 % contain the truth, and how much footage is flagged, over five sets of clips each.

`rendered` are the sample sets of seeds 0 to 4, `photographs` clips made of stills beside this checkout, if any,
and `wide` the wide sample set, whose cameras the runs on the rendered sets do not know. All in percent of test windows.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import framebank as fb
from benchmarks.timing import Row
from features.config import Config, read_config
from framebank.workflows import compared_configs
from stage1_extract.sample import render_sample_set
from stage2_temporal.report.coverage import DISTANCES
from tests.helpers import REAL, ROOT

SEEDS = range(5)
WIDE = 60  # clips with a camera each
STILLS = {"train": 100, "validation": 50, "test": 60}  # in a set of clips made of photographs
HEADS = ("correlation_lstm", "ridge", "box_ridge")  # of those that configs/sample.toml compares
ENDS = ("true", "low", "high")
Predictions = list[dict[str, str]]


def measure() -> list[Row]:
    """A row per kind of clips, head and target."""
    config = read_config(ROOT / "configs" / "sample.toml")
    tables: dict[tuple[str, str], Predictions] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_sample_set(folder / "wide", kind="wide", train=0, validation=0, test=WIDE)
        for seed in SEEDS:
            rendered, made = folder / f"rendered-{seed}", folder / f"photographs-{seed}"
            runs = _train(config.with_settings({"data.path": str(rendered), "data.seed": seed}), rendered)
            for head, run in runs.items():
                tables.setdefault(("rendered", head), []).extend(_test_windows(run / "predictions.csv"))
                output = run / "wide.csv"
                fb.predict(run, folder / "wide", output=output)
                tables.setdefault(("wide", head), []).extend(_rows(output))
            if (REAL / "stills").is_dir():
                _render_stills(made, seed)
                found = {"data.path": str(made), "data.layout": "competition"}
                for head, run in _train(config.with_settings(found), made).items():
                    tables.setdefault(("photographs", head), []).extend(_test_windows(run / "predictions.csv"))
    return [row for (clips, head), windows in tables.items() for row in _coverage(clips, head, windows)]


def _train(config: Config, data: Path) -> Mapping[str, Path]:
    """The runs on a data set by the names of their heads."""
    store, runs = fb.extract(config, data.with_suffix(".h5")), dict[str, Path]()
    for compared in compared_configs(config):
        if (head := compared.head.name) in HEADS:
            runs[head] = fb.train(compared, store, f"{data}-runs/{head}")[0]
    return runs


def _render_stills(data: Path, seed: int) -> None:
    stills = REAL / "stills"
    counts = [argument for split, count in STILLS.items() for argument in (f"--{split}", str(count))]
    tool = [sys.executable, str(REAL.parent / "tools" / "semireal.py"), str(stills), str(stills / "annotation.json")]
    subprocess.run([*tool, str(data), *counts, "--seed", str(seed)], check=True, capture_output=True)


def _rows(path: Path) -> Predictions:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _test_windows(path: Path) -> Predictions:
    return [row for row in _rows(path) if row["split"] == "test"]


def _coverage(clips: str, head: str, windows: Predictions) -> list[Row]:
    """Shares of the windows, as percent; of those far away and near as well where the distance is known."""
    unlike = 100 * np.mean([row["unlike_training"] == "1" for row in windows])
    rows: list[Row] = []
    for target in (name.removesuffix("_low") for name in windows[0] if name.endswith("_low")):
        row: Row = {"clips": clips, "head": head, "target": target, "windows": len(windows), "flagged": unlike}
        known = [w for w in windows if w.get(f"{target}_true")]
        if known:
            true, low, high = (np.array([float(w[f"{target}_{end}"]) for w in known]) for end in ENDS)
            distance = np.array([float(w.get("distance") or "nan") for w in known])
            inside = (low <= true) & (true <= high)
            row["contained"] = 100 * inside.mean()
            for part, start, stop in DISTANCES:
                there = (distance >= start) & (distance < stop)
                if there.any():
                    row[part] = 100 * inside[there].mean()
        rows.append(row)
    return rows
