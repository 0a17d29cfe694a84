"""Checks an output file before the work that it is for begins."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryFile

from features.errors import ConfigError


def check_output(path: Path, *inputs: Path, suffixes: Collection[str] = ()) -> None:
    """Raise ConfigError if an output file is a folder, is an input, or cannot be created.

    Args:
        inputs: files and folders that are read.
        suffixes: of the files in those folders that are read.
    """
    hint = "name a file in a folder that you can write to"
    if path.exists() and (not path.is_file() or any(_is_part(path, source, suffixes) for source in inputs)):
        problem = "is a folder" if path.is_dir() else "is the input" if path.is_file() else "is no regular file"
        raise ConfigError(f"{path}: {problem}, not an output file", hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written", got=e.strerror or e, hint=hint) from None


def _is_part(path: Path, source: Path, suffixes: Collection[str]) -> bool:
    """Whether an existing file is a source, or one of the files in it that are read."""
    if not source.exists():
        return False
    in_folder = source.is_dir() and path.suffix.lower() in suffixes and path.parent.samefile(source)
    return in_folder or path.samefile(source)
