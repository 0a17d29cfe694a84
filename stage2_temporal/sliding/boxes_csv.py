"""Boxes that a user gives for a video: a CSV with `frame,left,top,right,bottom` and where wanted `vehicle`."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from features.errors import BadInputs, DataError
from features.sequences import Box, FrameSequence

SIDES = ("left", "top", "right", "bottom")
ONLY = "1"  # what a vehicle without a name is called
BoxesByFrame = dict[int, dict[str, Box]]


def read_boxes(path: Path, sequence: FrameSequence) -> BoxesByFrame:
    """The boxes by frame (from 0) and vehicle.

    Raises:
        DataError: no such file, no box in it, or a column is missing.
        BadInputs: names every line with a box that is none, or on a frame or a place that is not there.
    """
    hint = "columns frame,left,top,right,bottom and where there are several vehicle; pixels of the full-size frame"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read", got=e, hint="--boxes FILE.csv") from None
    reader = csv.DictReader(text.splitlines())
    found = [name.strip() for name in reader.fieldnames or ()]
    missing = [c for c in ("frame", *SIDES) if c not in found]
    if missing:
        got = ", ".join(found) or "an empty file"
        raise DataError(f"{path}: no column {', '.join(missing)}", got=got, hint=hint)
    reader.fieldnames = found
    given: BoxesByFrame = {}
    faults = []
    for row in reader:
        fault, frame, box = _parsed(row, sequence)
        if fault is None:
            name = (row.get("vehicle") or "").strip() or ONLY
            if name in given.setdefault(frame, {}):
                fault = f"a second box of vehicle {name} in frame {frame}"
            given[frame][name] = box
        if fault is not None:
            faults.append(f"{path}: line {reader.line_num}: {fault}.")
    if faults:
        raise BadInputs(f"{path}: {len(faults)} boxes cannot be", faults, hint=f"put them right: {hint}")
    if not given:
        raise DataError(f"{path}: no box in it", hint=hint)
    return given


def _parsed(row: dict[str, str], sequence: FrameSequence) -> tuple[str | None, int, Box]:
    """What is wrong with a line, if anything; its frame and box."""
    nothing: Box = (0.0, 0.0, 0.0, 0.0)
    try:
        frame = int(row["frame"])
        left, top, right, bottom = (float(row[c]) for c in SIDES)
    except (TypeError, ValueError):
        return (
            f"not a frame's number and four numbers, got {','.join(str(row[c]) for c in ('frame', *SIDES))}",
            0,
            nothing,
        )
    width, height = sequence.size
    if not 0 <= frame < sequence.length:
        return f"no frame {frame}, expected 0 to {sequence.length - 1}", 0, nothing
    if not all(map(math.isfinite, (left, top, right, bottom))) or right <= left or bottom <= top:
        size = f"{left:g},{top:g},{right:g},{bottom:g}"
        return f"a box of no size, expected left < right and top < bottom, got {size}", 0, nothing
    if right <= 0 or bottom <= 0 or left >= width - 1 or top >= height - 1:
        return f"a box outside the image of {width}x{height}, got {left:g},{top:g},{right:g},{bottom:g}", 0, nothing
    return None, frame, (left, top, right, bottom)
