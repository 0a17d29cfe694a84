"""Read the boxes of vehicles in a video from a CSV file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from features._common.csv_table import read_csv_table
from features.errors import BadInputs, DataError
from features.sequences import Box, FrameSequence

SIDES = ("left", "top", "right", "bottom")
UNNAMED = "1"  # the name of a vehicle that has none
BOXES_HINT = "--boxes FILE.csv with the columns frame,left,top,right,bottom: the vehicle's box in one frame"

BoxesByFrame = dict[int, dict[str, Box]]


def read_boxes(path: Path, sequence: FrameSequence) -> BoxesByFrame:
    """Read a CSV file with the columns frame, left, top, right, bottom and, for several vehicles, vehicle.

    Returns:
        The boxes in pixels of the full-size frame, by frame (from 0) and vehicle.

    Raises:
        DataError: the file cannot be read, lacks a column or has no rows.
        BadInputs: lines that do not describe a box of this sequence, one fault per line.
    """
    hint = f"edit {path}: frame counts from 0, left,top,right,bottom are pixels of the full-size frame"
    faults: list[str] = []
    boxes: BoxesByFrame = {}
    for row in read_csv_table(path, required=("frame", *SIDES), hint=hint, faults=faults).rows:
        try:
            frame, box = _frame_and_box(row.cells, sequence)
            vehicle = row.cells.get("vehicle") or UNNAMED
            if vehicle in boxes.setdefault(frame, {}):
                raise ValueError(f"a second box of vehicle {vehicle} in frame {frame}")
            boxes[frame][vehicle] = box
        except ValueError as e:
            faults.append(f"{row.where}: {e}.")
    if faults:
        raise BadInputs(f"{path}: {len(faults)} lines with errors", faults, hint=hint)
    if not boxes:
        raise DataError(f"{path}: no boxes", expected="one line per box", got="a header only", hint=hint)
    return boxes


def _frame_and_box(cells: Mapping[str, str], sequence: FrameSequence) -> tuple[int, Box]:
    """Parse a line; raises ValueError, which says what is wrong with it."""
    text = ",".join(cells[name] for name in SIDES)
    try:
        frame = int(cells["frame"])
        left, top, right, bottom = (float(cells[name]) for name in SIDES)
    except ValueError:
        raise ValueError(f"expected a frame number and four numbers; got {cells['frame']},{text}") from None
    width, height = sequence.size
    if not 0 <= frame < sequence.length:
        raise ValueError(f"no frame {frame}; expected 0 to {sequence.length - 1}")
    if not all(map(math.isfinite, (left, top, right, bottom))) or right <= left or bottom <= top:
        raise ValueError(f"empty box; expected left < right and top < bottom; got {text}")
    if right <= 0 or bottom <= 0 or left >= width - 1 or top >= height - 1:
        raise ValueError(f"box outside the {width}x{height} frame; got {text}")
    return frame, (left, top, right, bottom)
