"""Read and write CSV files with a header; every error names the file and the line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from features.errors import DataError


@dataclass(frozen=True)
class CsvRow:
    """One row of a CSV file: its file and last line, to begin an error with, and its stripped cells by column name."""

    where: str
    cells: dict[str, str]


@dataclass(frozen=True)
class CsvTable:
    """The column names of a CSV file, in order, and its rows."""

    columns: tuple[str, ...]
    rows: tuple[CsvRow, ...]


def read_csv_table(
    path: Path, *, required: Sequence[str] = (), hint: str | None = None, faults: list[str] | None = None
) -> CsvTable:
    """Read a CSV file in UTF-8, with or without a byte order mark; empty lines are skipped.

    Cells are separated by commas, or by semicolons or tabs if the header has no comma.

    Args:
        required: columns that the header must have.
        hint: what to try, for every error; by default, to edit the file.
        faults: if given, a row with too few or too many cells is left out and described here in one line each.

    Raises:
        DataError: the file cannot be read, its header is bad, or, without `faults`, a row has a wrong number of cells.
    """
    hint = hint or f"edit {path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next((line for line in file if line.strip()), "")
            file.seek(0)
            separator = next((c for c in ",;\t" if c in header), ",")
            reader = csv.reader(file, strict=True, delimiter=separator)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except OSError as e:
        raise DataError(f"{path}: {(e.strerror or str(e)).lower()}", hint=hint) from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: not a CSV file", expected="comma-separated text in UTF-8", got=e, hint=hint) from None
    columns = tuple(lines.pop(0)[1]) if lines else ()
    header = ", ".join(columns) or "nothing"
    if not columns or "" in columns or len(set(columns)) < len(columns):
        raise DataError(f"{path}: bad header", expected="a different name for each column", got=header, hint=hint)
    if missing := [column for column in required if column not in columns]:
        expected = f"the columns {', '.join(required)}"
        raise DataError(f"{path}: no column {', '.join(missing)}", expected=expected, got=header, hint=hint)
    rows = []
    for line, cells in lines:
        where = f"{path}, line {line}"
        if len(cells) == len(columns):
            rows.append(CsvRow(where, dict(zip(columns, cells, strict=True))))
        elif faults is None:
            raise DataError(f"{where}: wrong number of cells", expected=len(columns), got=len(cells), hint=hint)
        else:
            faults.append(f"{where}: wrong number of cells; expected {len(columns)}; got {len(cells)}.")
    return CsvTable(columns, tuple(rows))


def write_csv_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a header and rows as comma-separated text in UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def format_number(value: float) -> str:
    """Format a number so that it reads back unchanged; empty for NaN and infinity."""
    if isinstance(value, int):
        return str(value)
    return repr(float(value)) if math.isfinite(value) else ""


def parse_number(text: str) -> float:
    """Read what `format_number` wrote; NaN for an empty text."""
    return float(text) if text else math.nan
