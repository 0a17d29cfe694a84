"""What both entry points share: the config with its flags, and how errors reach the user."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from pydantic import ValidationError

from features._common.log import log_to_stderr
from features.config import Config, read_config
from features.errors import ConfigError, FramebankError
from features.strict_model import describe_validation_error


def config_with_flags(path: Path | str | None, flags: list[str], *, prog: str | None = None) -> Config:
    """The config in a TOML file (the defaults without one), overridden by `--section.field value` flags.

    Raises:
        ConfigError: the file or a flag is not as it should be. `--help` prints every flag and exits.
    """
    default = Config() if path is None else read_config(path)
    flags = [flag.capitalize() if flag in ("true", "false") else flag for flag in flags]  # as TOML writes them
    try:
        chosen = tyro.cli(Config, args=flags, default=default, prog=prog, config=(tyro.conf.FlagConversionOff,))
        return Config.model_validate(chosen.model_dump())
    except ValidationError as e:
        raise ConfigError(f"flags: {describe_validation_error(e, Config)}", hint="--help") from None


def run_command(main: Callable[[], int | None]) -> int:
    """Call `main` and turn what it raises into an exit status: 2 for what the user can hint, else Python's own 1."""
    log_to_stderr()
    try:
        return main() or 0
    except FramebankError as e:
        print(f"framebank: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("framebank: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as e:
        line = describe_os_error(e)
        if line is None:
            raise
        print(f"framebank: {line}", file=sys.stderr)
        return 2


def describe_os_error(error: OSError) -> str | None:
    """A line for what the operating system refused and the user can mend; None where it is a fault of ours."""
    where = f"{error.filename}: " if error.filename else ""
    reasons = {
        errno.ENOSPC: "the disk is full; finished work is kept. Try: free some space, then the same command",
        errno.EDQUOT: "the disk quota is used up; finished work is kept. Try: free some space, then the same command",
        errno.EROFS: "the folder is read-only. Try: give a path that can be written, e.g. --store",
        errno.ENOTDIR: "a file stands where a folder is needed. Try: give another path",
        errno.EEXIST: "a file stands where a folder is needed. Try: give another path",
        errno.EACCES: "no permission. Try: give a path that can be written, or change its permissions",
    }
    return where + reasons[error.errno] if error.errno in reasons else None
