"""Read the boxes of vehicles in a video from a CSV file."""

from __future__ import annotations

import math
from pathlib import Path

from features._common.csv_table import read_csv_table
from features._common.plain_text import one_line
from features.errors import BadInputs, DataError
from features.sequences import Box, FrameSequence

SIDES = ("left", "top", "right", "bottom")
LONGEST_SHOWN = 80  # characters of a cell in an error
UNNAMED = "1"  # the name of a vehicle that has none
BOXES_HINT = "--boxes FILE.csv with the columns frame,left,top,right,bottom: the vehicle's box in one frame"

BoxesByFrame = dict[int, dict[str, Box]]


def read_boxes(path: Path, sequence: FrameSequence) -> BoxesByFrame:
    """Read a CSV file with the columns frame, left, top, right, bottom and, for several vehicles, vehicle.

    Returns the boxes in pixels of the full-size frame, by frame (from 0) and vehicle. A DataError if the file cannot be
    read, lacks a column or has no rows; BadInputs with a fault for each line that is no box of this sequence.
    """
    hint = f"edit {path}: frame counts from 0, left,top,right,bottom are pixels of the full-size frame"
    width, height = sequence.size
    faults: list[str] = []
    boxes: BoxesByFrame = {}
    for row in read_csv_table(path, required=("frame", *SIDES), hint=hint, faults=faults).rows:
        text = ",".join(row.cells[name] for name in SIDES)
        shown, number = (one_line(cell[:LONGEST_SHOWN]) for cell in (text, row.cells["frame"]))
        vehicle = row.cells.get("vehicle") or UNNAMED
        try:
            frame = int(row.cells["frame"])
            left, top, right, bottom = map(float, text.split(","))
        except ValueError:
            faults.append(f"{row.where}: expected a frame number and four numbers; got {number},{shown}.")
            continue
        if not 0 <= frame < sequence.length:
            faults.append(f"{row.where}: no frame {number}; expected 0 to {sequence.length - 1}.")
        elif not -math.inf < left < right < math.inf or not -math.inf < top < bottom < math.inf:
            faults.append(f"{row.where}: empty box; expected left < right and top < bottom; got {shown}.")
        elif right <= 0 or bottom <= 0 or left >= width - 1 or top >= height - 1:
            faults.append(f"{row.where}: box outside the {width}x{height} frame; got {shown}.")
        elif vehicle in boxes.setdefault(frame, {}):
            faults.append(f"{row.where}: a second box of vehicle {one_line(vehicle[:LONGEST_SHOWN])} in frame {frame}.")
        else:
            boxes[frame][vehicle] = (left, top, right, bottom)
    if faults:
        raise BadInputs(f"{path}: {len(faults)} lines with errors", faults, hint=hint)
    if not boxes:
        raise DataError(f"{path}: no boxes", expected="one line per box", got="a header only", hint=hint)
    return boxes
