"""Read files of bounded size: one that is too large is refused before it is in memory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from features.errors import DataError


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        DataError: it is larger, or no regular file but a pipe or a device, which might never end.
        OSError: it cannot be read.
    """
    # without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise DataError(f"{path}: not a regular file", expected="a file", got="a pipe or a device")
        data = file.read(min(state.st_size, limit) + 1)
    check_size(path, len(data) if len(data) > limit else state.st_size, limit)
    return data


def check_size(where: object, size: int, limit: int) -> None:
    """Raise a DataError if something is larger than `limit` bytes."""
    if size > limit:
        raise DataError(f"{where}: too large", expected=f"at most {limit:,} bytes", got=f"{size:,}")
