"""CSV tables of labels: a header with column names, one row per label, an empty cell for an unknown value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from features._common.csv_table import CsvRow
from features.limits import LARGEST_NUMBER
from features.sequences import Label
from stage1_extract.datasets.clip import add_fault

_BOX_COLUMNS, _POSITION_COLUMNS = ("left", "top", "right", "bottom"), ("x", "y")


def target_columns(columns: Sequence[str], *reserved: str) -> tuple[str, ...]:
    """The columns of a label table that hold targets: all but the reserved ones, the box's and the position's."""
    return tuple(c for c in columns if c not in {*reserved, *_BOX_COLUMNS, *_POSITION_COLUMNS})


def finite_number(text: str) -> float:
    """The number in a text; NaN if it is not a number up to `LARGEST_NUMBER`."""
    try:
        value = float(text if "_" not in text else "")  # Python reads 1_0 as 10
    except ValueError:
        return math.nan
    return value if abs(value) <= LARGEST_NUMBER else math.nan


def read_number(row: CsvRow, column: str, faults: list[str]) -> float:
    """The number in a cell; NaN if it is empty or its column is absent, or, as a fault, if it is not a number."""
    text = row.cells.get(column, "")
    value = finite_number(text)
    if text and math.isnan(value):
        expected = "a finite number, or an empty cell for unknown"
        add_fault(faults, f"{row.where}: {column} is not a number", expected, repr(text[:40]))
    return value


def read_label(row: CsvRow, frame: int, targets: tuple[str, ...], faults: list[str]) -> Label | None:
    """Make a row's label of a frame; None if all its values are unknown."""
    values = {column: read_number(row, column, faults) for column in targets}
    box = _read_all_or_none(row, _BOX_COLUMNS, faults)
    position = _read_all_or_none(row, _POSITION_COLUMNS, faults)
    if box and not (box[0] < box[2] and box[1] < box[3]):
        add_fault(faults, f"{row.where}: not a box", "left < right and top < bottom", box)
    if not box and not position and not any(map(math.isfinite, values.values())):
        return None
    return Label(frame, values, box, position)


def _read_all_or_none(row: CsvRow, columns: tuple[str, ...], faults: list[str]) -> Any:
    """The numbers in columns that are either all filled or all empty, as a tuple; None if they are empty."""
    filled = [column for column in columns if row.cells.get(column)]
    if filled and len(filled) < len(columns):
        expected = f"all of {', '.join(columns)}, or none of them"
        add_fault(faults, f"{row.where}: incomplete", expected, f"only {', '.join(filled)}")
        return None
    values = tuple(read_number(row, column, faults) for column in filled)
    return values if values and all(map(math.isfinite, values)) else None
