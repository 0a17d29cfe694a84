"""What a sweep trains: reads its TOML file, which docs/sweep.md explains, and expands it into runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from scipy.stats import loguniform, randint, uniform
from sklearn.model_selection import ParameterGrid, ParameterSampler

from features.config import Config
from features.errors import BadInputs, ConfigError
from features.limits import PROCESSES, SWEEP_RUNS
from features.strict_model import StrictModel, describe_validation_error
from stage2_temporal.runs.folder import run_settings

SWEPT_SECTIONS = ("window.", "head.", "train.")  # these may vary on one store, and so may data.target
PLAN_KEYS = {"train.seed": "seeds", "train.folds": "folds", "train.fold": "folds"}  # set under [sweep]
Bound = Annotated[float | int, Field(ge=-1e15, le=1e15)]
Settings = dict[str, Any]  # full name → value


class Distribution(StrictModel):
    """The distribution that a number is drawn from."""

    low: Bound
    """The smallest value."""
    high: Bound
    """The largest value."""
    log: bool = False
    """Make each order of magnitude equally likely, instead of each value."""

    @model_validator(mode="after")
    def _ordered(self) -> Distribution:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"with log = true, low must be above 0, got {self.low}")
        return self

    def rvs(self, random_state: Any) -> float | int:
        """Draw a number, a whole one between whole numbers; scikit-learn's ParameterSampler calls this."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        if self.log:
            value = loguniform.rvs(self.low, self.high, random_state=random_state)
        elif whole:
            value = randint.rvs(self.low, self.high + 1, random_state=random_state)
        else:
            value = uniform.rvs(self.low, self.high - self.low, random_state=random_state)
        return round(value) if whole else float(value)


class SweepPlan(StrictModel):
    """The `[sweep]` section."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "sweep"
    """Name of the folder in runs/."""
    folds: int = Field(0, ge=0)
    """Cross-validate in this many folds, split by sequence; 0: use the data set's splits."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    """Train with each of these seeds; the first one also seeds the random draws."""
    search: Literal["random", "optuna"] = "random"
    """How settings are chosen: `random` tries what the entries list, or random draws; `optuna` learns from finished
    runs where to draw the next (TPE), and stops hopeless ones early."""
    pruner: Literal["median", "asha", "none"] = "median"
    """With `optuna`, stop a run whose validation error is above the median at that epoch (`median`), or not in the best
    third after each third of the epochs (`asha`, asynchronous successive halving); `none`: never."""
    jobs: int = Field(0, ge=0, le=PROCESSES)
    """Runs at a time; 0: one per core."""
    limit: int = Field(0, ge=0)
    """Try at most this many settings, drawn at random from all; 0: all."""
    minutes: float = Field(0.0, ge=0)
    """Start no run after this many minutes, and try settings in random order; 0: no limit."""
    reports: int = Field(3, ge=0)
    """Number of the best settings to write a report for."""


class Sweep(StrictModel):
    """A sweep's TOML file."""

    sweep: SweepPlan = SweepPlan()
    entries: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]


@dataclass(frozen=True)
class EntrySpace:
    """What an entry varies.

    Attributes:
        choices: setting → the values to choose from, or the distribution to draw from.
        draws: number of random draws; 0: every combination.
    """

    choices: dict[str, list[Any] | Distribution]
    draws: int

    @property
    def size(self) -> int | None:
        """The number of combinations; None if there is a distribution."""
        lists = [values for values in self.choices.values() if isinstance(values, list)]
        return math.prod(map(len, lists)) if len(lists) == len(self.choices) else None

    @property
    def trials(self) -> int | None:
        """How many settings the entry asks for; None if it does not say."""
        return min(filter(None, (self.draws, self.size)), default=None)


def sweep_entries(sweep: Sweep, base: Config) -> dict[str, Config]:
    """Expand a sweep into its runs by name, ordered by settings, then seed, then fold; BadInputs lists all errors.

    A name depends only on what decides the run. `base` has the settings that the entries leave out.
    """
    plan, errors = sweep.sweep, []
    configs: dict[str, Config] = {}
    for number, table in enumerate(sweep.entries, 1):
        try:
            for settings in expand_entry(table, plan.seeds[0]):
                config = apply_settings(base, settings)
                configs.setdefault(settings_name(config), config)
        except (ConfigError, ValidationError) as e:
            errors.append(_entry_error(number, e))
    if errors:
        raise _bad_entries(errors)
    names = list(configs)
    if plan.limit or plan.minutes:
        order = np.random.default_rng(plan.seeds[0]).permutation(len(names))[: plan.limit or None]
        names = [names[i] for i in order]
    _check_count(len(names) * len(plan.seeds) * max(plan.folds, 1))
    return {run: config for name in names for run, config in repeats(plan, name, configs[name]).items()}


def search_spaces(sweep: Sweep, base: Config) -> list[EntrySpace]:
    """What each entry of a sweep varies, for a search; BadInputs lists all errors, also in single values."""
    spaces, errors = [], []
    targets: set[tuple[str, ...]] = set()
    for number, table in enumerate(sweep.entries, 1):
        try:
            space = read_entry(table)
            targets |= {apply_settings(base, settings).data.columns for settings in probes(space)}
            if len(targets) > 1:
                raise ConfigError("data.target cannot vary in a search", expected="a sweep for each target")
            if not (space.trials or sweep.sweep.limit or sweep.sweep.minutes):
                raise ConfigError("an entry with a distribution needs a number of draws", expected="draws = N")
            spaces.append(space)
        except (ConfigError, ValidationError) as e:
            errors.append(_entry_error(number, e))
    if errors:
        raise _bad_entries(errors)
    return spaces


def probes(space: EntrySpace) -> Iterator[Settings]:
    """Settings in which each value of an entry occurs, and the ends of each distribution."""
    values = {k: v if isinstance(v, list) else [v.low, v.high] for k, v in space.choices.items()}
    for i in range(max(map(len, values.values()), default=0)):
        yield {name: options[min(i, len(options) - 1)] for name, options in values.items()}


def apply_settings(base: Config, settings: Settings) -> Config:
    """The config with an entry's settings; ConfigError or ValidationError for wrong ones."""
    return base.with_settings({"data.also": (), **settings})


def settings_name(config: Config) -> str:
    """The name of a config's runs without seed and fold: its head, and a digest of all that decides them."""
    decisive = json.loads(run_settings(config))
    for name in ("seed", "folds", "fold"):
        del decisive["train"][name]
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    head = re.sub(r"\W+", "-", config.head.name)
    return f"{head}-{digest}"


def repeats(plan: SweepPlan, name: str, config: Config) -> dict[str, Config]:
    """The runs of one choice of settings by name: each seed on each fold."""
    entries = {}
    for seed, fold in itertools.product(plan.seeds, range(plan.folds or 1)):
        repeat = {"train.seed": seed, "train.folds": plan.folds, "train.fold": fold}
        entries[f"{name}-seed{seed}" + (f"-fold{fold}" if plan.folds else "")] = config.with_settings(repeat)
    return entries


def _check_count(runs: int) -> None:
    if runs > SWEEP_RUNS:
        raise ConfigError("too many runs", expected=f"at most {SWEEP_RUNS:,}", got=f"{runs:,}", hint="draws = N")


def expand_entry(table: dict[str, Any], seed: int) -> Iterator[Settings]:
    """Expand an entry into settings: every combination of its lists, or `draws` random draws; errors as `read_entry`.

    Also a ConfigError if a distribution has no `draws`.
    """
    space = read_entry(table)
    _check_count(space.draws or space.size or 0)
    if space.size is None and not space.draws:
        raise ConfigError("an entry with a distribution needs a number of draws", expected="draws = N")
    if space.size is not None and (not space.draws or space.draws >= space.size):
        return iter(ParameterGrid(space.choices))
    return iter(ParameterSampler(space.choices, space.draws, random_state=seed))


def read_entry(table: dict[str, Any]) -> EntrySpace:
    """Read what an entry varies.

    A ConfigError if a key cannot vary or a list is empty, a ValidationError if a distribution is wrong.
    """
    choices: dict[str, Any] = {}
    draws = table.get("draws", 0)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 0:
        raise ConfigError("draws: wrong value", expected="a whole number, 0 or more", got=repr(draws))
    named: Settings = {}
    for key, value in table.items():
        # TOML reads `head.units = 3` as a table within a table
        is_section = "." not in key and isinstance(value, dict)
        named |= {f"{key}.{name}": inner for name, inner in value.items()} if is_section else {key: value}
    named.pop("draws", None)
    for key, value in named.items():
        if key in PLAN_KEYS:
            raise ConfigError(f"{key} cannot be set in an entry", expected=f"{PLAN_KEYS[key]} under [sweep]")
        if key != "data.target" and not key.startswith(SWEPT_SECTIONS):
            expected = f"{'…, '.join(SWEPT_SECTIONS)}… or data.target"
            raise ConfigError(f"{key} cannot vary within a sweep, which trains on one store", expected=expected)
        if isinstance(value, dict):
            choices |= TypeAdapter(dict[str, Distribution]).validate_python({key: value})
        else:
            choices[key] = value if isinstance(value, list) else [value]
            if not choices[key]:
                raise ConfigError(f"{key}: the list is empty", expected="at least one value")
    return EntrySpace(choices, draws)


def _entry_error(number: int, error: ConfigError | ValidationError) -> str:
    fault = describe_validation_error(error) if isinstance(error, ValidationError) else error
    return f"entry {number}: {fault}"


def _bad_entries(errors: list[str]) -> BadInputs:
    return BadInputs(f"{len(errors)} entries of the sweep have errors", errors, hint="edit the sweep's TOML file")
