"""Runs a sweep: trains the entries that are not finished yet, several at a time.

Each worker is a process that loads TensorFlow once and uses `cores / jobs` threads; a cluster's uses as many as joblib
counts cores. How many threads share an operation decides the order of its sums, so an entry gives the same numbers
again on the same machine with the same number of threads.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed

from features._common.atomic import exclusive_write_lock
from features._common.cluster import appears, connect, describe_deaths
from features._common.console import progress_bar
from features._common.leftovers import sweep_leftovers
from features._common.plain_text import one_line
from features.config import ComputeConfig, Config
from features.errors import BadInputs, FramebankError
from features.store import Store
from stage2_temporal.data.derived_streams import DerivedStream, try_derive_streams
from stage2_temporal.data.examples import StoreExamples, StoreSource
from stage2_temporal.data.task import Task, check_recipe, read_task, store_origin
from stage2_temporal.heads import find_head
from stage2_temporal.heads.default_head import resolve_default_head
from stage2_temporal.report import write_report
from stage2_temporal.report.search_plots import SearchedSetting
from stage2_temporal.runs.folder import REPORT, RUNS, is_finished
from stage2_temporal.runs.leaderboard import boards, describe_best, read_run
from stage2_temporal.sweep.spec import SweepPlan
from stage2_temporal.sweep.worker import prepare_worker, store_digest, train_entry, train_entry_in_worker

Entry = tuple[str, Config, Path, Path]  # the arguments of `train_entry`
Call = tuple[Callable[..., tuple[str, str | None]], tuple[Any, ...]]  # of a worker, and its arguments


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep, whose runs are in `folder`."""

    folder: Path
    names: tuple[str, ...]  # the finished runs, in the sweep's order
    failed: tuple[str, ...]  # one line per run
    remaining: int  # number of runs that were not started because the time was up
    # of a search
    pruned: tuple[str, ...] = ()  # the runs that it stopped early
    settings: tuple[SearchedSetting, ...] = ()  # what each setting that it varied did


def run_sweep(plan: SweepPlan, entries: Mapping[str, Config], store: Path, runs: Path = RUNS) -> SweepResult:
    """Train every entry that is not finished yet, in a folder in `runs`, then write reports for the best ones.

    After an interruption, the same call continues with the remaining entries and tries failed ones again.

    Raises:
        BadInputs: entries do not fit the store; all of them are named before any is trained.
        FramebankError: the store cannot be used, or a worker was killed.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    folder = runs / plan.name
    with exclusive_write_lock(folder / "sweep"), Store(store) as opened:
        check_recipe(next(iter(entries.values())), opened)  # entries cannot differ in the settings that it checks
        sweep_leftovers(folder)  # of a sweep that was killed
        entries, finished, streams = check_entries(entries, opened, folder)
        if streams:
            try_derive_streams(store, streams)  # all in one pass, before the workers need them one by one
        todo = {name: config for name, config in entries.items() if name not in finished}
        failed, started = _train_entries(plan, todo, store, folder, finished)
        names = tuple(name for name in entries if name in finished)
        report_best(plan, folder, names, opened)
    return SweepResult(folder, names, tuple(failed), len(todo) - started)


def report_best(plan: SweepPlan, folder: Path, names: Sequence[str], store: Store) -> None:
    """Write the reports of the best settings' first runs, unless they are there."""
    for board in boards([read_run(folder / name) for name in names])[:1]:
        for row in [row for row in board.rows if row.rank][: plan.reports]:
            if not (row.runs[0] / REPORT).is_file():
                write_report(row.runs[0], store)


def check_entries(
    entries: Mapping[str, Config], store: Store, folder: Path
) -> tuple[dict[str, Config], set[str], list[DerivedStream]]:
    """All entries, with a real head instead of `auto`; the names of the trained ones; derived streams of the others."""

    @functools.cache
    def read_examples(settings: str) -> tuple[StoreExamples, Task]:
        config = Config.model_validate_json(settings)
        task = read_task(config, store)
        memory, normalised = config.train.memory_gb, config.head.normalises_flow
        rows = task.examples.rows
        source = StoreSource(store.path, rows, memory, task.frame_interval, normalised, store)
        return StoreExamples(source, task.examples), task

    # those that decide the examples
    settings: Any = {"data": True, "window": True, "train": {"folds", "fold", "validation_split", "memory_gb"}}
    settings["head"] = {"motion"}
    checked: dict[str, Config] = {}
    finished: set[str] = set()
    streams: dict[DerivedStream, None] = {}
    errors: dict[str, None] = {}
    for name, config in entries.items():
        try:
            X, task = read_examples(config.model_dump_json(include=settings))
            checked[name] = config = resolve_default_head(config, store, X.examples)
            head = find_head(config.head.name).from_config(config)
            if is_finished(folder / name, config, store_origin(store, task, config), report=False):
                finished.add(name)
                continue
            for stream in head.derived_streams(X):
                stream.info(store)
                streams[stream] = None
        except FramebankError as e:
            errors[str(FramebankError(e.what, expected=e.expected, got=e.got))] = None  # its hint is about a flag
    if errors:
        raise BadInputs("the sweep does not fit the store", list(errors), hint="edit the sweep's TOML file")
    return checked, finished, list(streams)


def _train_entries(
    plan: SweepPlan, todo: Mapping[str, Config], store: Path, folder: Path, finished: set[str]
) -> tuple[list[str], int]:
    """Train entries, add their names to `finished`, and return a line for each failed one and the number started."""
    if not todo:
        return [], 0
    started: list[str] = []
    errors: dict[str, str] = {}
    deadline = time.monotonic() + 60 * plan.minutes if plan.minutes else None

    def entries() -> Iterator[Entry]:
        for name, config in todo.items():
            if deadline and time.monotonic() > deadline:
                return
            started.append(name)
            yield name, config, store, folder

    compute = next(iter(todo.values())).compute
    if compute.backend == "dask":
        calls = ((train_entry_in_worker, entry) for entry in entries())
        results = train_on_cluster(compute, calls, started, store, folder)
    else:
        results = train_here(plan.jobs, ((train_entry, entry) for entry in entries()), folder)
    with progress_bar(len(todo) + len(finished), "sweep", "run", initial=len(finished)) as progress:
        runs = [read_run(folder / name) for name in sorted(finished)]
        for name, error in results:
            if error is None and compute.backend == "dask":
                appears(folder / name / "metrics.json")
            if error:
                errors[name] = error
            else:
                finished.add(name)
                runs.append(read_run(folder / name))
            progress.set_postfix_str(one_line(describe_best(runs)), refresh=False)
            progress.update()
    return [f"{folder / name}: {errors[name]}" for name in started if name in errors], len(started)


def train_here(jobs: int, calls: Iterable[Call], folder: Path) -> Iterator[tuple[str, str | None]]:
    """Call functions that train in processes of this machine; yield each result: a name, and an error if it failed."""
    cores = cpu_count()
    jobs = jobs or cores
    worker_settings = os.getpid(), max(1, cores // jobs), Path.cwd()  # loky keeps workers only if these are the same
    processes = {"backend": "loky", "initializer": prepare_worker, "initargs": worker_settings} if jobs > 1 else {}
    workers = Parallel(jobs, return_as="generator_unordered", pre_dispatch=jobs, batch_size=1, **processes)
    try:
        yield from workers(delayed(function)(*arguments) for function, arguments in calls)
    except BrokenProcessPool:
        raise FramebankError(
            f"{folder}: a worker was killed, most likely because memory ran out; finished runs are kept",
            hint="set fewer jobs under [sweep], then run the same command again",
        ) from None


def train_on_cluster(
    compute: ComputeConfig, calls: Iterable[Call], started: Sequence[str], store: Path, folder: Path
) -> Iterator[tuple[str, str | None]]:
    """Call functions that train in a cluster's workers; yield like `train_here`. `started` are the calls' names."""
    with connect(compute, folder, (store_digest, (store,))) as cluster:
        for i, result in cluster.run("sweep", calls):
            if isinstance(result, Exception):
                yield started[i], f"{describe_deaths(result)} died while training it"
            else:
                yield result
