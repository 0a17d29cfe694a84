"""Whether a file can be written, before the work that it is to hold."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from features.errors import ConfigError


def check_writable(path: Path, *inputs: Path | None) -> None:
    """Raise ConfigError if an output file is a folder, is one of the inputs, or cannot be created."""
    hint = "name a file in a folder that you can write to"
    is_input = path.exists() and any(i is not None and i.exists() and path.samefile(i) for i in inputs)
    if path.exists() and (is_input or not path.is_file()):
        problem = "is the input" if is_input else "is a folder" if path.is_dir() else "is no regular file"
        raise ConfigError(f"{path}: {problem}, not an output file", hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written", got=e.strerror or e, hint=hint) from None
