"""Runs a search: claims one trial after another from the sweep's study and trains it, several at a time.

Other processes, on this machine or others, may work on the same study at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from features._common.console import progress_bar
from features._common.leftovers import sweep_leftovers
from features.config import Config
from features.errors import BadInputs
from features.store import Store
from stage2_temporal.data.derived_streams import try_derive_streams
from stage2_temporal.data.task import check_recipe, read_task
from stage2_temporal.runs.folder import RUNS
from stage2_temporal.runs.leaderboard import describe_best, read_run
from stage2_temporal.sweep.runner import (
    Call,
    SweepResult,
    check_entries,
    report_best,
    train_here,
    train_on_cluster,
)
from stage2_temporal.sweep.spec import EntrySpace, SweepPlan, apply_settings, probes, repeats
from stage2_temporal.sweep.study import SweepStudy
from stage2_temporal.sweep.trial import VALIDATION, train_trial, train_trial_in_worker


def run_search(
    plan: SweepPlan, spaces: Sequence[EntrySpace], base: Config, store: Path, runs: Path = RUNS
) -> SweepResult:
    """Train trials until there are as many as the sweep asks for, then write reports for the best ones.

    After an interruption, the same call goes on with the same study. Trials that failed are replaced by others.

    Raises:
        BadInputs: settings do not fit the store; all of them are named before anything is trained.
        ConfigError: Optuna is not installed, or the folder has a study of other settings.
        FramebankError: the store cannot be used, or a worker was killed.
        KeyboardInterrupt: Ctrl-C; finished trials are kept.
    """
    folder = runs / plan.name
    with Store(store) as opened:
        check_recipe(base, opened)
        configs = [apply_settings(base, settings) for space in spaces for settings in probes(space)]
        probed = {f"{i}": next(iter(repeats(plan, "", c).values())) for i, c in enumerate(configs)}
        _, _, streams = check_entries(probed, opened, folder / "none")
        if not len(read_task(probed["0"], opened).known(VALIDATION)):
            raise BadInputs("a search needs validation examples", [], hint="folds = 3 under [sweep]")
        study = SweepStudy(folder, plan, spaces, base, opened.fingerprint)
        _ = study.study  # refuses one of other settings
        sweep_leftovers(folder)
        if streams:
            try_derive_streams(store, streams)  # all in one pass, before the workers need them one by one
        try:
            failed = _train_trials(study, store)
        finally:
            study.release()
        records = study.records()
        names = tuple(name for r in records if r.state == "complete" for name in r.runs)
        pruned = tuple(r.runs[0] for r in records if r.state == "pruned")
        report_best(plan, folder, names, opened)
    done = sum(r.state in ("complete", "pruned") for r in records) + len(study.failed)
    running = sum(r.state == "running" for r in records)
    remaining = 0 if study.trials == float("inf") else max(0, int(study.trials) - done - running)
    return SweepResult(folder, names, tuple(failed), remaining, pruned, tuple(study.searched_settings()))


def _train_trials(study: SweepStudy, store: Path) -> list[str]:
    """Train trials until none is left or the time is up; return a line for each one that failed."""
    plan, started, errors = study.plan, list[str](), list[str]()
    deadline = time.monotonic() + 60 * plan.minutes if plan.minutes else None
    compute = study.base.compute
    function = train_trial_in_worker if compute.backend == "dask" else train_trial

    def calls() -> Iterator[Call]:
        while (deadline is None or time.monotonic() < deadline) and (trial := study.claim()) is not None:
            started.append(trial.name)
            yield function, (trial, study, store)

    if compute.backend == "dask":
        results = train_on_cluster(compute, calls(), started, store, study.folder)
    else:
        results = train_here(plan.jobs, calls(), study.folder)
    finished = [r for r in study.records() if r.state in ("complete", "pruned")]
    total = len(finished) if study.trials == float("inf") else int(study.trials)
    with progress_bar(total, "search", "trial", initial=len(finished)) as progress:
        for name, error in results:
            if error is not None:
                study.failed.add(name)
                errors.append(f"{study.folder}/{error}")
            complete = [r for r in study.records() if r.state == "complete"]
            best = describe_best([read_run(study.folder / run) for r in complete for run in r.runs])
            progress.set_postfix_str(best, refresh=False)
            progress.update()
    return errors
