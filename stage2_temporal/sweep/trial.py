"""Trains a trial of a search: one choice of settings, with each seed on each fold, unless it is pruned.

Like `worker`, this module must not load TensorFlow when it is imported.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from features._common.console import quiet_imports
from features.config import Config, read_run_config
from features.store import Store
from stage2_temporal.data.task import Task, read_task, store_origin
from stage2_temporal.runs.folder import is_finished, run_settings
from stage2_temporal.runs.pruned import PRUNED_FILE, PrunedMetrics, write_pruned
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.sweep.study import SearchTrial, SweepStudy
from stage2_temporal.sweep.worker import PrunedError, train_entry, use_all_threads

if TYPE_CHECKING:
    import keras

VALIDATION = "validation"


def train_trial(trial: SearchTrial, study: SweepStudy, store: Path) -> tuple[str, str | None]:
    """Train a claimed trial's runs into their folders and tell the study; return its name and, if it failed, the error.

    Runs that are there already, of a trial that was interrupted, are not trained again. Only the first run may be
    pruned; its folder then has a `pruned.json`.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it; the trial stays to be continued.
        OSError: the disk is full or similar.
    """
    skills = []
    for i, (name, entry) in enumerate(trial.runs.items()):
        path = study.folder / name
        config, task, finished = _read_entry(entry, store, path)
        if i == 0 and (path / PRUNED_FILE).is_file() and run_settings(read_run_config(path)) == run_settings(config):
            study.tell(trial.number, None, "pruned")
            return trial.name, None
        if not finished:
            callbacks = [_reporter(study, trial, task, config.train.epochs)] if i == 0 else []
            started = time.monotonic()
            try:
                _, error = train_entry(name, config, store, study.folder, callbacks)
            except PrunedError as e:
                seconds = time.monotonic() - started
                pruned = PrunedMetrics(epoch=e.epoch, epochs=config.train.epochs, skill=e.skill, seconds=seconds)
                write_pruned(path, config, pruned)
                study.tell(trial.number, None, "pruned")
                return trial.name, None
            if error is not None:
                study.tell(trial.number, None, "fail")
                return trial.name, f"{name}: {error}"
        skills.append(read_metrics(path).splits[VALIDATION].model.skill)
    skill = fmean(skills)
    if not math.isfinite(skill):
        study.tell(trial.number, None, "fail")
        return trial.name, "its skill is unknown, since all validation targets are equal"
    study.tell(trial.number, skill, "complete")
    return trial.name, None


def train_trial_in_worker(trial: SearchTrial, study: SweepStudy, store: Path) -> tuple[str, str | None]:
    """Like `train_trial`, in a worker of a cluster."""
    use_all_threads()
    return train_trial(trial, study, store)


def _read_entry(entry: Config, store: Path, path: Path) -> tuple[Config, Task, bool]:
    """The config with a real head in place of `auto`, its task, and whether the folder holds this run."""
    with quiet_imports():
        from stage2_temporal.heads.default_head import resolve_default_head
    with Store(store) as opened:
        task = read_task(entry, opened)
        config = resolve_default_head(entry, opened, task.examples)
        return config, task, is_finished(path, config, store_origin(opened, task, config), report=False)


def _reporter(study: SweepStudy, trial: SearchTrial, task: Task, epochs: int) -> keras.callbacks.Callback:
    """Reports the best skill so far to the study after each epoch, and ends the training if it is to be pruned.

    After the last of all `epochs` there is nothing left to save.
    """
    import keras

    rows = task.known(VALIDATION)
    constant = float(np.mean((task.examples.targets[rows] - task.constant) ** 2))
    handle = study.trial(trial.number)
    reported = study.reported_epochs(trial.number)  # before it was interrupted
    best = -math.inf

    def report(epoch: int, logs: dict[str, Any]) -> None:
        nonlocal best
        if constant == 0:  # there is no skill to report
            return
        best = max(best, 1 - logs["val_rmse"] ** 2 / constant)
        if epoch + 1 not in reported:
            handle.report(best, epoch + 1)
        if epoch + 1 < epochs and handle.should_prune():
            raise PrunedError(epoch + 1, best)

    return keras.callbacks.LambdaCallback(on_epoch_end=report)
