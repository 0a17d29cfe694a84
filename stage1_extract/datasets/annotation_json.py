"""`annotation.json` and `ego.json`: a clip's labelled vehicles and the car's own speed, in TuSimple's format."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from features._common.strict_json import parse_json
from features.errors import DataError
from features.limits import JSON_BYTES, LARGEST_NUMBER, VEHICLES
from features.sequences import Label
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.clip import add_fault, error_to_fault

Model = TypeVar("Model", bound=BaseModel)

UNKNOWN_VELOCITY = {"vx": math.nan, "vy": math.nan}
VEHICLE_FORMAT = '{"velocity": [vx, vy], "bbox": {"left": …, "top": …, "right": …, "bottom": …}, "position": [x, y]}'

Number = Annotated[
    float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)
]  # strict: neither "1" nor true is a number
Pair = tuple[Number, Number]


class BoundingBox(BaseModel):
    """A vehicle's box in px."""

    left: Number
    top: Number
    right: Number
    bottom: Number

    @model_validator(mode="after")
    def _check_sides(self) -> BoundingBox:
        if not (self.left < self.right and self.top < self.bottom):
            raise ValueError("left < right and top < bottom in a box")
        return self


class Vehicle(BaseModel):
    """An annotated vehicle, whose velocity may be unknown in a test split."""

    velocity: Pair | None = None
    bbox: BoundingBox | None = None
    position: Pair | None = None


class VehicleWithVelocity(Vehicle):
    """An annotated vehicle of a training or validation split."""

    velocity: Pair


class EgoMotion(BaseModel):
    """The car's own motion: speed in m/s, and the rate at which it turns to the right, in rad/s."""

    speed: Number
    yaw_rate: Number | None = None


def vehicle_labels(
    value: object, where: str, frame: int, *, velocity_required: bool, all_vehicles: bool, faults: list[str]
) -> tuple[Label, ...]:
    """Make a label of `frame` (0-based) for each vehicle, and append a line to `faults` for each faulty one.

    Args:
        value: the JSON value at the path `where`, a list of vehicles in `VEHICLE_FORMAT`.
        velocity_required: whether a missing velocity is a fault; otherwise it becomes NaN, as in a test split.
        all_vehicles: label all vehicles, or only the first, as the competition does.
    """
    if not isinstance(value, list) or not value:
        add_fault(faults, f"{where}: no annotated vehicle", "a list of vehicles", _json(value))
        return ()
    if len(value) > VEHICLES:
        add_fault(faults, f"{where}: too many vehicles", f"at most {VEHICLES:,}", f"{len(value):,}")
        return ()
    vehicles: list[Vehicle] = []
    model = VehicleWithVelocity if velocity_required else Vehicle
    for index, entry in enumerate(value if all_vehicles else value[:1]):
        vehicles += _validate(model, entry, where, VEHICLE_FORMAT, faults, (index,))
    return tuple(
        Label(
            frame,
            dict(zip(UNKNOWN_VELOCITY, vehicle.velocity, strict=True)) if vehicle.velocity else UNKNOWN_VELOCITY,
            (box.left, box.top, box.right, box.bottom) if (box := vehicle.bbox) else None,
            vehicle.position,
        )
        for vehicle in vehicles
    )


def ego_labels(value: object, where: str, frame: int, faults: list[str]) -> tuple[Label, ...]:
    """Make the label of the car's own speed, from `{"speed": 21.3}` in m/s, and of its `yaw_rate` if that is there."""
    motions = _validate(EgoMotion, value, where, '{"speed": m/s}', faults)
    return tuple(
        Label(frame, {"ego_speed": m.speed} | ({} if m.yaw_rate is None else {"yaw_rate": m.yaw_rate})) for m in motions
    )


def load_json(path: ReadablePath, faults: list[str]) -> list[Any]:
    """The JSON value in a file, or, as a fault, nothing if it cannot be read or is not JSON."""
    try:
        return [parse_json(read_file(path, JSON_BYTES).decode("utf-8-sig"), any_number=True)]
    except ValueError as e:  # not JSON, not UTF-8, or nested too deeply
        add_fault(faults, f"{path}: not JSON", "JSON in UTF-8", e)
    except DataError as e:
        faults.append(error_to_fault(e))
    return []


def _validate(
    model: type[Model], value: object, where: str, expected: str, faults: list[str], keys: tuple[int, ...] = ()
) -> list[Model]:
    """The value as a model, or none and its faults; `keys` lead to the value in the file."""
    try:
        return [model.model_validate_json(json.dumps(value))]  # as JSON, so that errors speak of arrays, not of tuples
    except ValidationError as e:
        for error in e.errors(include_url=False):
            path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in (*keys, *error["loc"]))
            message = error["msg"].removeprefix("Value error, ")
            what = ": ".join(filter(None, [where, path.removeprefix("."), message]))
            add_fault(faults, what, expected, _json(error["input"]))
        return []


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
