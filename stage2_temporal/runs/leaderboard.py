"""The leaderboard: which runs can be compared, and how they rank against the constant predictor.

Runs with the same settings, on several folds or with several seeds, form one row with mean and standard deviation.
A board holds only runs with the same target that were scored on the same examples of one split. Needs no TensorFlow.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

from features._common.atomic import sweep
from features.config import Config, read_run_config
from features.errors import ConfigError, DataError
from stage2_temporal.data.splits import STORED_VALIDATION
from stage2_temporal.evaluation.intervals import IntervalScores
from stage2_temporal.evaluation.metrics import Scores
from stage2_temporal.runs.pruned import PRUNED_FILE, PrunedRun, read_pruned
from stage2_temporal.runs.results import Metrics, read_metrics

SPLIT_ORDER = ("validation", "test", STORED_VALIDATION, "train")  # models are selected on the first
METRICS_WITH_UNIT = ("rmse", "mae", "width", "interval_score")  # left out if the target's columns differ in unit
METRICS = ("rmse", "mae", "skill", "spread_ratio")
INTERVAL_METRICS = {"coverage": "coverage", "width": "width", "interval_score": "score"}  # see `IntervalScores`
CONSTANT = "constant"
SECTIONS = ("frames", "backbone", "window", "head", "train")  # the config's sections that decide a run
REPEATS = {"train.seed", "train.folds", "train.fold"}  # what the runs of one row may differ in
# these tell no rows apart
HIDDEN_SETTINGS = REPEATS | {
    "train.memory_gb", "train.interval_level", "train.interval_folds", "head.name",
}  # fmt: skip
MeanAndDeviation = tuple[float, float | None]  # the deviation is None for a single run
Found = TypeVar("Found")


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    path: Path
    config: Config
    metrics: Metrics

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide the run except seed and fold, by full name."""
        return decisive_settings(self.config)


@dataclass(frozen=True)
class LeaderboardRow:
    """One choice of settings, or the constant predictor, on a board."""

    rank: int | None  # from 1; None for the constant predictor
    head: str
    settings: dict[str, Any]  # those that distinguish it from the head's other rows, by shortest unambiguous name
    metrics: dict[str, MeanAndDeviation]  # with TuSimple's `ev` and `ep`; unknown ones are left out
    parameters: int | None = None  # trainable weights
    seconds: float | None = None  # duration of training, mean over the runs
    runs: tuple[Path, ...] = ()
    pruned: int | None = None  # the epoch after which a search stopped the run; its skill is that of this epoch

    @property
    def skill(self) -> float:
        """Mean skill; −∞ if unknown."""
        return self.metrics.get("skill", (-math.inf, None))[0]


@dataclass(frozen=True)
class Board:
    """The rows that were scored on the same examples, best first, the constant predictor among them.

    Runs that a search stopped early come last.
    """

    target: tuple[str, ...]
    unit: str | None
    split: str
    folds: int
    examples: int
    rows: tuple[LeaderboardRow, ...]

    @property
    def constant(self) -> LeaderboardRow:
        """The constant predictor's row."""
        return next(row for row in self.rows if row.head == CONSTANT)

    @property
    def title(self) -> str:
        """Target, split and number of examples."""
        folds = f"{self.folds} folds, " if self.folds else ""
        return f"{', '.join(self.target)} on the {self.split} split ({folds}{self.examples:,} examples)"


def decisive_settings(config: Config) -> dict[str, Any]:
    """The settings that decide a run except seed and fold, by full name."""
    sections = config.model_dump(mode="json", include=set(SECTIONS))
    settings = {f"{name}.{key}": value for name in SECTIONS for key, value in sections[name].items()}
    return {name: value for name, value in settings.items() if name not in REPEATS}


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """Find the finished runs in a folder and its sweeps; return them, and one line for each that cannot be read."""
    return _read_all(root, "metrics.json", read_run)


def find_pruned(root: Path) -> tuple[list[PrunedRun], list[str]]:
    """Find the runs in a folder and its sweeps that were stopped early, like `find_runs`."""
    return _read_all(root, PRUNED_FILE, read_pruned)


def _read_all(root: Path, file_name: str, read: Callable[[Path], Found]) -> tuple[list[Found], list[str]]:
    sweep(root, *(path for path in root.glob("[!.]*") if path.is_dir()))
    runs, errors = [], []
    for path in sorted(file.parent for pattern in ("*", "*/*") for file in root.glob(f"{pattern}/{file_name}")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue  # still being written
        try:
            runs.append(read(path))
        except (ConfigError, DataError) as e:
            errors.append(str(e))
    return runs, errors


def read_run(path: Path) -> Run:
    """Read the run in a folder; DataError or ConfigError if there is none or a file is not as training writes it."""
    metrics = read_metrics(path)  # first, since it tells whether the folder is a run
    return Run(path, read_run_config(path), metrics)


def boards(runs: Iterable[Run], target: str | None = None, pruned: Sequence[PrunedRun] = ()) -> list[Board]:
    """Sort runs (only those of `target`, such as `vx,vy`, if given) into boards, those to select models on first.

    Runs that were stopped early are on the first board of their target, which is the one that they were stopped by.
    """
    if target is not None:
        columns = Config().with_target(tuple(target.split(",")) if "," in target else target).data.columns
        runs = [run for run in runs if run.metrics.target == columns]
    comparable: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        splits = [split for split in SPLIT_ORDER if split in run.metrics.splits]
        for split in splits if splits == ["train"] else [split for split in splits if split != "train"]:
            comparable.setdefault((run.metrics.target, split, *_examples_key(run, split)), []).append(run)
    waiting: dict[tuple[str, ...], list[PrunedRun]] = {}
    for stopped in pruned:
        waiting.setdefault(stopped.config.data.columns, []).append(stopped)
    sorted_keys = sorted(comparable, key=lambda key: (key[0], SPLIT_ORDER.index(key[1])))
    all_boards = (_board(key[1], comparable[key], waiting.pop(key[0], [])) for key in sorted_keys)
    return sorted(all_boards, key=lambda b: (b.target, SPLIT_ORDER.index(b.split), -len(b.rows), b.folds, b.examples))


def describe_best(runs: Iterable[Run]) -> str:
    """The best settings so far and the constant predictor, in one line; empty if there is no run.

    Only settings with the largest number of folds and seeds count, since a single lucky fold is not the best.
    """
    if not (all_boards := boards(runs)):
        return ""
    board = all_boards[0]
    most_runs = max(len(row.runs) for row in board.rows)
    best = next(row for row in board.rows if row.rank and len(row.runs) == most_runs)
    rmse, constant = "", board.constant.metrics
    if "rmse" in best.metrics and "rmse" in constant:  # not with mixed units, or where one is unknown
        rmse = f", RMSE {best.metrics['rmse'][0]:.3f} (constant {constant['rmse'][0]:.3f})"
    return f"best skill {best.skill:.3f}{rmse}: {row_label(best)}"


def row_label(row: LeaderboardRow) -> str:
    """A row's head and distinguishing settings."""
    return " ".join([row.head, *(f"{name}={format_setting(value)}" for name, value in row.settings.items())])


def format_setting(value: Any) -> str:
    """A setting's value for display."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return "x".join(map(format_setting, value))
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _examples_key(run: Run, split: str) -> tuple[Any, ...]:
    """Equal for runs that were scored on the same examples: all folds of one division, or the same split."""
    if run.config.train.folds:
        return run.config.train.folds, run.metrics.labels
    scored = run.metrics.splits[split]
    return 0, run.metrics.labels, scored.examples, round(scored.constant.rmse, 9)


def _board(split: str, runs: list[Run], pruned: list[PrunedRun]) -> Board:
    groups = _group_repeats(runs)
    settings_by_head: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        settings_by_head.setdefault(group[0].metrics.head, []).append(group[0].settings)
    for run in pruned:
        settings_by_head.setdefault(run.config.head.name, []).append(decisive_settings(run.config))
    shown = {head: _distinguishing_names(settings) for head, settings in settings_by_head.items()}
    by_fold = {run.config.train.fold: run.metrics.splits[split] for run in runs}  # the constant differs by fold alone
    first, folds = runs[0].metrics, runs[0].config.train.folds
    mixed = first.mixed_units
    constants = [(fold.constant, None) for fold in by_fold.values()]
    rows = [LeaderboardRow(None, CONSTANT, {}, _summarise(constants, mixed))]
    for group in groups:
        metrics, settings = group[0].metrics, group[0].settings
        row_settings = {short: settings.get(name) for name, short in shown[metrics.head].items()}
        summary = _summarise([(s.model, s.intervals) for run in group for s in [run.metrics.splits[split]]], mixed)
        seconds, paths = fmean(run.metrics.seconds for run in group), tuple(run.path for run in group)
        trainable = metrics.parameters.trainable
        rows.append(LeaderboardRow(None, metrics.head, row_settings, summary, trainable, seconds, paths))
    rows.sort(key=lambda row: (-row.skill, row.head, row_label(row)))
    ranks = count(1)
    ranked = tuple(row if row.head == CONSTANT else replace(row, rank=next(ranks)) for row in rows)
    ranked += tuple(_pruned_row(run, shown[run.config.head.name]) for run in _by_skill(pruned))
    counts = [scored.examples for scored in by_fold.values()]
    examples = sum(counts) if folds and split == "validation" else counts[0]  # each fold validates on other examples
    return Board(first.target, first.unit, split, folds, examples, ranked)


def _by_skill(pruned: list[PrunedRun]) -> list[PrunedRun]:
    return sorted(pruned, key=lambda run: (-run.metrics.skill, run.path))


def _pruned_row(run: PrunedRun, shown: dict[str, str]) -> LeaderboardRow:
    values, settings = run.metrics, decisive_settings(run.config)
    row_settings = {short: settings.get(name) for name, short in shown.items()}
    skill: dict[str, MeanAndDeviation] = {"skill": (values.skill, None)}
    return LeaderboardRow(
        None, run.config.head.name, row_settings, skill, None, values.seconds, (run.path,), pruned=values.epoch
    )


def _group_repeats(runs: list[Run]) -> list[list[Run]]:
    """Group runs in one folder that differ only by seed or fold; a second copy of a run starts another group."""
    groups: dict[str, list[Run]] = {}
    copies: Counter[str] = Counter()
    for run in runs:
        key = json.dumps([str(run.path.parent), run.metrics.store.fingerprint, run.settings], sort_keys=True)
        run_key = f"{key} {run.config.train.seed} {run.config.train.fold}"
        copies[run_key] += 1
        groups.setdefault(f"{key} {copies[run_key]}", []).append(run)
    return list(groups.values())


def _summarise(
    scores: Sequence[tuple[Scores, dict[str, IntervalScores] | None]], mixed_units: bool
) -> dict[str, MeanAndDeviation]:
    """Mean and standard deviation of each known metric over runs; those of intervals are means over the targets."""
    values = {name: [getattr(s, name) for s, _ in scores] for name in METRICS}
    for name in ("ev", "ep"):
        values[name] = [error.mean for s, _ in scores if (error := getattr(s, name))]
    for name, field in INTERVAL_METRICS.items():
        values[name] = [fmean(getattr(i, field) for i in intervals.values()) for _, intervals in scores if intervals]
    return {
        name: (fmean(known), stdev(known) if len(known) > 1 else None)
        for name, column in values.items()
        if not (mixed_units and name in METRICS_WITH_UNIT) and (known := [v for v in column if math.isfinite(v)])
    }


def _distinguishing_names(settings: list[dict[str, Any]]) -> dict[str, str]:
    """Full name → shortest unambiguous name of every setting that differs among these."""
    names = dict.fromkeys(name for values in settings for name in values if name not in HIDDEN_SETTINGS)
    differing = [n for n in names if len({json.dumps(values.get(n), sort_keys=True) for values in settings}) > 1]
    short_names = {name: name.rpartition(".")[2] for name in differing}
    counts = Counter(short_names.values())
    return {name: short if counts[short] == 1 else name for name, short in short_names.items()}
