"""`annotation.json` and `ego.json`: a clip's labelled vehicles and the car's own speed, in TuSimple's format."""

from __future__ import annotations

import json
import math
from typing import Any

from features.errors import DataError
from features.sequences import Box, Label
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.faults import fault_line

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
        got = "an empty list" if value == [] else _abbreviated(value)
        faults.append(fault_line(f"{where}: no annotated vehicle", expected="a list of vehicles", got=got))
        return ()
    labels = []
    for index, entry in enumerate(value if all_vehicles else value[:1]):
        item = f"{where}: [{index}]"
        if not isinstance(entry, dict):
            expected = '{"velocity": [vx, vy], …}'
            faults.append(fault_line(f"{item} is not a vehicle", expected=expected, got=_abbreviated(entry)))
            continue
        targets = UNKNOWN_VELOCITY
        if entry.get("velocity") is not None:
            if pair := _numbers(entry["velocity"], f"{item}.velocity", 2, faults):
                targets = {"vx": pair[0], "vy": pair[1]}
        elif velocity_required:
            got = "null" if "velocity" in entry else f"keys {', '.join(map(str, entry)) or 'none'}"
            faults.append(fault_line(f"{item} has no velocity", expected='"velocity": [vx, vy]', got=got))
        position = None
        if entry.get("position") is not None and (pair := _numbers(entry["position"], f"{item}.position", 2, faults)):
            position = (pair[0], pair[1])
        box = _box(entry["bbox"], f"{item}.bbox", faults) if entry.get("bbox") is not None else None
        labels.append(Label(frame, targets, box, position))
    return tuple(labels)


def ego_labels(value: object, where: str, frame: int, faults: list[str]) -> tuple[Label, ...]:
    """Make the label of the car's own speed, from `{"speed": 21.3}` in m/s."""
    if not isinstance(value, dict) or "speed" not in value:
        faults.append(fault_line(f"{where}: no own speed", expected='{"speed": m/s}', got=_abbreviated(value)))
        return ()
    speed = _number(value["speed"], f"{where}: speed", faults)
    return () if speed is None else (Label(frame, {"ego_speed": speed}),)


def load_json(path: ReadablePath) -> object:
    """Read the JSON value in a file.

    Raises:
        DataError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # not JSON, not UTF-8, or nested too deeply
        raise DataError(f"{path}: not JSON", expected="JSON in UTF-8", got=e) from None


def _box(value: Any, where: str, faults: list[str]) -> Box | None:
    if not isinstance(value, dict) or any(key not in value for key in BOX_KEYS):
        expected = f"the keys {', '.join(BOX_KEYS)}"
        faults.append(fault_line(f"{where} is not a box", expected=expected, got=_abbreviated(value)))
        return None
    if sides := _numbers([value[key] for key in BOX_KEYS], where, 4, faults):
        left, top, right, bottom = sides
        if left < right and top < bottom:
            return left, top, right, bottom
        expected = "left < right and top < bottom"
        faults.append(fault_line(f"{where} is not a box", expected=expected, got=_abbreviated(value)))
    return None


def _numbers(value: object, where: str, count: int, faults: list[str]) -> list[float] | None:
    if not isinstance(value, list) or len(value) != count:
        got = _abbreviated(value)
        faults.append(fault_line(f"{where} is not {count} numbers", expected=f"a list of {count} numbers", got=got))
        return None
    numbers = [number for v in value if (number := _number(v, where, faults)) is not None]
    return numbers if len(numbers) == count else None


def _number(value: object, where: str, faults: list[str]) -> float | None:
    try:
        # Python takes true and false for integers
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer too large for a float
        pass
    faults.append(fault_line(f"{where} is not a finite number", expected="a finite number", got=_abbreviated(value)))
    return None


def _abbreviated(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
