"""The base of all settings classes, reading them from TOML, and how their faults are described to the user."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from features._common.bounded_file import read_bounded
from features._common.plain_text import one_line
from features._common.strict_json import check_nesting
from features.errors import MAX_SHOWN, ConfigError, DataError
from features.limits import NESTING, TEXT_BYTES

LONGEST_SHOWN, LONGEST_MESSAGE = 80, 500  # characters of a wrong value or unknown key, and of what is wrong with it
_DEEP_KEY = re.compile(rf"""(?:(?:(?<![\w-])[\w-]++|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){{{NESTING}}}""")
DROP_UNKNOWN_KEYS = "drop unknown keys"  # a context for validation
AnyModel = TypeVar("AnyModel", bound="StrictModel")


class StrictModel(BaseModel):
    """A frozen model that refuses unknown keys and "3" as a number. The docstring below each field is its help text."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

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
        text = read_bounded(path, TEXT_BYTES).decode("utf-8-sig")
        if _DEEP_KEY.search(text):  # for which tomllib takes memory with the square of its length
            raise ValueError(f"a key of more than {NESTING} parts")
        value = tomllib.loads(text)
        check_nesting(value)
        return model.model_validate(value, context=context)
    except (FileNotFoundError, IsADirectoryError):
        folder = path if path.is_dir() else path.parent
        raise ConfigError(f"{path}: no such config", hint=f"ls {folder}/*.toml") from None
    except DataError as e:
        raise ConfigError(e.what, expected=e.expected, got=e.got, hint="another file") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested more than {NESTING} deep", hint=f"edit {path}") from None
    except ValidationError as e:
        raise ConfigError(f"{path}: {describe_validation_error(e)}", hint=f"edit {path}") from None
    except ValueError as e:  # not TOML, not UTF-8, a number of thousands of digits, or nested too deeply
        raise ConfigError(f"{path}: not TOML: {_shown(str(e))}", hint=f"edit {path}") from None


def describe_validation_error(error: ValidationError) -> str:
    """Describe each fault of a model: the key's full name, what is wrong with it, and the value it has."""
    clauses, faults = [], error.errors()
    for fault in faults[:MAX_SHOWN]:
        path = [_shown(str(part)) for part in fault["loc"]]
        if fault["type"] == "unknown_keys":
            known = fault["ctx"]["known"]
            unknown = fault["ctx"]["unknown"][:MAX_SHOWN]
            keys = [".".join([*path, _shown(key)]) + did_you_mean(_shown(key), known) for key in unknown]
            head = f" of {fault['input']['name']}" if path == ["head"] else ""
            clauses.append(
                f"unknown key{'s' * (len(keys) > 1)} {', '.join(keys)}; the keys{head} are {', '.join(known)}"
            )
        else:
            message = one_line(fault["msg"].removeprefix("Value error, "))[:LONGEST_MESSAGE]
            clauses.append(f"{'.'.join(path)}: {message[:1].lower()}{message[1:]}, got {_shown(repr(fault['input']))}")
    if len(faults) > MAX_SHOWN:
        clauses.append(f"and {len(faults) - MAX_SHOWN} more")
    return "; ".join(clauses)


def _shown(text: str) -> str:
    """Text from a file, short and on one line."""
    return one_line(text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` with the known word that is most similar to `word`; empty if none is similar."""
    nearest = difflib.get_close_matches(word[:LONGEST_SHOWN], list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


def similar_names(part: str, names: Sequence[str]) -> list[str]:
    """At most eight names that contain `part`, in any case; the last eight if none does."""
    return [name for name in names if part.lower() in name.lower()][:8] or list(names[-8:])
