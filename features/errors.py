"""Errors that the user can correct: what is wrong, what was expected, what was found, and what to try."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

REFUSALS = (  # errors that tell nothing of a file's bytes, since the machine has not read them
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
)
MAX_SHOWN = 20  # errors printed at most, so that the hint stays visible


class FramebankError(Exception):
    """An error the user can correct. Commands print it without a traceback and exit with status 2.

    Args:
        what: the sentence that says what is wrong, with the path if there is one.
        expected, got: what should be there, and what is there instead.
        hint: the command or edit that corrects it.
    """

    def __init__(self, what: str, *, expected: object = None, got: object = None, hint: str | None = None) -> None:
        parts = [] if expected is None else [f"expected {expected}"]
        if got is not None:
            is_list = str(expected).startswith(("one of ", "e.g. "))  # often long, so it comes last
            parts.insert(0 if is_list else 1, f"got {got}")
        line = "; ".join([what.rstrip("."), *parts])
        line += "" if line.endswith("?") else "."
        super().__init__(f"{line} Try: {hint}" if hint else line)
        self.what, self.expected, self.got, self.hint = what, expected, got, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (type(self), self.args, self.__dict__)  # pickle would call the class without its keywords


class StoreError(FramebankError):
    """A store that cannot be read, or lacks what a command needs."""


class DamagedStoreError(StoreError):
    """A store, or a part of one, whose bytes are not what was written, or could not have been written."""


class DataError(FramebankError):
    """Clips, images, annotations or tables that differ from what their layout requires."""


class ConfigError(FramebankError):
    """A setting that is unknown, of the wrong type, or in conflict with another."""


class BadInputs(FramebankError):
    """Several errors collected in one pass, one line each; `what` sums them up."""

    def __init__(self, what: str, faults: list[str], *, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.faults = faults

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"{self.faults[0]} Try: {self.hint}" if self.hint else self.faults[0]
        shown = self.faults[:MAX_SHOWN]
        more = [f"… and {len(self.faults) - MAX_SHOWN} more"] if len(self.faults) > MAX_SHOWN else []
        return "\n".join([*shown, *more, super().__str__()])


def _copy(kind: type[FramebankError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> FramebankError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


def raise_refusal(error: BaseException, path: Path) -> None:
    """Raise an OSError that names the file, if the machine refused to read it, which is not to be called damage."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
