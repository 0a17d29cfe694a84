"""The base of every settings class, and how its faults are described to the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys. The docstring below each field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


DESCRIBED = "described"  # type of the faults whose message is complete already


def described_fault(message: str) -> PydanticCustomError:
    """A fault for a validator to raise, whose message the user sees as it is."""
    return PydanticCustomError(DESCRIBED, "{message}", {"message": message})


def describe_validation_error(
    error: ValidationError, model: type[BaseModel], *, prefix: str = "", owner: str = ""
) -> str:
    """One clause per fault: the key's full name, what is wrong with it, and the value it has.

    Args:
        error: raised when a `model` was validated.
        prefix: put before each key, as in `head.`.
        owner: whose settings these are, as in `gru`; default: the section's.
    """
    clauses = []
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        key = prefix + ".".join(path)
        if fault["type"] == DESCRIBED:
            clauses.append(fault["msg"])
        elif fault["type"] == "extra_forbidden":
            known = [name for name in _fields(model, path[:-1]) if not owner or name != "name"]
            clauses.append(
                f"unknown key {key}{did_you_mean(path[-1], known)}, {owner + ' has' if owner else 'known are'} "
                f"{', '.join(known) or 'no settings'}"
            )
        else:
            message = fault["msg"].removeprefix("Value error, ")
            clauses.append(f"{key}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}")
    return "; ".join(clauses)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` with the known word that is most like `word`; empty where none is like it."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the section at `path`."""
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return list(model.model_fields)
