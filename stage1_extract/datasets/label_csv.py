"""CSV tables of labels: a header of column names, one row a label, an empty cell where a value is unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from features._common.csv_table import read_csv_table
from features.sequences import Label
from stage1_extract.datasets.image_sequence import error_line

_BOX = ("left", "top", "right", "bottom")
_POSITION = ("x", "y")


@dataclass(frozen=True)
class LabelRow:
    """One row: where it stands (for faults) and its cells by column."""

    where: str
    cells: dict[str, str]

    def number(self, column: str, faults: list[str]) -> float:
        """The cell's number; NaN where it is empty or the column is absent, and for text, which is a fault."""
        text = self.cells.get(column, "")
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            expected = "a finite number, or an empty cell for unknown"
            faults.append(error_line(f"{self.where}: {column} is no number", expected=expected, got=repr(text)))
        return value

    def label(self, frame: int, targets: tuple[str, ...], faults: list[str]) -> Label | None:
        """The row's label; None where nothing is known of the frame."""
        values = {c: self.number(c, faults) for c in targets}
        box = self._together(_BOX, faults)
        position = self._together(_POSITION, faults)
        if box and not (box[0] < box[2] and box[1] < box[3]):
            faults.append(error_line(f"{self.where}: no box", expected="left < right and top < bottom", got=box))
            box = None
        if not box and not position and not any(math.isfinite(v) for v in values.values()):
            return None
        return Label(
            frame,
            values,
            (box[0], box[1], box[2], box[3]) if box else None,
            (position[0], position[1]) if position else None,
        )

    def _together(self, columns: tuple[str, ...], faults: list[str]) -> list[float] | None:
        given = [c for c in columns if self.cells.get(c)]
        if not given:
            return None
        if len(given) < len(columns):
            expected = f"{', '.join(columns)} together or none of them"
            faults.append(error_line(f"{self.where}: incomplete", expected=expected, got=f"only {', '.join(given)}"))
            return None
        values = [self.number(c, faults) for c in columns]
        return values if all(map(math.isfinite, values)) else None


@dataclass(frozen=True)
class LabelTable:
    """A CSV file's columns and rows."""

    columns: tuple[str, ...]
    rows: tuple[LabelRow, ...]

    def targets(self, *reserved: str) -> tuple[str, ...]:
        """The columns that are label columns: all but the reserved ones, the box's and the position's."""
        return tuple(c for c in self.columns if c not in {*reserved, *_BOX, *_POSITION})


def read_label_csv(
    path: Path, faults: list[str], *, required: Sequence[str] = (), hint: str | None = None
) -> LabelTable:
    """Read the table of labels in a CSV file; a row with too few or too many cells is a fault.

    Raises:
        DataError: see `features._common.csv_table.read_csv_table`.
    """
    table = read_csv_table(path, required=required, hint=hint, faults=faults)
    return LabelTable(table.columns, tuple(LabelRow(row.where, row.cells) for row in table.rows))
