"""The base of all settings classes, reading them from TOML, and how their faults are described to the user."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from features.errors import ConfigError

DROP_UNKNOWN_KEYS = "drop unknown keys"  # a context for validation
AnyModel = TypeVar("AnyModel", bound="StrictModel")


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and "3" as a number. The docstring below each field is its help text."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        unknown = [key for key in values if key not in cls.model_fields]
        if unknown and info.context != DROP_UNKNOWN_KEYS:
            context = {"unknown": unknown, "known": list(cls.model_fields)}
            raise PydanticCustomError("unknown_keys", "unknown keys", context)
        # TOML has lists, which strict models do not take as tuples
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k not in unknown}


def read_toml(model: type[AnyModel], path: Path, context: str | None = None) -> AnyModel:
    """Read a TOML file as a `model`, or raise a ConfigError; the context `DROP_UNKNOWN_KEYS` drops unknown keys."""
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")), context=context)
    except (FileNotFoundError, IsADirectoryError):
        folder = path if path.is_dir() else path.parent
        raise ConfigError(f"{path}: no such config", hint=f"ls {folder}/*.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML: {e}", hint=f"edit {path}") from None
    except ValidationError as e:
        raise ConfigError(f"{path}: {describe_validation_error(e)}", hint=f"edit {path}") from None


def describe_validation_error(error: ValidationError) -> str:
    """Describe each fault of a model: the key's full name, what is wrong with it, and the value it has."""
    clauses = []
    for fault in error.errors():
        path = [str(part) for part in fault["loc"]]
        if fault["type"] == "unknown_keys":
            known = fault["ctx"]["known"]
            keys = [".".join([*path, key]) + did_you_mean(key, known) for key in fault["ctx"]["unknown"]]
            head = f" of {fault['input']['name']}" if path == ["head"] else ""
            clauses.append(
                f"unknown key{'s' * (len(keys) > 1)} {', '.join(keys)}; the keys{head} are {', '.join(known)}"
            )
        else:
            message = fault["msg"].removeprefix("Value error, ")
            clauses.append(f"{'.'.join(path)}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}")
    return "; ".join(clauses)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` with the known word that is most similar to `word`; empty if none is similar."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def similar_names(part: str, names: Sequence[str]) -> list[str]:
    """At most eight names that contain `part`, in any case; the last eight if none does."""
    return [name for name in names if part.lower() in name.lower()][:8] or list(names[-8:])
