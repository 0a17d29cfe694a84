"""The study of a search: which settings were tried, and which to try next. It is Optuna's, which is an extra.

All processes of a sweep, on one machine or several, share it through the file `study.journal` in the sweep's folder. A
trial is one choice of settings. It belongs to the process that claimed it; if that process ends, another one continues
the trial. What a trial tries depends only on the seed, its number and the trials before it, so that an interrupted
search with one job goes on as it would have.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from features._common.atomic import exclusive_write_lock
from features._common.bounded_file import check_size, open_regular
from features._common.extras import require_package
from features._common.leftovers import writer_has_ended, writer_name
from features._common.plain_text import is_plain_name, one_line
from features.config import Config
from features.errors import ConfigError, FramebankError, raise_refusal
from features.limits import FILE_BYTES
from stage2_temporal.report.search_plots import SearchedSetting
from stage2_temporal.sweep.spec import (
    Distribution,
    EntrySpace,
    Settings,
    SweepPlan,
    apply_settings,
    repeats,
    settings_name,
)

JOURNAL = "study.journal"
STUDY = "sweep"
ENTRY = "entry"  # the parameter that says which entry a trial's settings are from, if there are several
RUNGS = 3  # of `asha`: a run is compared after 1/9, 1/3 and all of its epochs
LOCK_SECONDS = 60.0
MIN_TRIALS = 6  # for importances
MAX_REPEATED = 100  # trials that may repeat the settings of earlier ones


@dataclass(frozen=True)
class SearchTrial:
    """A choice of settings that this process is to train.

    Attributes:
        number: of the trial, from 0.
        name: of its runs, without seed and fold.
        runs: their names and configs.
    """

    number: int
    name: str
    runs: Mapping[str, Config]


@dataclass(frozen=True)
class TrialRecord:
    """What became of a trial: `complete`, `pruned`, `failed` or `running`."""

    number: int
    name: str
    state: str
    skill: float  # mean over its runs on the validation split; that of the last epoch if pruned, NaN if unknown
    parameters: Mapping[str, Any]
    runs: tuple[str, ...]


@dataclass
class SweepStudy:
    """A search in a sweep's folder; pickled, it opens the same file elsewhere.

    Args:
        folder: of the sweep.
        plan: its `[sweep]` section.
        spaces: what each of its entries varies.
        base: the config with all other settings.
        origin: what else decides the results, such as the store's fingerprint.
    """

    folder: Path
    plan: SweepPlan
    spaces: Sequence[EntrySpace]
    base: Config
    origin: str = ""
    writer: str = field(default_factory=writer_name)
    failed: set[str] = field(default_factory=set)  # names of settings that failed in this call

    @property
    def trials(self) -> float:
        """How many different settings to try; infinite if only time limits them."""
        counts = [space.trials for space in self.spaces]
        return self.plan.limit or (math.inf if None in counts else sum(filter(None, counts)))

    @cached_property
    def study(self) -> Any:
        """Optuna's study; made if there is none yet.

        A ConfigError if Optuna is not installed, or the study in the folder is of other settings.
        """
        require_package("optuna", "search", 'search = "optuna"')
        optuna = _optuna()
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive_write_lock(self.folder / "study", LOCK_SECONDS), self._journal_errors():
            if self._journal.exists():
                with open_regular(self._journal) as file:
                    check_size(self._journal, os.fstat(file.fileno()).st_size, FILE_BYTES)
            backend = optuna.storages.journal.JournalFileBackend(str(self._journal))
            storage = optuna.storages.JournalStorage(backend)
            study = optuna.create_study(
                storage=storage,
                study_name=STUDY,
                direction="maximize",
                pruner=self._pruner(optuna),
                load_if_exists=True,
            )
            stored = study.user_attrs.get("settings")
            if stored is None:
                study.set_user_attr("settings", self._digest)
            elif stored != self._digest:
                raise ConfigError(
                    f"{self._journal}: a search over other settings, whose skills are not comparable",
                    hint="another name under [sweep], or delete this folder",
                )
            for trial in study.get_trials(deepcopy=False):
                _check_trial(trial)
        return study

    @property
    def _journal(self) -> Path:
        return self.folder / JOURNAL

    @contextmanager
    def _journal_errors(self) -> Iterator[None]:
        """Turn what Optuna raises for a damaged journal into a ConfigError."""
        try:
            yield
        except (FramebankError, MemoryError):
            raise
        except Exception as e:
            raise_refusal(e, self._journal)
            got = one_line(" ".join(f"{type(e).__name__}: {e}".split())[:200])
            hint = "another name under [sweep], or delete this folder"
            raise ConfigError(f"{self._journal}: damaged", expected="a search", got=got, hint=hint) from None

    @property
    def _digest(self) -> str:
        """What must be equal for trials to be comparable."""
        choices = [
            {k: v.model_dump() if isinstance(v, Distribution) else v for k, v in space.choices.items()}
            for space in self.spaces
        ]
        settings = self.base.model_dump(mode="json", include={"window", "head", "train"})
        repeated = {"seeds": self.plan.seeds, "folds": self.plan.folds, "target": self.base.data.columns}
        return json.dumps([choices, settings, repeated, self.origin], sort_keys=True)

    def _pruner(self, optuna: Any) -> Any:
        if self.plan.pruner == "none":
            return optuna.pruners.NopPruner()
        epochs = self.base.train.epochs
        if self.plan.pruner == "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=epochs // 3, n_min_trials=4)
        first = max(1, round(epochs / 3 ** (RUNGS - 1)))
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)

    def _sampler(self, optuna: Any, number: int) -> Any:
        """The sampler of one trial; random for the first ones, a quarter of all but at most ten."""
        seed = int(np.random.SeedSequence((self.plan.seeds[0], number)).generate_state(1)[0])
        startup = 10 if math.isinf(self.trials) else min(10, max(4, int(self.trials) // 4))
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)

    def claim(self) -> SearchTrial | None:
        """Take over a trial whose process has ended, or begin a new one; None if there are as many as are to be."""
        optuna, study = _optuna(), self.study
        running = optuna.trial.TrialState.RUNNING
        with exclusive_write_lock(self.folder / "study", LOCK_SECONDS), self._journal_errors():
            for record in study.get_trials(deepcopy=False, states=(running,)):
                age = time.time() - record.datetime_start.timestamp()
                if writer_has_ended(record.user_attrs.get("writer", ""), age):
                    study.sampler = self._sampler(optuna, record.number)
                    return self._begin(optuna.trial.Trial(study, record._trial_id))
            while True:
                trials = study.get_trials(deepcopy=False)
                failed = optuna.trial.TrialState.FAIL
                names = {t.user_attrs.get("name"): t for t in reversed(trials) if t.state != failed}
                if len(names.keys() | self.failed) >= self.trials or len(trials) >= self.trials + MAX_REPEATED:
                    return None
                study.sampler = self._sampler(optuna, len(trials))
                trial = self._begin(study.ask())
                if (equal := names.get(trial.name)) is None:
                    return trial
                # the same settings need no second training
                state = failed if equal.state == running else equal.state
                value = equal.value if state == optuna.trial.TrialState.COMPLETE else None
                study.tell(trial.number, value, state)

    def _begin(self, trial: Any) -> SearchTrial:
        """Choose a trial's settings, unless they are chosen, and make it this process's."""
        config = apply_settings(self.base, self._suggest(trial))
        name = settings_name(config)
        runs = repeats(self.plan, name, config)
        trial.set_user_attr("name", name)
        trial.set_user_attr("runs", list(runs))
        trial.set_user_attr("writer", self.writer)
        return SearchTrial(trial.number, name, runs)

    def _suggest(self, trial: Any) -> Settings:
        number, several = 0, len(self.spaces) > 1
        if several:
            number = trial.suggest_categorical(ENTRY, list(range(1, len(self.spaces) + 1))) - 1
        settings: Settings = {}
        for name, values in self.spaces[number].choices.items():
            parameter = f"{name} ({ENTRY} {number + 1})" if several else name
            if isinstance(values, Distribution):
                whole = isinstance(values.low, int) and isinstance(values.high, int)
                suggest = trial.suggest_int if whole else trial.suggest_float
                settings[name] = suggest(parameter, values.low, values.high, log=values.log)
            elif len(values) == 1:
                settings[name] = values[0]
            else:
                by_text = {v if isinstance(v, str | int | float) else json.dumps(v): v for v in values}
                settings[name] = by_text[trial.suggest_categorical(parameter, list(by_text))]
        return settings

    def trial(self, number: int) -> Any:
        """Optuna's object for a trial that was claimed, to report to."""
        trials = self.study.get_trials(deepcopy=False)
        return _optuna().trial.Trial(self.study, trials[number]._trial_id)

    def reported_epochs(self, number: int) -> set[int]:
        """The epochs after which a trial has reported."""
        return set(self.study.get_trials(deepcopy=False)[number].intermediate_values)

    def tell(self, number: int, skill: float | None, state: str) -> None:
        """Record how a trial ended: `complete` with its skill, `pruned` or `fail`."""
        states = _optuna().trial.TrialState
        self.study.tell(number, skill, states[state.upper()], skip_if_finished=True)

    def release(self) -> None:
        """Give up the trials that this process claimed and did not finish, so that others can continue them."""
        running = _optuna().trial.TrialState.RUNNING
        for record in self.study.get_trials(deepcopy=False, states=(running,)):
            if record.user_attrs.get("writer") == self.writer:
                _optuna().trial.Trial(self.study, record._trial_id).set_user_attr("writer", "")

    def records(self) -> list[TrialRecord]:
        """What became of each trial, by number; those that repeat another's settings are left out."""
        records: dict[str, TrialRecord] = {}
        with self._journal_errors():  # whose names may be of any type
            for trial in self.study.get_trials(deepcopy=False):
                if (name := trial.user_attrs.get("name")) is None:
                    continue
                state = {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())
                last = trial.intermediate_values.get(trial.last_step, math.nan)
                skill = trial.value if state == "complete" else last
                record = TrialRecord(trial.number, name, state, skill, trial.params, tuple(trial.user_attrs["runs"]))
                if name not in records or records[name].state == "failed":
                    records[name] = record
        return list(records.values())

    def searched_settings(self) -> list[SearchedSetting]:
        """What each setting that was varied did, the most important first; one list for all entries."""
        trials = [r for r in self.records() if r.state in ("complete", "pruned") and math.isfinite(r.skill)]
        importances = self._importances()
        settings = []
        for name in dict.fromkeys(name for record in trials for name in record.parameters):
            records = [r for r in trials if name in r.parameters]
            values: list[Any] = [r.parameters[name] for r in records]
            options: tuple[str, ...] = ()
            if any(isinstance(value, str | bool) for value in values) or name == ENTRY:
                known = sorted(set(values), key=str)
                options = tuple(str(value).lower() if isinstance(value, bool) else str(value) for value in known)
                values = [known.index(value) for value in values]
            skills, pruned = tuple(r.skill for r in records), tuple(r.state == "pruned" for r in records)
            numbers = tuple(map(float, values))
            settings.append(SearchedSetting(name, importances.get(name), numbers, skills, pruned, options))
        return sorted(settings, key=lambda s: -(s.importance or 0.0))

    def _importances(self) -> dict[str, float]:
        """The share of each setting in the variance of the skill (fANOVA), among settings that all trials have."""
        optuna = _optuna()
        complete = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        if len(complete) < MIN_TRIALS or len({trial.value for trial in complete}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        with self._journal_errors():
            shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {name: float(share) for name, share in shares.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "study"}


def _check_trial(trial: Any) -> None:
    """Raise an exception unless a trial of the journal is as we write them."""
    attributes = trial.user_attrs
    runs = attributes.get("runs", [])
    names = [attributes.get("name") or "", *(runs if isinstance(runs, list) else [runs])]
    if not all(isinstance(n, str) and is_plain_name(n) and n == Path(n).name and n != ".." for n in names):
        raise ValueError(f"runs named {names}")
    if not isinstance(attributes.get("writer", ""), str) or ("name" in attributes) > ("runs" in attributes):
        raise ValueError("a trial without its runs or their writer")
    numbers = [
        0.0 if trial.state.name != "COMPLETE" else trial.value,
        *trial.intermediate_values.values(),
        *trial.intermediate_values,
    ]
    if not all(isinstance(n, int | float) for n in numbers):
        raise ValueError("a skill that is no number")
    for value in trial.params.values():
        if not isinstance(value, str | int | float):
            raise ValueError(f"the value {value!r}")
    trial.datetime_start.timestamp()


def _optuna() -> Any:
    """Optuna, imported when it is needed; without its messages about each trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
