"""Faults of a data set: errors that a scan collects as lines, so that all of them are shown at once."""

from __future__ import annotations

from features.errors import DataError


def fault_line(what: str, *, expected: object = None, got: object = None) -> str:
    """Describe a fault in one line, which begins with the file's path; the hint comes from the command."""
    return error_to_fault(DataError(what, expected=expected, got=got))


def error_to_fault(error: DataError) -> str:
    """Turn an error into the line of a fault, without its hint."""
    return " ".join(str(DataError(error.what, expected=error.expected, got=error.got)).split())
