"""JSON without what readers disagree on: keys that occur twice, NaN, infinity, and numbers that overflow to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from features._common.bounded_file import read_bounded
from features._common.plain_text import one_line
from features.errors import DataError
from features.limits import JSON_BYTES, LARGEST_NUMBER, NESTING

LONG_INTEGER = 19  # characters, which may be more than int64 holds
LARGEST_INTEGER = (1 << 63) - 1


def parse_json(text: str | bytes, *, any_number: bool = False) -> Any:
    """Parse JSON; a ValueError for what is none, is too large, or is nested too deeply, see `features.limits`.

    With `any_number`, NaN and numbers beyond `LARGEST_NUMBER` are let through, as floats, so that the caller can name
    their place.

    >>> parse_json('{"size": [320, 180]}')
    {'size': [320, 180]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: JSON with the key 'a' twice
    """
    if len(text) > JSON_BYTES:
        raise ValueError(f"JSON of {len(text):,} bytes; at most {JSON_BYTES:,} are read")
    try:
        hooks: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite}
        value = json.loads(text, object_pairs_hook=_unique, **({"parse_int": _any_integer} if any_number else hooks))
    except RecursionError:
        raise ValueError(f"JSON that is nested more than {NESTING} deep") from None
    check_nesting(value)
    return value


def read_json_file(path: Path, hint: str) -> Any:
    """Read a file like `parse_json`; a DataError with the hint if it cannot be read or is not JSON."""
    try:
        return parse_json(read_bounded(path, JSON_BYTES).decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=hint) from None
    except (OSError, ValueError) as e:
        got = one_line(getattr(e, "strerror", None) or str(e))
        raise DataError(f"{path}: not JSON", expected="JSON in UTF-8", got=got, hint=hint) from None


def check_nesting(value: Any) -> None:
    """Raise a ValueError if lists and tables are nested more than `NESTING` deep, or a whole number is beyond int64."""
    level = [value]
    for _ in range(NESTING + 1):
        groups = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        if not groups:
            return
        level = [child for group in groups for child in group if isinstance(child, dict | list | int)]
        if any(isinstance(v, int) and not -LARGEST_INTEGER <= v <= LARGEST_INTEGER for v in level):
            raise ValueError("a whole number beyond int64")
    raise ValueError(f"lists or tables nested more than {NESTING} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"JSON with the key {twice[:40]!r} twice")
    return value


def _any_integer(text: str) -> int | float:
    return int(text) if len(text) < LONG_INTEGER else float(text)


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) <= LARGEST_NUMBER:
        raise ValueError(f"JSON with the number {text[:40]}")
    return value
