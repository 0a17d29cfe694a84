"""What a run writes beside its model: history.csv, predictions.csv, submission.csv, and the table in the terminal."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.sequences import FrameSequence
from features.windows import Examples


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv: losses in the units trained on, RMSE in the target's; NaN without validation."""

    epoch: int
    loss: float
    rmse: float
    val_loss: float
    val_rmse: float
    seconds: float


def write_history(path: Path, history: Iterable[Epoch]) -> None:
    """One row an epoch."""
    names = [f.name for f in fields(Epoch)]
    write_csv(path, names, ([cell(v) for v in asdict(row).values()] for row in history))


def write_predictions(
    path: Path,
    examples: Examples,
    splits: NDArray[np.str_],
    predicted: Floats,
    sequences: Sequence[FrameSequence],
    stride: int,
) -> None:
    """One row an example: where it lies, its targets and predictions in their unit, the vehicle's distance in m."""
    values = [f"{c}_{kind}" for c in examples.columns for kind in ("true", "pred")]
    rows = (
        [
            splits[i],
            sequences[examples.sequence[i]].id,
            examples.label[i],
            examples.frame[i],
            examples.start[i],
            stride,
            examples.rows.shape[1],
            *(cell(v) for pair in zip(examples.targets[i], predicted[i], strict=True) for v in pair),
            cell(examples.position[i, 0]),
        ]
        for i in range(len(examples))
    )
    names = ["split", "sequence", "label", "frame", "first", "stride", "length", *values, "distance"]
    write_csv(path, names, rows)


def write_submission(path: Path, ids: Sequence[str], velocity: Floats) -> None:
    """The competition's `ID,speed` in numeric order: speed = √(vx² + vy²) of each clip's first prediction.

    Args:
        ids: n sequence ids that end in the clip's number, `Test/12`.
        velocity: (n, 2) vx, vy in m/s.
    """
    speeds: dict[int, float] = {}
    for name, (vx, vy) in zip(ids, velocity.tolist(), strict=True):
        number = re.search(r"(\d+)$", name)
        if number:
            speeds.setdefault(int(number[1]), math.hypot(vx, vy))
    write_csv(path, ["ID", "speed"], ([k, cell(v)] for k, v in sorted(speeds.items())))


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """The model beside the constant predictor on each split, and the verdict; `metrics` as in metrics.json."""
    unit = f" [{metrics['unit']}]" if metrics["unit"] else ""
    errors = [k for k in ("ev", "ep") if any(part["model"].get(k) for part in metrics["splits"].values())]
    head = ["split", "examples", "", f"RMSE{unit}", f"MAE{unit}", "skill", "spread ratio"]
    head += [f"{k.upper()}: near medium far" for k in errors]
    rows = [head]
    units = metrics.get("units", [])
    mixed = len(set(units)) > 1
    for split, part in metrics["splits"].items():
        for who in ("model", "constant"):
            lead = [split, f"{part['examples']:,}"] if who == "model" else ["", ""]
            # errors of different units have no sum
            figures = ["–", "–", *_figures(part[who])[2:]] if mixed else _figures(part[who])
            rows.append([*lead, who, *figures, *(_by_distance(part[who].get(k)) for k in errors)])
        for column, measure in zip(metrics["target"], units, strict=True) if mixed else ():
            for who in ("model", "constant"):
                name = f"  {column} [{measure}]" if measure else f"  {column}"
                lead = [name if who == "model" else "", ""]
                rows.append([*lead, who, *_figures(part[who]["components"][column]), *("" for _ in errors)])
    return "\n".join(["", aligned(rows, left=(0, 2)), "", metrics["verdict"]])


def aligned(rows: Sequence[Sequence[str]], left: Iterable[int]) -> str:
    """Rows of cells as lines with straight columns, those in `left` to the left, the others to the right."""
    left = tuple(left)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _figures(scores: Mapping[str, Any]) -> list[str]:
    return [_shown(scores[k]) for k in ("rmse", "mae", "skill", "spread_ratio")]


def _by_distance(error: Mapping[str, float | None] | None) -> str:
    """TuSimple's mean, and the three it is the mean of."""
    return f"{_shown(error['mean'])}: " + " ".join(_shown(error[k]) for k in ("near", "medium", "far")) if error else ""


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def cell(value: float | int | np.floating[Any]) -> str:
    """A number that reads back to itself; empty where unknown."""
    if isinstance(value, int):
        return str(value)
    return repr(float(value)) if math.isfinite(value) else ""


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV with a header."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
