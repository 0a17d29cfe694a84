"""CSV tables of labels: a header of column names, one row a label, an empty cell where a value is unknown."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from features.errors import DataError
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


def read_label_csv(path: Path, faults: list[str]) -> LabelTable:
    """The table in a CSV file; a row with too few or too many cells is a fault.

    Raises:
        DataError: missing, no text in UTF-8, no CSV, or a header with a column twice or without a name.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(_lines(csv.reader(file, strict=True)))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint="set data.path to the .csv") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: no CSV", expected="comma-separated UTF-8", got=e, hint=f"edit {path}") from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read", got=e.strerror or e, hint="check its permissions") from None
    if not lines:
        raise DataError(f"{path}: empty file", expected="a header and rows", got="nothing", hint=f"edit {path}")
    columns = tuple(lines[0][1])
    if "" in columns or len(set(columns)) < len(columns):
        got = ", ".join(c or "(no name)" for c in columns)
        raise DataError(f"{path}: bad header", expected="one name a column", got=got, hint=f"edit {path}")
    rows = []
    for number, cells in lines[1:]:
        where = f"{path}, line {number}"
        if len(cells) == len(columns):
            rows.append(LabelRow(where, dict(zip(columns, cells, strict=True))))
        else:
            faults.append(error_line(f"{where}: wrong number of cells", expected=len(columns), got=len(cells)))
    return LabelTable(columns, tuple(rows))


def _lines(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for cells in reader:
        if cells:
            yield reader.line_num, [c.strip() for c in cells]  # type: ignore[attr-defined]
