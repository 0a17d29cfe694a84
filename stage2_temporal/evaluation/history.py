"""The course of a training: one row per epoch, as `history.csv` and `finetune.csv` hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from features._common.csv_table import format_number, parse_number, read_csv_table, write_csv_table
from features._common.plain_text import one_line
from features.errors import DataError


@dataclass(frozen=True)
class Epoch:
    """One epoch; NaN where unknown, as without validation examples."""

    epoch: int  # from 1; fine-tuning begins with 0, the model before its first step
    loss: float  # what training minimises
    rmse: float  # in the target's unit
    val_loss: float
    val_rmse: float
    seconds: float  # wall time


LARGEST_EPOCH = 1_000_000_000
COLUMNS = tuple(field.name for field in fields(Epoch))


def write_history(path: Path, history: Iterable[Epoch]) -> None:
    """Write a CSV file with one row per epoch."""
    write_csv_table(path, COLUMNS, ([format_number(value) for value in astuple(row)] for row in history))


def read_history(path: Path, hint: str) -> tuple[Epoch, ...]:
    """Read what `write_history` wrote; DataError with the hint if the file is missing or is not as that wrote it."""
    history = []
    for row in read_csv_table(path, required=COLUMNS, hint=hint).rows:
        try:
            number, *values = (row.cells[name] for name in COLUMNS)
            if not 0 <= (epoch := int(number)) <= LARGEST_EPOCH:
                raise ValueError(f"the epoch {number[:40]}")
            history.append(Epoch(epoch, *map(parse_number, values)))
        except ValueError as e:
            raise DataError(f"{row.where}: {one_line(str(e))[:200]}", hint=hint) from None
    return tuple(history)
