"""JSON without what readers disagree on: keys that occur twice, NaN, infinity, and numbers that overflow to it."""

from __future__ import annotations

import json
import math
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; a ValueError for what is none, a RecursionError for what is nested too deeply.

    >>> parse_json('{"size": [320, 180]}')
    {'size': [320, 180]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: JSON with the key 'a' twice
    """
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"JSON with the key {next(n for n in names if names.count(n) > 1)!r} twice")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"JSON with the number {text}")
    return value
