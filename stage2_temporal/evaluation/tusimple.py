"""The yardstick of the TuSimple velocity benchmark: EV and EP. Pure numpy.

For each annotated vehicle the predicted one with the nearest box answers; squared errors, summed over x and y, are
averaged among the near (< 20 m), the medium (< 45 m) and the far, by the length of the annotated position, and EV and
EP are the mean of the three (github.com/TuSimple/tusimple-benchmark, evaluate/velocity.py). A predictor that answers
(0, 0) has EV 5.09 on the public labels of its test part: near 2.00, medium 4.76, far 8.52.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features._common.types import Floats
from features.errors import DataError
from features.sequences import FrameSequence
from features.windows import Examples

DISTANCE_EDGES = (20.0, 45.0)  # metres between near, medium and far
MATCH = 10.0  # px over a box's four sides: how far off a predicted vehicle's box may be
BANDS = ("near", "medium", "far", "mean")


@dataclass(frozen=True)
class ByDistance:
    """Mean squared error, summed over x and y: (m/s)² for EV, m² for EP.

    Attributes:
        near, medium, far: under 20 m, 20 to 45 m, from 45 m on; NaN where no vehicle is that far.
        mean: mean of the three; NaN where one of them is.
    """

    near: float
    medium: float
    far: float
    mean: float


@dataclass(frozen=True)
class Benchmark:
    """EV, and EP where positions were predicted."""

    ev: ByDistance
    ep: ByDistance | None


def by_distance(error: Floats, position: Floats) -> ByDistance | None:
    """Errors (n, 2) of vehicles at positions (n, 2) in metres; None where no position is known.

    Vehicles of unknown position are left out.
    """
    squared, distance = (error**2).sum(axis=1), np.hypot(position[:, 0], position[:, 1])
    if not np.isfinite(distance).any():
        return None
    band = np.where(np.isfinite(distance), np.searchsorted(DISTANCE_EDGES, distance, side="right"), -1)
    near, medium, far = (float(squared[band == i].mean()) if (band == i).any() else math.nan for i in range(3))
    return ByDistance(near, medium, far, (near + medium + far) / 3)


def evaluate_tusimple(predicted: object, truth: object) -> Benchmark:
    """EV and EP of predictions, both in the benchmark's form: one list of vehicles for each clip, clips in one order.

    A vehicle is `{"bbox": {"top": …, "left": …, "bottom": …, "right": …}, "velocity": [vx, vy], "position": [x, y]}`.
    Within a clip their order is free.

    Raises:
        DataError: not of that form, not as many clips, or an annotated vehicle that no predicted one is near to.
    """
    clips, answers = _clips(predicted, "the predictions"), _clips(truth, "the truth")
    if len(clips) != len(answers):
        raise DataError("the predictions are of other clips", expected=f"{len(answers)} clips", got=len(clips))
    matched: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for index, (vehicles, wanted) in enumerate(zip(clips, answers, strict=True)):
        matched += [(_nearest(vehicle, vehicles, index), vehicle) for vehicle in wanted]
    if not matched:
        raise DataError("the truth has no vehicle", expected="a list of vehicles for each clip")
    position = _pairs((true for _, true in matched), "position")
    velocity = _pairs((answer for answer, _ in matched), "velocity")
    ev = by_distance(velocity - _pairs((true for _, true in matched), "velocity"), position)
    assert ev is not None  # every position is known
    if not any("position" in answer for answer, _ in matched):
        return Benchmark(ev, None)
    return Benchmark(ev, by_distance(_pairs((answer for answer, _ in matched), "position") - position, position))


def still(truth: object) -> list[list[dict[str, Any]]]:
    """What a predictor answers to which nothing moves: the annotated boxes with velocity (0, 0)."""
    return [[{"bbox": v["bbox"], "velocity": [0.0, 0.0]} for v in clip] for clip in _clips(truth, "the truth")]


def submission(
    examples: Examples, predicted: Floats, sequences: Sequence[FrameSequence], split: str = "test"
) -> list[list[dict[str, Any]]]:
    """Predictions in the benchmark's form: an entry for each clip of the split, in numeric order.

    A vehicle has the box that it was asked for by; those without one are left out, and position is left out where it
    was not predicted.

    Args:
        examples: of any splits.
        predicted: (n, K) for `examples.columns`, `vx` and `vy` among them.
        sequences: all sequences of the data set.
    """
    clips: dict[int, list[dict[str, Any]]] = {i: [] for i, s in enumerate(sequences) if s.split == split}
    at = {c: k for k, c in enumerate(examples.columns)}
    for i in np.flatnonzero(np.isfinite(examples.box).all(axis=1)):
        owner = int(examples.sequence[i])
        if owner not in clips:
            continue
        left, top, right, bottom = examples.box[i].tolist()
        vehicle: dict[str, Any] = {"bbox": {"top": top, "left": left, "bottom": bottom, "right": right}}
        for name, pair in (("velocity", ("vx", "vy")), ("position", ("x", "y"))):
            if all(c in at for c in pair):
                vehicle[name] = [float(predicted[i, at[c]]) for c in pair]
        clips[owner].append(vehicle)
    # ids differ in their number alone, so the shorter is the smaller
    return [clips[i] for i in sorted(clips, key=lambda i: (len(sequences[i].id), sequences[i].id))]


def read_tusimple_json(path: Path) -> object:
    """The value of a JSON file.

    Raises:
        DataError: no such file, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint="give the path of a submission.json or gt.json") from None
    except ValueError as e:
        raise DataError(f"{path}: not JSON: {e}", hint="predict anew") from None


def tusimple_table(predicted: object, truth: object) -> str:
    """EV and EP of predictions, by distance, beside EV of a predictor to which nothing moves.

    Raises:
        DataError: see `evaluate_tusimple`.
    """
    found, beside = evaluate_tusimple(predicted, truth), evaluate_tusimple(still(truth), truth)
    rows = [("EV [(m/s)²]", found.ev), ("EV of (0, 0)", beside.ev), *([("EP [m²]", found.ep)] if found.ep else [])]
    lines = ["".ljust(12) + "".join(name.rjust(9) for name in BANDS)]
    for name, part in rows:
        figures = ("–" if math.isnan(v) else f"{v:.3f}" for v in asdict(part).values())
        lines.append(name.ljust(12) + "".join(f.rjust(9) for f in figures))
    return "\n".join(lines)


def _clips(value: Any, who: str) -> list[list[dict[str, Any]]]:
    listed = isinstance(value, list) and all(isinstance(clip, list) for clip in value)
    if listed and all(isinstance(v, dict) and isinstance(v.get("bbox"), dict) for clip in value for v in clip):
        found: list[list[dict[str, Any]]] = value
        return found
    raise DataError(f"{who} are not in the benchmark's form", expected="a list with a list of vehicles for each clip")


def _nearest(vehicle: dict[str, Any], among: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """The vehicle of `among` with the nearest box: the smallest sum of its sides' differences."""
    box = _box(vehicle)
    off = [float(np.abs(_box(other) - box).sum()) for other in among]
    if not off or min(off) > MATCH:
        raise DataError(
            f"clip {index}: no prediction for the vehicle at {vehicle['bbox']}",
            expected=f"a box within {MATCH:g} px, over its four sides",
            got=f"{min(off):.1f} px" if off else "no vehicle",
        )
    return among[int(np.argmin(off))]


def _box(vehicle: dict[str, Any]) -> Floats:
    try:
        return np.array([vehicle["bbox"][k] for k in ("top", "left", "bottom", "right")], np.float64)
    except (KeyError, ValueError, TypeError):
        raise DataError("no box", expected="top, left, bottom, right", got=vehicle["bbox"]) from None


def _pairs(vehicles: Iterable[dict[str, Any]], key: str) -> Floats:
    """(n, 2) of a key."""
    found = []
    for vehicle in vehicles:
        pair = vehicle.get(key)
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(v, int | float) for v in pair):
            raise DataError(f"a vehicle at {vehicle['bbox']} without {key}", expected="two numbers", got=pair)
        found.append(pair)
    return np.array(found, np.float64)
