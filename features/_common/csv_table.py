"""Read and write CSV files with a header; every error names the file and the line."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from features._common.bounded_file import check_size, open_regular
from features._common.console import logger
from features._common.plain_text import disarm_cell, one_line, rearm_cell
from features.errors import DataError
from features.limits import CSV_BYTES, CSV_CELLS, LARGEST_NUMBER

_DECIMAL_POINT = re.compile(r"[+-]?[0-9]*\.[0-9]+")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+(,[0-9]+)?([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})*")


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
    """Read a CSV file in UTF-8, or in UTF-16 with a byte order mark; empty lines are skipped.

    Cells are separated by commas, or by semicolons or tabs if the header has no comma, or by what a first line such as
    `sep=;` says. Where commas do not separate, they may be decimal: numbers then have points in their place. For the
    largest file and number of cells, see `features.limits`.

    Args:
        required: columns that the header must have.
        hint: what to try, for every error; by default, to edit the file.
        faults: if given, a row with too few or too many cells is left out and described here in one line each.

    Raises:
        DataError: the file cannot be read, its header is bad, or, without `faults`, a row has a wrong number of cells.
    """
    hint = hint or f"edit {path}"
    try:
        with open_regular(path) as raw, io.TextIOWrapper(raw, encoding=text_encoding(raw.read(2)), newline="") as file:
            check_size(path, os.fstat(raw.fileno()).st_size, CSV_BYTES)
            file.seek(0)
            before, header = next(((i, line.strip()) for i, line in enumerate(file, 1) if line.strip()), (0, ""))
            if (said := re.fullmatch("sep=(.)", header, re.IGNORECASE)) is None:  # by Excel
                file.seek(0)
                before = 0
            separator = said[1] if said else next((c for c in ",;\t" if c in header), ",")
            reader = csv.reader(file, strict=True, delimiter=separator)
            lines, count = [], 0
            for cells in reader:
                count += len(cells)
                if count > CSV_CELLS:
                    expected = f"at most {CSV_CELLS:,} cells"
                    raise DataError(f"{path}, line {before + reader.line_num}: too large", expected=expected, hint=hint)
                if cells:
                    lines.append((before + reader.line_num, [rearm_cell(cell.strip()) for cell in cells]))
    except OSError as e:
        raise DataError(f"{path}: {(e.strerror or str(e)).lower()}", hint=hint) from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(
            f"{path}: not a CSV file", expected="comma-separated text in UTF-8", got=one_line(str(e)), hint=hint
        ) from None
    columns = tuple(lines.pop(0)[1]) if lines else ()
    header = textwrap.shorten(one_line(", ".join(columns)), 200, placeholder=" …") or "nothing"
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
    if separator != "," and (changed := _use_points(columns, [row.cells for row in rows], separator)):
        logger.info(f"{path}: the commas in {', '.join(changed)} are read as decimal points")
    return CsvTable(columns, tuple(rows))


def text_encoding(start: bytes) -> str:
    """The encoding of a text by its first two bytes: UTF-16 if they are its byte order mark, else UTF-8."""
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _use_points(columns: Sequence[str], rows: list[dict[str, str]], separator: str) -> list[str]:
    """Replace decimal commas by points in columns of numbers, if they are that beyond doubt; return these columns."""
    if any(_DECIMAL_POINT.fullmatch(cell) for row in rows for cell in row.values()):
        return []
    changed = []
    for column in columns:
        cells = [row[column] for row in rows if row[column]]
        with_comma = [cell for cell in cells if "," in cell]
        clear = separator == ";" or not all(_THOUSANDS.fullmatch(cell) for cell in with_comma)
        if with_comma and clear and all(_DECIMAL_COMMA.fullmatch(cell) for cell in cells):
            changed.append(column)
            for row in rows:
                row[column] = row[column].replace(",", ".")
    return changed


def write_csv_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a header and rows as comma-separated text in UTF-8.

    Text that a spreadsheet would take for a formula begins with an apostrophe, which `read_csv_table` takes away.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(disarm_cell, columns))
        writer.writerows(map(disarm_cell, row) for row in rows)


def format_number(value: float) -> str:
    """Format a number so that it reads back unchanged; empty for NaN and infinity."""
    if isinstance(value, int):
        return str(value)
    return repr(float(value)) if math.isfinite(value) else ""


def parse_number(text: str) -> float:
    """Read what `format_number` wrote; NaN for an empty text, a ValueError for what it does not write."""
    value = float(text) if text else math.nan
    if text and not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"a number up to {LARGEST_NUMBER:g} was expected, not {text[:40]!r}")
    return value
