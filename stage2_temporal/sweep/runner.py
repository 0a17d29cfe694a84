"""A sweep carried out: what is not yet there is trained, as many runs at a time as asked.

Each worker is a process with TensorFlow loaded once and `cores / jobs` threads. The sums inside an operation depend on
how many threads share it, so an entry has the same numbers each time `jobs` and the machine are the same.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed

from features._common.lock import exclusive_write_lock
from features._common.progress import progress_bar
from features.config import Config
from features.errors import BadInputs, FramebankError
from features.store import Store
from stage2_temporal.data.derived_streams import DerivedStream, try_derive_streams
from stage2_temporal.data.examples import StoreExamples, StoreSource
from stage2_temporal.data.task import Task, check_recipe, read_task, store_origin
from stage2_temporal.heads import find_head
from stage2_temporal.heads.default_head import resolve_default_head
from stage2_temporal.report import write_report
from stage2_temporal.runs import leaderboard as board
from stage2_temporal.runs.folder import RUNS, is_finished
from stage2_temporal.sweep.spec import SweepEntry, SweepPlan
from stage2_temporal.sweep.worker import prepare_worker, train_entry


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        folder: where its runs are.
        names: the finished ones, in the sweep's order.
        failed: a line for each that failed.
        left: how many were not begun, their time being over.
    """

    folder: Path
    names: tuple[str, ...]
    failed: tuple[str, ...]
    left: int


def run_sweep(plan: SweepPlan, wanted: tuple[SweepEntry, ...], path: Path, runs: Path = RUNS) -> SweepResult:
    """Train every entry that is not finished yet, then write the best ones' reports.

    Stopped at any moment, the same call goes on where it was; what failed is tried again.

    Args:
        plan: how.
        wanted: the entries.
        path: the store.
        runs: the sweep's folder is made in it.

    Raises:
        BadInputs: entries that do not fit the store, all of them, before any is trained.
        FramebankError: the store, or a worker that was killed.
        KeyboardInterrupt: Ctrl-C; what is finished stays.
    """
    folder = runs / plan.name
    with exclusive_write_lock(folder / "sweep"), Store(path) as store:
        check_recipe(wanted[0].config, store)  # entries differ in nothing that it looks at
        wanted, done, streams = _examine(wanted, store, folder)
        for rest in folder.glob(".unfinished-*"):  # of a sweep that was killed: no other writes here
            shutil.rmtree(rest, ignore_errors=True)
        todo = [entry for entry in wanted if entry.name not in done]
        if streams:
            try_derive_streams(path, streams)  # all in one go, before workers come for them one by one
        failed, begun = _train(plan, todo, path, folder, done)
        names = tuple(entry.name for entry in wanted if entry.name in done)
        for run in _best(folder, names, plan.reports):
            if not (run / "report.html").is_file():
                write_report(run, store)
    return SweepResult(folder, names, tuple(failed), len(todo) - begun)


def _examine(
    wanted: Iterable[SweepEntry], store: Store, folder: Path
) -> tuple[tuple[SweepEntry, ...], set[str], list[DerivedStream]]:
    """The entries with a head in the place of `auto`, the names of those that are there already, and the derived
    streams that the others read.

    Raises:
        BadInputs: all faults that the store, the task and the heads' names and grids show, in one pass.
    """

    @functools.cache
    def inputs(value: str) -> tuple[StoreExamples, Task]:
        config = Config.model_validate_json(value)
        task = read_task(config, store)
        source = StoreSource(store.path, task.examples.rows, config.train.memory_gb)
        return StoreExamples(source, task.examples), task

    known: list[SweepEntry] = []
    done, streams, faults = set(), {}, []
    for entry in wanted:
        try:
            train = {"folds", "fold", "validation_split", "memory_gb"}
            X, task = inputs(entry.config.model_dump_json(include={"data": True, "window": True, "train": train}))
            config = resolve_default_head(entry.config, store, X.examples)
            known.append(SweepEntry(entry.name, config))
            head = find_head(config.head.name).of(config)
            if is_finished(folder / entry.name, config, store_origin(store, task, config), report=False):
                done.add(entry.name)
                continue
            for stream in head.derived(X):
                stream.info(store)
                streams[stream] = True
        except FramebankError as e:
            faults.append(str(FramebankError(e.what, expected=e.expected, got=e.got)))  # its mend is a flag's
    if faults:
        raise BadInputs("the sweep does not fit the store", list(dict.fromkeys(faults)), hint="edit the sweep")
    return tuple(known), done, list(streams)


def _train(plan: SweepPlan, todo: list[SweepEntry], store: Path, folder: Path, done: set[str]) -> tuple[list[str], int]:
    """Train `todo`, adding to `done`; a line for each that failed, in `todo`'s order, and how many were begun."""
    cores = cpu_count()
    jobs = plan.jobs or cores
    begun: list[SweepEntry] = []
    failed: dict[str, str] = {}
    ends = time.monotonic() + 60 * plan.minutes if plan.minutes else None

    def calls() -> Iterator[Any]:
        for entry in todo:
            if ends and time.monotonic() > ends:
                return
            begun.append(entry)
            yield delayed(_work)(entry, store, folder)

    if not todo:
        return [], 0
    process = {"backend": "loky", "initializer": prepare_worker, "initargs": (os.getpid(), max(1, cores // jobs))}
    workers = Parallel(
        jobs, return_as="generator_unordered", pre_dispatch=jobs, batch_size=1, **(process if jobs > 1 else {})
    )
    with progress_bar(len(todo) + len(done), "sweep", "run", initial=len(done)) as progress:
        best = _best_so_far(folder, sorted(done))
        try:
            for name, error in workers(calls()):
                if error:
                    failed[name] = error
                else:
                    done.add(name)
                progress.set_postfix_str(best([] if error else [name]), refresh=False)
                progress.update()
        except BrokenProcessPool:
            raise FramebankError(
                f"{folder}: a worker was killed, most likely for want of memory; what was finished is kept",
                hint="fewer jobs under [sweep], then the same command",
            ) from None
    return [f"{folder / e.name}: {failed[e.name]}" for e in begun if e.name in failed], len(begun)


def _work(entry: SweepEntry, store: Path, folder: Path) -> tuple[str, str | None]:
    return entry.name, train_entry(entry, store, folder)


def _best_so_far(folder: Path, names: Iterable[str]) -> Callable[[Iterable[str]], str]:
    """What the progress bar says of the best setting, told which runs have been finished since."""
    runs = [board.read_run(folder / name) for name in names]

    def best(more: Iterable[str]) -> str:
        runs.extend(board.read_run(folder / name) for name in more)
        return board.best_line(runs)

    return best


def _best(folder: Path, names: Iterable[str], count: int) -> list[Path]:
    """The first run of each of the best settings."""
    boards = board.boards([board.read_run(folder / name) for name in names])
    return [row.runs[0] for row in boards[0].rows if row.runs][:count] if boards else []
