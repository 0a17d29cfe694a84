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
    """Read a comma-separated file in UTF-8, with or without a byte order mark; empty lines are skipped.

    Args:
        required: columns that the header must have.
        hint: what to try, for every error; by default, to edit the file.
        faults: if given, a row with too few or too many cells is left out and described here in one line each.

    Raises:
        DataError: the file is missing, unreadable or not CSV, its header is bad or lacks a required column; or, without
            `faults`, a row has the wrong number of cells.
    """
    hint = hint or f"edit {path}"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=hint) from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: not a CSV file", expected="comma-separated text in UTF-8", got=e, hint=hint) from None
    except OSError as e:
        raise DataError(f"{path}: cannot be read", got=e.strerror or e, hint="check its permissions") from None
    if not lines:
        raise DataError(f"{path}: empty file", expected="a header and rows", got="nothing", hint=hint)
    columns = tuple(lines[0][1])
    if "" in columns or len(set(columns)) < len(columns):
        got = ", ".join(column or "(no name)" for column in columns)
        raise DataError(f"{path}: bad header", expected="a different name for each column", got=got, hint=hint)
    if missing := [column for column in required if column not in columns]:
        expected = f"the columns {', '.join(required)}"
        raise DataError(f"{path}: no column {', '.join(missing)}", expected=expected, got=", ".join(columns), hint=hint)
    rows = []
    for line, cells in lines[1:]:
        where = f"{path}, line {line}"
        if len(cells) == len(columns):
            rows.append(CsvRow(where, dict(zip(columns, cells, strict=True))))
            continue
        what, row_hint = f"{where}: wrong number of cells", hint if faults is None else None
        error = DataError(what, expected=len(columns), got=len(cells), hint=row_hint)
        if faults is None:
            raise error
        faults.append(str(error))
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
