"""Faults of a data set: errors that a scan collects as lines, so that all of them are shown at once."""

from __future__ import annotations

from features.errors import DataError


def add_fault(faults: list[str], what: str, expected: object, got: object) -> None:
    """Append a fault as one line, which begins with the file's path; the hint comes from the command."""
    faults.append(error_to_fault(DataError(what, expected=expected, got=got)))


def error_to_fault(error: DataError) -> str:
    """Turn an error into the line of a fault, without its hint."""
    return " ".join(str(DataError(error.what, expected=error.expected, got=error.got)).split())


def abbreviate(text: str) -> str:
    """Shorten a text to 60 characters, to show it in an error."""
    return text if len(text) <= 60 else text[:57] + "…"
