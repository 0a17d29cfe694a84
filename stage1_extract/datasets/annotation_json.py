"""`annotation.json` and `ego.json`: a clip's labelled vehicles and the car's own speed, in TuSimple's format."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from features.errors import DataError
from features.sequences import Box, Label
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.faults import abbreviate, add_fault

UNKNOWN_VELOCITY = {"vx": math.nan, "vy": math.nan}
BOX_KEYS = ("left", "top", "right", "bottom")


def vehicle_labels(
    value: object, where: str, frame: int, *, velocity_required: bool, all_vehicles: bool, faults: list[str]
) -> tuple[Label, ...]:
    """Make a label for each annotated vehicle.

    Args:
        value: the JSON value: a list of `{"velocity": [vx, vy], "bbox": {"left": …}, "position": [x, y]}`.
        where: its path, for the faults.
        frame: 0-based index of the frame that the labels describe.
        velocity_required: whether a missing velocity is a fault; otherwise it becomes NaN, as in a test split.
        all_vehicles: label all vehicles, or only the first, as the competition does.
        faults: one line is appended for each fault.
    """
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else _json(value)
        add_fault(faults, f"{where}: no annotated vehicle", "a list of vehicles", got)
        return ()
    labels = []
    for index, entry in enumerate(value if all_vehicles else value[:1]):
        item = f"{where}: [{index}]"
        if not isinstance(entry, dict):
            add_fault(faults, f"{item} is not a vehicle", '{"velocity": [vx, vy], …}', _json(entry))
            continue
        velocity, position, bbox = map(entry.get, ("velocity", "position", "bbox"))
        if velocity is None and velocity_required:
            got = "null" if "velocity" in entry else f"keys {', '.join(map(str, entry)) or 'none'}"
            add_fault(faults, f"{item} has no velocity", '"velocity": [vx, vy]', got)
        pair = None if velocity is None else _pair(velocity, f"{item}.velocity", faults)
        labels.append(
            Label(
                frame,
                {"vx": pair[0], "vy": pair[1]} if pair else UNKNOWN_VELOCITY,
                None if bbox is None else _box(bbox, f"{item}.bbox", faults),
                None if position is None else _pair(position, f"{item}.position", faults),
            )
        )
    return tuple(labels)


def ego_labels(value: object, where: str, frame: int, faults: list[str]) -> tuple[Label, ...]:
    """Make the label of the car's own speed, from `{"speed": 21.3}` in m/s."""
    if not isinstance(value, dict) or "speed" not in value:
        add_fault(faults, f"{where}: no ego speed", '{"speed": m/s}', _json(value))
        return ()
    speed = _numbers([value["speed"]], f"{where}: speed", faults)
    return (Label(frame, {"ego_speed": speed[0]}),) if speed else ()


def load_json(path: ReadablePath) -> object:
    """Read the JSON value in a file.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # not JSON, not UTF-8, or nested too deeply
        raise DataError(f"{path}: not JSON", expected="JSON in UTF-8", got=e) from None


def _box(value: object, where: str, faults: list[str]) -> Box | None:
    if not isinstance(value, dict) or any(key not in value for key in BOX_KEYS):
        add_fault(faults, f"{where} is not a box", f"the keys {', '.join(BOX_KEYS)}", _json(value))
    elif sides := _numbers([value[key] for key in BOX_KEYS], where, faults):
        left, top, right, bottom = sides
        if left < right and top < bottom:
            return left, top, right, bottom
        add_fault(faults, f"{where} is not a box", "left < right and top < bottom", _json(value))
    return None


def _pair(value: object, where: str, faults: list[str]) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        add_fault(faults, f"{where} is not 2 numbers", "a list of 2 numbers", _json(value))
    elif numbers := _numbers(value, where, faults):
        return numbers[0], numbers[1]
    return None


def _numbers(values: list[Any], where: str, faults: list[str]) -> list[float] | None:
    numbers = []
    for value in values:
        # not by `isinstance`, because true and false are integers; some integers are too large for a float
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            numbers.append(float(value))
        else:
            add_fault(faults, f"{where} is not a finite number", "a finite number", _json(value))
    return numbers if len(numbers) == len(values) else None


def _json(value: object) -> str:
    return abbreviate(json.dumps(value, ensure_ascii=False, default=str))
