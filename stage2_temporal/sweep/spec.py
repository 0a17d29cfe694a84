"""A sweep: from its TOML to the runs it asks for. Nothing is trained here.

[sweep]
name = "heads"                                  # runs/heads/…
folds = 3
[[entries]]                                     # each a grid: the product of its lists
"head.name" = ["pooled_lstm", "flatten_lstm"]
"head.dense" = 32                               # one value holds throughout
"head.grid" = [[1, 1], [3, 4]]                  # where a setting is a list itself: a list of lists
[[entries]]                                     # with a distribution it is drawn from instead
draws = 20
"head.units" = { low = 16, high = 256, log = true }             # between whole numbers: whole
"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError, model_validator
from scipy.stats import loguniform, randint, uniform
from sklearn.model_selection import ParameterGrid, ParameterSampler

from features.config import Config
from features.errors import BadInputs, ConfigError
from features.strict_model import StrictModel, describe_validation_error
from stage2_temporal.runs.folder import run_settings

SECTIONS = ("window", "head", "train")  # what may vary on one store, and data.target
OWN = {"train.seed": "seeds", "train.folds": "folds", "train.fold": "folds"}
Setting = dict[str, Any]  # full name → value


class Distribution(StrictModel):
    """What a number is drawn from."""

    low: float | int
    """The smallest value."""
    high: float | int
    """The largest value."""
    log: bool = False
    """Each order of magnitude equally likely, instead of each value."""

    @model_validator(mode="after")
    def _ordered(self) -> Distribution:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic one needs low above 0, got {self.low}")
        return self

    @property
    def whole(self) -> bool:
        """Whether it gives whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def frozen(self) -> Any:
        """The same as scipy has it."""
        if self.log:
            return loguniform(self.low, self.high)
        return randint(self.low, self.high + 1) if self.whole else uniform(self.low, self.high - self.low)


class SweepPlan(StrictModel):
    """The `[sweep]` section."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "sweep"
    """Folder under runs/."""
    folds: int = Field(0, ge=0)
    """Cross-validate each setting in this many folds by sequence; 0: the task's own splits."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    """Train each setting with each of these; the first one also decides what is drawn."""
    jobs: int = Field(0, ge=0)
    """Runs at a time; 0: one a core."""
    limit: int = Field(0, ge=0)
    """Settings at most, drawn from all there are; 0: all."""
    minutes: float = Field(0.0, ge=0)
    """Begin no run after this long; 0: no limit. Settings then come in a drawn order."""
    reports: int = Field(3, ge=0)
    """Write a report for this many of the best settings."""


class Sweep(StrictModel):
    """A sweep's TOML."""

    sweep: SweepPlan = SweepPlan()
    entries: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


@dataclass(frozen=True)
class SweepEntry:
    """One run of a sweep: a setting with a seed on a fold."""

    name: str
    config: Config


def read_sweep(path: Path) -> Sweep:
    """The sweep in a TOML file.

    Raises:
        ConfigError: no such file, no TOML, an unknown key, or a value of the wrong kind.
    """
    try:
        return Sweep.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{path}: no such sweep", hint="--sweep configs/sweep.toml") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not TOML: {e}", hint=f"edit {path}") from None
    except ValidationError as e:
        raise ConfigError(f"{path}: {describe_validation_error(e, Sweep)}", hint=f"edit {path}") from None


def sweep_entries(sweep: Sweep, base: Config) -> tuple[SweepEntry, ...]:
    """Every run the sweep asks for, each once: setting after setting, and within one seed after seed, fold after fold.

    The same sweep and config give the same names; a name is made of what decides the run alone.

    Args:
        base: what the entries do not say.

    Raises:
        BadInputs: every fault of every entry.
    """
    plan, faults = sweep.sweep, []
    found: dict[str, Config] = {}
    for number, table in enumerate(sweep.entries, 1):
        try:
            for setting in expand_entry(table, plan.seeds[0]):
                config = _merged(base, setting)
                found.setdefault(f"{_slug(config.head.name)}-{_digest(config)}", config)
        except ConfigError as e:
            faults.append(f"entry {number}: {e}")
        except ValidationError as e:
            faults.append(f"entry {number}: {describe_validation_error(e, Config)}")
    if faults:
        raise BadInputs(f"{len(faults)} entries of the sweep are not as they should be", faults, hint="edit the sweep")
    names = list(found)
    if plan.limit or plan.minutes:
        order = np.random.default_rng(plan.seeds[0]).permutation(len(names))[: plan.limit or None]
        names = [names[i] for i in order]
    return tuple(
        SweepEntry(
            f"{name}-seed{seed}" + (f"-fold{fold}" if plan.folds else ""), _placed(found[name], seed, plan, fold)
        )
        for name in names
        for seed in plan.seeds
        for fold in range(plan.folds or 1)
    )


def expand_entry(table: dict[str, Any], seed: int) -> Iterator[Setting]:
    """The settings an entry stands for: the product of its lists, or `draws` from its lists and distributions.

    Raises:
        ConfigError: a key that a sweep cannot vary, a distribution that is none, or no `draws` where one is needed.
    """
    choices: dict[str, Any] = {}
    rounded = set()
    draws = table.get("draws", 0)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 0:
        raise ConfigError("draws", expected="a whole number", got=repr(draws))
    for key, value in _flat({k: v for k, v in table.items() if k != "draws"}):
        _check(key)
        if isinstance(value, dict):
            try:
                drawn = Distribution.model_validate(value)
            except ValidationError as e:
                raise ConfigError(f"{key}: {describe_validation_error(e, Distribution)}") from None
            choices[key] = drawn.frozen()
            rounded |= {key} if drawn.whole else set()
        else:
            choices[key] = value if isinstance(value, list) else [value]
            if not choices[key]:
                raise ConfigError(f"{key}: an empty list leaves nothing to try")
    lists = all(isinstance(value, list) for value in choices.values())
    if not lists and not draws:
        raise ConfigError("a distribution is drawn from, but not how often", expected="draws = N beside it")
    grid = ParameterGrid(choices) if lists else None
    if grid is not None and (not draws or draws >= len(grid)):
        yield from grid
        return
    for setting in ParameterSampler(choices, draws, random_state=seed):
        yield {k: round(v) if k in rounded else _plain(v) for k, v in setting.items()}


def _flat(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`head.units = 3` is a table in a table to TOML, `"head.units" = 3` is not; both are meant alike."""
    for key, value in table.items():
        if "." not in key and isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _check(key: str) -> None:
    if key in OWN:
        raise ConfigError(f"{key} is not an entry's to say", expected=f"{OWN[key]} under [sweep]")
    section, _, field = key.partition(".")
    if key != "data.target" and (section not in SECTIONS or not field):
        raise ConfigError(
            f"{key} cannot vary within a sweep",
            expected=", ".join(f"{s}.…" for s in SECTIONS)
            + " or data.target; other features are another store's sweep",
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _merged(base: Config, setting: Setting) -> Config:
    name = setting.get("head.name", base.head.name)
    head = base.head if name == base.head.name else base.head.renamed(name)
    value = base.model_dump() | {"head": head.model_dump()}
    value["data"]["also"] = ()
    for key, chosen in setting.items():
        section, _, field = key.partition(".")
        value[section][field] = chosen
    return Config.model_validate(value)


def _placed(config: Config, seed: int, plan: SweepPlan, fold: int) -> Config:
    train = config.train.model_copy(update={"seed": seed, "folds": plan.folds, "fold": fold})
    return config.model_copy(update={"train": train})


def _digest(config: Config) -> str:
    """What tells settings apart whatever their seed and fold."""
    value = json.loads(run_settings(config))
    for name in ("seed", "folds", "fold"):
        del value["train"][name]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name)
