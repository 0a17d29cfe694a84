"""The metrics of the TuSimple velocity benchmark: EV (velocity error) and EP (position error).

Each annotated vehicle is matched with the predicted one that has the nearest box. Squared errors, summed over x and y,
are averaged separately over near (< 20 m), medium (< 45 m) and far vehicles, by the length of the annotated position.
EV and EP are the mean of the three (github.com/TuSimple/tusimple-benchmark, evaluate/velocity.py). Predicting (0, 0)
for every vehicle gives EV 5.09 on the public labels of the test part: near 2.00, medium 4.76, far 8.52.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from features._common.console import text_table
from features._common.plain_text import one_line
from features._common.strict_json import read_json_file
from features._common.types import Floats
from features.errors import DataError
from features.limits import LARGEST_NUMBER

DISTANCE_EDGES = (20.0, 45.0)  # metres between near, medium and far
MAX_BOX_OFFSET = 10.0  # px, summed over the four sides, between a vehicle's annotated and predicted box

BoundedNumber = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
# NaN is unknown; JSON has null instead
Metric = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class BoxSides(BaseModel):
    """A vehicle's box in px."""

    top: BoundedNumber
    left: BoundedNumber
    bottom: BoundedNumber
    right: BoundedNumber

    def offset(self, other: BoxSides) -> float:
        """The sum of the four sides' absolute differences."""
        return float(sum(abs(value - getattr(other, side)) for side, value in self))


class PredictedVehicle(BaseModel):
    """A vehicle as a file of predictions has it: velocity (x forward, y right) in m/s, position in m."""

    bbox: BoxSides
    velocity: tuple[BoundedNumber, BoundedNumber]
    position: tuple[BoundedNumber, BoundedNumber] | None = None


class TrueVehicle(PredictedVehicle):
    """A vehicle as the ground truth has it."""

    position: tuple[BoundedNumber, BoundedNumber]


VehicleType = TypeVar("VehicleType", bound=PredictedVehicle)


@dataclass(frozen=True)
class ByDistance:
    """Mean squared error, summed over x and y: (m/s)² for EV, m² for EP; NaN without a vehicle at that distance."""

    near: Metric  # under 20 m
    medium: Metric  # 20 to 45 m
    far: Metric  # 45 m and more
    mean: Metric  # of the three; NaN if one of them is


@dataclass(frozen=True)
class Benchmark:
    """EV, EP if positions were predicted, and the EV of predicting (0, 0)."""

    ev: ByDistance | None
    ep: ByDistance | None
    zero_ev: ByDistance | None


def by_distance(error: Floats, position: Floats) -> ByDistance | None:
    """Average the squares of (n, 2) errors in m/s or m by the distance of the (n, 2) positions in m.

    Vehicles whose position is NaN are left out; None if no position is known.
    """
    squared, distance = (error**2).sum(axis=1), np.hypot(position[:, 0], position[:, 1])
    if not np.isfinite(distance).any():
        return None
    band = np.where(np.isfinite(distance), np.searchsorted(DISTANCE_EDGES, distance, side="right"), -1)
    near, medium, far = (float(squared[band == i].mean()) if (band == i).any() else math.nan for i in range(3))
    return ByDistance(near, medium, far, (near + medium + far) / 3)


def evaluate_tusimple(predictions: Path, truth: Path) -> Benchmark:
    """Compute EV and EP from two JSON files in the benchmark's format; clips in the same order, vehicles in any.

    A DataError if a file is missing or malformed, the numbers of clips differ, or no predicted box is near a vehicle's.
    """
    predicted_clips, true_clips = _read_clips(predictions, PredictedVehicle), _read_clips(truth, TrueVehicle)
    if len(predicted_clips) != len(true_clips):
        hint = f"predict the data set that {truth} belongs to"
        expected, got = f"{len(true_clips)} clips", len(predicted_clips)
        raise DataError(f"{predictions}: wrong number of clips", expected=expected, got=got, hint=hint)
    vehicles = [vehicle for clip in true_clips for vehicle in clip]
    if not vehicles:
        raise DataError(f"{truth}: the ground truth has no vehicle", hint="give another file as --truth")
    answers = [
        _nearest(vehicle, candidates, index)
        for index, (candidates, clip) in enumerate(zip(predicted_clips, true_clips, strict=True))
        for vehicle in clip
    ]
    position, velocity = (np.array([getattr(v, key) for v in vehicles]) for key in ("position", "velocity"))
    ev = by_distance(np.array([a.velocity for a in answers]) - velocity, position)
    positions = [a.position for a in answers if a.position]
    if positions and len(positions) < len(answers):
        raise DataError(f"{predictions}: {len(answers) - len(positions)} vehicles have no position, unlike the others")
    ep = by_distance(np.array(positions) - position, position) if positions else None
    return Benchmark(ev, ep, by_distance(velocity, position))


def tusimple_table(predictions: Path, truth: Path) -> str:
    """`evaluate_tusimple` as a table for the terminal."""
    result = evaluate_tusimple(predictions, truth)
    rows = [("EV [(m/s)²]", result.ev), ("EV of (0, 0)", result.zero_ev), ("EP [m²]", result.ep)]
    return text_table(
        ["", "near", "medium", "far", "mean"],
        [[name, *("–" if math.isnan(v) else f"{v:.3f}" for v in astuple(errors))] for name, errors in rows if errors],
    )


def first_fault(error: ValidationError) -> str:
    """The first key of a JSON file that is wrong, and what is wrong with it."""
    fault = error.errors()[0]
    return one_line(": ".join([".".join(map(str, fault["loc"]))[:200], fault["msg"]]).removeprefix(": "))


def _read_clips(path: Path, vehicle: type[VehicleType]) -> list[list[VehicleType]]:
    try:
        value = read_json_file(path, "give the path of a submission.json or gt.json")
        return TypeAdapter(list[list[vehicle]]).validate_python(value)  # type: ignore[valid-type]
    except ValidationError as e:
        raise DataError(
            f"{path} is not in the benchmark's format: {first_fault(e)}",
            expected="a list with one list of vehicles per clip",
            hint="give a submission.json or the benchmark's gt.json",
        ) from None


def _nearest(vehicle: TrueVehicle, candidates: list[PredictedVehicle], clip: int) -> PredictedVehicle:
    """The candidate whose box is nearest."""
    offsets = [vehicle.bbox.offset(candidate.bbox) for candidate in candidates]
    if not offsets or min(offsets) > MAX_BOX_OFFSET:
        raise DataError(
            f"clip {clip}: no prediction for the vehicle at {vehicle.bbox}",
            expected=f"a box within {MAX_BOX_OFFSET:g} px, summed over its four sides",
            got=f"{min(offsets):.1f} px" if offsets else "no vehicle",
        )
    return candidates[offsets.index(min(offsets))]
