"""CSV tables of labels: a header with column names, one row per label, an empty cell for an unknown value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from features._common.csv_table import CsvRow, read_csv_table
from features.sequences import Label
from stage1_extract.datasets.faults import fault_line

_BOX_COLUMNS = ("left", "top", "right", "bottom")
_POSITION_COLUMNS = ("x", "y")


@dataclass(frozen=True)
class LabelRow(CsvRow):
    """One row of a label table."""

    def number(self, column: str, faults: list[str]) -> float:
        """The number in a cell; NaN if it is empty or its column is absent, or, as a fault, if it is not a number."""
        text = self.cells.get(column, "")
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            expected = "a finite number, or an empty cell for unknown"
            faults.append(fault_line(f"{self.where}: {column} is not a number", expected=expected, got=repr(text)))
        return value

    def label(self, frame: int, targets: tuple[str, ...], faults: list[str]) -> Label | None:
        """Make the row's label of a frame; None if all its values are unknown."""
        values = {column: self.number(column, faults) for column in targets}
        box = self._numbers(_BOX_COLUMNS, faults)
        position = self._numbers(_POSITION_COLUMNS, faults)
        if box and not (box[0] < box[2] and box[1] < box[3]):
            faults.append(fault_line(f"{self.where}: not a box", expected="left < right and top < bottom", got=box))
            box = None
        if not box and not position and not any(map(math.isfinite, values.values())):
            return None
        return Label(
            frame,
            values,
            (box[0], box[1], box[2], box[3]) if box else None,
            (position[0], position[1]) if position else None,
        )

    def _numbers(self, columns: tuple[str, ...], faults: list[str]) -> list[float] | None:
        """The numbers in columns that are either all filled or all empty."""
        filled = [column for column in columns if self.cells.get(column)]
        if not filled:
            return None
        if len(filled) < len(columns):
            expected = f"all of {', '.join(columns)}, or none of them"
            faults.append(fault_line(f"{self.where}: incomplete", expected=expected, got=f"only {', '.join(filled)}"))
            return None
        values = [self.number(column, faults) for column in columns]
        return values if all(map(math.isfinite, values)) else None


@dataclass(frozen=True)
class LabelTable:
    """The columns and rows of a label table."""

    columns: tuple[str, ...]
    rows: tuple[LabelRow, ...]

    def targets(self, *reserved: str) -> tuple[str, ...]:
        """The target columns: all but the reserved ones, the box's and the position's."""
        return tuple(c for c in self.columns if c not in {*reserved, *_BOX_COLUMNS, *_POSITION_COLUMNS})


def read_label_csv(
    path: Path, faults: list[str], *, required: Sequence[str] = (), hint: str | None = None
) -> LabelTable:
    """Read the table of labels in a CSV file; a row with too few or too many cells is a fault.

    Raises:
        DataError: the file is missing or not CSV, or its header is bad; see `read_csv_table`.
    """
    table = read_csv_table(path, required=required, hint=hint, faults=faults)
    return LabelTable(table.columns, tuple(LabelRow(row.path, row.line, row.cells) for row in table.rows))
