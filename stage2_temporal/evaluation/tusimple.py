"""The metrics of the TuSimple velocity benchmark: EV (velocity error) and EP (position error).

Each annotated vehicle is matched with the predicted one that has the nearest box. Squared errors, summed over x and y,
are averaged separately over near (< 20 m), medium (< 45 m) and far vehicles, by the length of the annotated position.
EV and EP are the mean of the three (github.com/TuSimple/tusimple-benchmark, evaluate/velocity.py). Predicting (0, 0)
for every vehicle gives EV 5.09 on the public labels of the test part: near 2.00, medium 4.76, far 8.52.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from features._common.console import text_table
from features._common.types import Floats
from features.errors import DataError
from features.sequences import FrameSequence
from features.windows import Examples

DISTANCE_EDGES = (20.0, 45.0)  # metres between near, medium and far
MAX_BOX_OFFSET = 10.0  # px, summed over the four sides, between a vehicle's annotated and predicted box
VEHICLE_LISTS = "a list with one list of vehicles per clip"

# NaN is unknown; JSON has null instead
Metric = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class ByDistance:
    """Mean squared error, summed over x and y: (m/s)² for EV, m² for EP.

    Attributes:
        near, medium, far: under 20 m, 20 to 45 m, 45 m and more; NaN if there is no vehicle at that distance.
        mean: mean of the three; NaN if one of them is.
    """

    near: Metric
    medium: Metric
    far: Metric
    mean: Metric


@dataclass(frozen=True)
class Benchmark:
    """EV, and EP if positions were predicted."""

    ev: ByDistance
    ep: ByDistance | None


def by_distance(error: Floats, position: Floats) -> ByDistance | None:
    """Average the squares of (n, 2) errors in m/s or m by distance; None if no position is known.

    Args:
        position: (n, 2) in metres; vehicles with NaN are left out.
    """
    squared, distance = (error**2).sum(axis=1), np.hypot(position[:, 0], position[:, 1])
    if not np.isfinite(distance).any():
        return None
    band = np.where(np.isfinite(distance), np.searchsorted(DISTANCE_EDGES, distance, side="right"), -1)
    near, medium, far = (float(squared[band == i].mean()) if (band == i).any() else math.nan for i in range(3))
    return ByDistance(near, medium, far, (near + medium + far) / 3)


def evaluate_tusimple(predicted: object, truth: object) -> Benchmark:
    """Compute EV and EP from predictions and ground truth in the benchmark's format.

    Both are a list with one list of vehicles per clip, clips in the same order, vehicles in any order. A vehicle is
    `{"bbox": {"top": …, "left": …, "bottom": …, "right": …}, "velocity": [vx, vy], "position": [x, y]}`.

    Raises:
        DataError: one of them has another format, the numbers of clips differ, or no predicted box is near enough to
            that of an annotated vehicle.
    """
    predicted_clips, true_clips = _clips(predicted, "the predictions"), _clips(truth, "the ground truth")
    if len(predicted_clips) != len(true_clips):
        raise DataError(
            "the predictions and the ground truth have different numbers of clips",
            expected=f"{len(true_clips)} clips",
            got=len(predicted_clips),
            hint="predict the data set that the ground truth belongs to",
        )
    pairs = [
        (_nearest(vehicle, candidates, index), vehicle)
        for index, (candidates, vehicles) in enumerate(zip(predicted_clips, true_clips, strict=True))
        for vehicle in vehicles
    ]
    if not pairs:
        raise DataError("the ground truth has no vehicle", expected=VEHICLE_LISTS, hint="give another file as --truth")
    answers, vehicles = zip(*pairs, strict=True)
    position = _vectors(vehicles, "position")
    ev = by_distance(_vectors(answers, "velocity") - _vectors(vehicles, "velocity"), position)
    assert ev is not None  # every position is known
    if not any("position" in answer for answer in answers):
        return Benchmark(ev, None)
    return Benchmark(ev, by_distance(_vectors(answers, "position") - position, position))


def zero_velocities(truth: object) -> list[list[dict[str, Any]]]:
    """The baseline that predicts velocity (0, 0) for every annotated box."""
    return [[{"bbox": v["bbox"], "velocity": [0.0, 0.0]} for v in clip] for clip in _clips(truth, "the ground truth")]


def submission(
    examples: Examples, predicted: Floats, sequences: Sequence[FrameSequence], split: str = "test"
) -> list[list[dict[str, Any]]]:
    """Convert predictions to the benchmark's format: one entry per clip of the split, in numeric order.

    Vehicles without a box are left out, and so is the position if it was not predicted.

    Args:
        predicted: (n, K) for `examples.columns`, which include `vx` and `vy`.
        sequences: all sequences of the data set.
    """
    clips: dict[int, list[dict[str, Any]]] = {i: [] for i, s in enumerate(sequences) if s.split == split}
    column = {name: k for k, name in enumerate(examples.columns)}
    for i in np.flatnonzero(np.isfinite(examples.box).all(axis=1)):
        clip = clips.get(int(examples.sequence[i]))
        if clip is None:
            continue
        left, top, right, bottom = examples.box[i].tolist()
        vehicle: dict[str, Any] = {"bbox": {"top": top, "left": left, "bottom": bottom, "right": right}}
        for key, names in (("velocity", ("vx", "vy")), ("position", ("x", "y"))):
            if all(name in column for name in names):
                vehicle[key] = [float(predicted[i, column[name]]) for name in names]
        clip.append(vehicle)
    # ids differ only in their number, so the shorter id has the smaller one
    return [clips[i] for i in sorted(clips, key=lambda i: (len(sequences[i].id), sequences[i].id))]


def read_tusimple_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint="give the path of a submission.json or gt.json") from None
    except ValueError as e:
        raise DataError(f"{path}: not JSON: {e}", hint=f"replace {path}") from None


def tusimple_table(predicted: object, truth: object) -> str:
    """EV and EP of predictions by distance, and the EV of predicting (0, 0), as a table for the terminal.

    Raises:
        DataError: see `evaluate_tusimple`.
    """
    model, baseline = evaluate_tusimple(predicted, truth), evaluate_tusimple(zero_velocities(truth), truth)
    rows = [("EV [(m/s)²]", model.ev), ("EV of (0, 0)", baseline.ev), ("EP [m²]", model.ep)]
    return text_table(
        ["", "near", "medium", "far", "mean"],
        [
            [name, *("–" if math.isnan(v) else f"{v:.3f}" for v in astuple(errors))]
            for name, errors in rows
            if errors is not None
        ],
    )


def _clips(value: Any, what: str) -> list[list[dict[str, Any]]]:
    is_nested_list = isinstance(value, list) and all(isinstance(clip, list) for clip in value)
    if is_nested_list and all(isinstance(v, dict) and isinstance(v.get("bbox"), dict) for clip in value for v in clip):
        clips: list[list[dict[str, Any]]] = value
        return clips
    raise DataError(
        f"{what} are not in the benchmark's format",
        expected=VEHICLE_LISTS,
        hint="give a submission.json or the benchmark's gt.json",
    )


def _nearest(vehicle: dict[str, Any], candidates: list[dict[str, Any]], clip: int) -> dict[str, Any]:
    """The candidate whose box is nearest: the smallest sum of the four sides' absolute differences."""
    box = _box(vehicle)
    offsets = [float(np.abs(_box(candidate) - box).sum()) for candidate in candidates]
    if not offsets or min(offsets) > MAX_BOX_OFFSET:
        raise DataError(
            f"clip {clip}: no prediction for the vehicle at {vehicle['bbox']}",
            expected=f"a box within {MAX_BOX_OFFSET:g} px, summed over its four sides",
            got=f"{min(offsets):.1f} px" if offsets else "no vehicle",
        )
    return candidates[int(np.argmin(offsets))]


def _box(vehicle: dict[str, Any]) -> Floats:
    try:
        return np.array([vehicle["bbox"][side] for side in ("top", "left", "bottom", "right")], np.float64)
    except (KeyError, ValueError, TypeError):
        raise DataError("incomplete box", expected="top, left, bottom, right", got=vehicle["bbox"]) from None


def _vectors(vehicles: Iterable[dict[str, Any]], key: str) -> Floats:
    """(n, 2) velocities or positions."""
    vectors = []
    for vehicle in vehicles:
        vector = vehicle.get(key)
        if not isinstance(vector, list) or len(vector) != 2 or not all(isinstance(v, int | float) for v in vector):
            raise DataError(f"the vehicle at {vehicle['bbox']} has no {key}", expected="two numbers", got=vector)
        vectors.append(vector)
    return np.array(vectors, np.float64)
