"""The base of all settings classes, and how their faults are described to the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys. The docstring below each field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


DESCRIBED = "described"  # the type of faults whose message is complete already


def described_fault(message: str) -> PydanticCustomError:
    """An error for a validator to raise, whose message the user sees as it is."""
    return PydanticCustomError(DESCRIBED, "{message}", {"message": message})


def describe_validation_error(
    error: ValidationError, model: type[BaseModel], *, prefix: str = "", owner: str = ""
) -> str:
    """Describe each fault of a `model`: the key's full name, what is wrong with it, and the value it has.

    Args:
        prefix: put before each key, as in `head.`.
        owner: whose settings these are, as in `gru`; default: the section's.
    """
    clauses = []
    unknown: dict[tuple[str, ...], list[str]] = {}  # by section
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        if fault["type"] == DESCRIBED:
            clauses.append(fault["msg"])
        elif fault["type"] == "extra_forbidden":
            unknown.setdefault(tuple(path[:-1]), []).append(path[-1])
        else:
            message = fault["msg"].removeprefix("Value error, ")
            clauses.append(f"{prefix}{'.'.join(path)}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}")
    for section, names in unknown.items():
        known = [name for name in _fields(model, section) if not owner or name != "name"]
        keys = [f"{prefix}{'.'.join([*section, name])}{did_you_mean(name, known)}" for name in names]
        subject = f"{owner} has" if owner else "the keys are"
        clauses.append(
            f"unknown key{'s' * (len(keys) > 1)} {', '.join(keys)}; {subject} {', '.join(known) or 'no settings'}"
        )
    return "; ".join(clauses)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` with the known word that is most similar to `word`; empty if none is similar."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def _fields(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The names of the fields in the section at `path`."""
    for part in path:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return list(model.model_fields)
