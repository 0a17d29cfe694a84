"""Read files that others made: only regular ones, and only up to a size."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from features.errors import DataError


def open_regular(path: Path, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        DataError: it is a pipe or a device, which might never end.
        OSError: it cannot be read.
    """

    def opener(name: str, flags: int) -> int:
        # without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", buffering, opener=opener)  # noqa: SIM115 — the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(f"{path}: not a regular file", expected="a file", got="a pipe or a device", hint="another file")
    return file


def require_regular(path: Path) -> None:
    """Raise what `open_regular` raises."""
    open_regular(path).close()


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        DataError: it is larger, or no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, limit) + 1)
    check_size(path, len(data) if len(data) > limit else size, limit)
    return data


def check_size(where: object, size: int, limit: int) -> None:
    """Raise a DataError if something is larger than `limit` bytes."""
    if size > limit:
        raise DataError(f"{where}: too large", expected=f"at most {limit:,} bytes", got=f"{size:,}")
