"""`annotation.json` and `ego.json`: what a clip's vehicles and its own car do, as the TuSimple benchmark writes it."""

from __future__ import annotations

import json
import math
from typing import Any

from features.errors import DataError
from features.sequences import Box, Label
from stage1_extract.datasets.archive import ReadablePath, read_file
from stage1_extract.datasets.image_sequence import error_line

UNKNOWN_VELOCITY = {"vx": math.nan, "vy": math.nan}


def vehicle_labels(
    value: object, where: str, frame: int, *, known: bool, every: bool, faults: list[str]
) -> tuple[Label, ...]:
    """A label for each annotated vehicle.

    Args:
        value: the JSON value: a list of `{"velocity": [vx, vy], "bbox": {"left": …}, "position": [x, y]}`.
        where: its path, for the faults.
        frame: 0-based index of the frame the labels hold for.
        known: whether a velocity must be there; a test split may lack it, which gives NaN.
        every: all vehicles, or the first only (the competition's rule).
        faults: one line is appended for each fault.
    """
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else _short(value)
        faults.append(error_line(f"{where}: no annotated vehicle", expected="a list of vehicles", got=got))
        return ()
    labels = []
    for index, entry in enumerate(value if every else value[:1]):
        here = f"{where}: [{index}]"
        if not isinstance(entry, dict):
            faults.append(error_line(f"{here} is no vehicle", expected='{"velocity": [vx, vy], …}', got=_short(entry)))
            continue
        targets = UNKNOWN_VELOCITY
        if entry.get("velocity") is not None:
            if pair := _numbers(entry["velocity"], f"{here}.velocity", 2, faults):
                targets = {"vx": pair[0], "vy": pair[1]}
        elif known:
            got = "null" if "velocity" in entry else f"keys {', '.join(map(str, entry)) or 'none'}"
            faults.append(error_line(f"{here} has no velocity", expected='"velocity": [vx, vy]', got=got))
        position = None
        if entry.get("position") is not None and (pair := _numbers(entry["position"], f"{here}.position", 2, faults)):
            position = (pair[0], pair[1])
        box = _box(entry["bbox"], f"{here}.bbox", faults) if entry.get("bbox") is not None else None
        labels.append(Label(frame, targets, box, position))
    return tuple(labels)


def ego_labels(value: object, where: str, frame: int, faults: list[str]) -> tuple[Label, ...]:
    """The label of the car's own speed, from `{"speed": 21.3}` in m/s."""
    if not isinstance(value, dict) or "speed" not in value:
        faults.append(error_line(f"{where}: no own speed", expected='{"speed": m/s}', got=_short(value)))
        return ()
    speed = _number(value["speed"], f"{where}: speed", faults)
    return () if speed is None else (Label(frame, {"ego_speed": speed}),)


def load_json(place: ReadablePath) -> object:
    """The JSON value of a file.

    Raises:
        DataError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_file(place).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:  # of wrong text, of wrong encoding, or nested without end
        raise DataError(f"{place}: no JSON", expected="JSON in UTF-8", got=e) from None


def _box(value: Any, where: str, faults: list[str]) -> Box | None:
    keys = ("left", "top", "right", "bottom")
    if not isinstance(value, dict) or any(k not in value for k in keys):
        faults.append(error_line(f"{where} is no box", expected=f"the keys {', '.join(keys)}", got=_short(value)))
        return None
    if sides := _numbers([value[k] for k in keys], where, 4, faults):
        left, top, right, bottom = sides
        if left < right and top < bottom:
            return left, top, right, bottom
        faults.append(error_line(f"{where} is no box", expected="left < right and top < bottom", got=_short(value)))
    return None


def _numbers(value: object, where: str, count: int, faults: list[str]) -> list[float] | None:
    if not isinstance(value, list) or len(value) != count:
        faults.append(error_line(f"{where} is not {count} numbers", expected=f"a list of {count}", got=_short(value)))
        return None
    numbers = [_number(v, where, faults) for v in value]
    sound = [n for n in numbers if n is not None]
    return sound if len(sound) == count else None


def _number(value: object, where: str, faults: list[str]) -> float | None:
    try:
        # a bool is an int to Python, and not a number to a person
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond the doubles
        pass
    faults.append(error_line(f"{where} is no finite number", expected="a finite number", got=_short(value)))
    return None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
