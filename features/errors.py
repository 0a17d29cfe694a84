"""Errors the user can hint: what, expected, got, and the command or edit that mends it."""

from __future__ import annotations

MAX_SHOWN = 20  # faults printed at most: the rest would hide the hint


class FramebankError(Exception):
    """Something the user can mend; the entry points print it in one line and exit with status 2.

    Args:
        what: the sentence that says what is wrong, with the path where there is one.
        expected: what should have been there.
        got: what was there instead.
        hint: the command or the edit that puts it right.
    """

    def __init__(self, what: str, *, expected: object = None, got: object = None, hint: str | None = None) -> None:
        parts = [what.rstrip(".")]
        if expected is not None:
            parts.append(f"expected {expected}")
        if got is not None:
            parts.append(f"got {got}")
        line = "; ".join(parts)
        line += "" if line.endswith("?") else "."
        super().__init__(f"{line} Try: {hint}" if hint else line)
        self.what, self.expected, self.got, self.hint = what, expected, got, hint


class StoreError(FramebankError):
    """A store that cannot be read or does not fit what was asked of it."""


class DataError(FramebankError):
    """Clips, images, annotations or tables that are not as their layout says."""


class ConfigError(FramebankError):
    """A setting that is unknown, of the wrong kind, or at odds with another."""


class BadInputs(FramebankError):
    """Faults found in one pass: one line each, and the mend."""

    def __init__(self, what: str, faults: list[str], *, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.faults = faults

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return f"{self.faults[0]} Try: {self.hint}" if self.hint else self.faults[0]
        shown = self.faults[:MAX_SHOWN]
        more = [f"… and {len(self.faults) - MAX_SHOWN} more"] if len(self.faults) > MAX_SHOWN else []
        return "\n".join([*shown, *more, super().__str__()])
