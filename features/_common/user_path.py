"""Paths that begin with `~`."""

from __future__ import annotations

import os
from pathlib import Path


def expand_user(path: str | Path) -> Path:
    """The path with `~` replaced by the home folder; as it is where there is no such folder, as for a file ~name."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 — Path.expanduser raises RuntimeError
