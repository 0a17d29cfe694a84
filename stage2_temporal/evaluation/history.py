"""The course of a training: one row per epoch, as `history.csv` and `finetune.csv` hold it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from features._common.csv_table import format_number, parse_number, read_csv_table, write_csv_table
from features.errors import DataError


@dataclass(frozen=True)
class Epoch:
    """One epoch; NaN where unknown, as without validation examples.

    Attributes:
        epoch: number from 1; fine-tuning begins with 0, the model before its first step.
        loss, val_loss: what training minimises, on the training and the validation examples.
        rmse, val_rmse: root mean squared error in the target's unit.
        seconds: wall time.
    """

    epoch: int
    loss: float
    rmse: float
    val_loss: float
    val_rmse: float
    seconds: float


COLUMNS = tuple(field.name for field in fields(Epoch))


def write_history(path: Path, history: Iterable[Epoch]) -> None:
    """Write a CSV file with one row per epoch."""
    write_csv_table(path, COLUMNS, ([format_number(value) for value in astuple(row)] for row in history))


def read_history(path: Path, hint: str) -> tuple[Epoch, ...]:
    """Read what `write_history` wrote; every error gets the hint.

    Raises:
        DataError: the file is missing, lacks a column or contains a value that is not a number.
    """
    history = []
    for row in read_csv_table(path, required=COLUMNS, hint=hint).rows:
        try:
            number, *values = (row.cells[name] for name in COLUMNS)
            history.append(Epoch(int(number), *map(parse_number, values)))
        except ValueError as e:
            raise DataError(f"{row.where}: {e}", hint=hint) from None
    return tuple(history)
