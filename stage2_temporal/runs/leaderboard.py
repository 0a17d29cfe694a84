"""The leaderboard: runs beside each other and beside the constant predictor. No TensorFlow here.

Runs of one setting, on several folds or with several seeds, are one row with mean and deviation. Only what was judged
on the same examples stands on one board: a target, a split, and where there are folds their number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import ValidationError

from features.config import Config, read_run_config
from features.errors import ConfigError, DataError
from features.streams import UNITS
from stage2_temporal.data.splits import STORED_VALIDATION
from stage2_temporal.runs.folder import FILES, read_metrics
from stage2_temporal.runs.results import Metrics, SplitScores

SPLIT_ORDER = ("validation", "test", STORED_VALIDATION, "train")  # the first is for choosing, the second for believing
IN_UNIT = ("rmse", "mae")  # not to be had where the target's columns differ in unit: those have no sum
FIGURES = (*IN_UNIT, "skill", "spread_ratio")
CONSTANT = "constant"
REPEATS = {"train.seed", "train.folds", "train.fold"}
UNSEEN = REPEATS | {"train.memory_gb", "train.tensorboard", "head.name"}  # no setting to tell rows apart by
Value = tuple[float, float | None]  # mean and, of several, deviation


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    path: Path
    config: Config
    metrics: Metrics
    labels: str

    @property
    def setting(self) -> dict[str, Any]:
        """What decides the run, by full name, seed and fold aside."""
        sections = ("frames", "backbone", "window", "head", "train")
        value = self.config.model_dump(mode="json", include=set(sections))
        flat = {f"{s}.{key}": inner for s in sections for key, inner in value[s].items()}
        return {key: inner for key, inner in flat.items() if key not in REPEATS}


@dataclass(frozen=True)
class LeaderboardRow:
    """A setting, or the constant predictor, on a board.

    Attributes:
        rank: from 1; None for the constant predictor and where there is no skill.
        head: the head's name, `constant` for the constant predictor.
        settings: what tells it from the board's other rows of the same head, by its shortest unambiguous name: another
            head's settings may mean nothing to it.
        figures: by name, TuSimple's `ev` and `ep` where positions are known; unknown ones are left out.
        parameters: trained weights.
        seconds: of training, mean of its runs.
        runs: the folders, none for the constant predictor.
    """

    rank: int | None
    head: str
    settings: dict[str, Any]
    figures: dict[str, Value]
    parameters: int | None = None
    seconds: float | None = None
    runs: tuple[Path, ...] = ()

    @property
    def skill(self) -> float:
        """Mean skill; −∞ where unknown."""
        return self.figures.get("skill", (-math.inf, None))[0]


@dataclass(frozen=True)
class Board:
    """The rows that were judged on the same examples, best first, the constant predictor among them."""

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
        """What was judged on what."""
        how = f"{self.folds} folds, " if self.folds else ""
        return f"{', '.join(self.target)} on the {self.split} split ({how}{self.examples:,} examples)"


def find_runs(root: Path) -> tuple[list[Run], list[str]]:
    """The finished runs under a folder, those of its sweeps among them, and a line for each that cannot be read."""
    found, faults = [], []
    for path in sorted(file.parent for pattern in ("*", "*/*") for file in root.glob(f"{pattern}/metrics.json")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue  # being written
        try:
            found.append(read_run(path))
        except (ConfigError, DataError) as e:
            faults.append(str(e))
    return found, faults


def read_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        DataError, ConfigError: it is none, or of another version.
    """
    value = read_metrics(path)
    try:
        metrics = Metrics.model_validate(value)
    except ValidationError as e:
        raise DataError(f"{path / FILES[1]}: not what training writes: {e.error_count()} faults") from None
    return Run(path, read_run_config(path), metrics, value.get("labels", ""))


def boards(runs: Iterable[Run], target: str | None = None) -> list[Board]:
    """Every board, those to choose by first.

    Args:
        target: only this one, as `velocity`, or the names of its columns with commas.
    """
    wanted = None if target is None else Config().with_target(tuple(target.split(",")) if "," in target else target)
    parts: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if wanted is not None and run.metrics.target != wanted.data.columns:
            continue
        judged = [s for s in SPLIT_ORDER if s in run.metrics.splits]
        for split in judged if judged == ["train"] else [s for s in judged if s != "train"]:
            parts.setdefault((run.metrics.target, split, *_same(run, split)), []).append(run)
    made = [_board(split, members) for (_, split, *_), members in parts.items()]
    return sorted(made, key=lambda b: (b.target, SPLIT_ORDER.index(b.split), -len(b.rows), b.folds, b.examples))


def best_line(runs: Iterable[Run]) -> str:
    """The best setting beside the constant predictor, on the split to choose by; empty where there is none.

    Settings with as many folds and seeds as any count: a single lucky fold is not the best.
    """
    board = next(iter(boards(runs)), None)
    if board is None:
        return ""
    most = max(len(row.runs) for row in board.rows)
    best = next(row for row in board.rows if row.rank and len(row.runs) == most)
    beside = ""
    if "rmse" in best.figures:
        rmse, constant = (row.figures["rmse"][0] for row in (best, board.constant))
        beside = f", RMSE {rmse:.3f} beside the constant's {constant:.3f}"
    return f"best skill {best.skill:.3f}{beside} ({row_label(best)})"


def row_label(row: LeaderboardRow) -> str:
    """A row's head and what tells it from others, in words."""
    return " ".join([row.head, *(f"{key}={format_setting(value)}" for key, value in row.settings.items())])


def format_setting(value: Any) -> str:
    """A setting's value as one writes it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return "x".join(map(format_setting, value))
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _same(run: Run, split: str) -> tuple[Any, ...]:
    """What two runs on one board have in common: with folds all that is divided, else the split and its constant."""
    if run.config.train.folds:
        return run.config.train.folds, run.labels
    part = run.metrics.splits[split]
    return 0, run.labels, part.examples, part.constant.rmse and round(part.constant.rmse, 9)


def _board(split: str, runs: list[Run]) -> Board:
    groups = _groups(runs)
    heads: dict[str, list[dict[str, Any]]] = {}
    for members in groups:
        heads.setdefault(members[0].metrics.head, []).append(members[0].setting)
    differing = {head: _differing(settings) for head, settings in heads.items()}
    judged = {run.config.train.fold: run.metrics.splits[split] for run in runs}  # the constant's are all alike
    mixed = len({UNITS.get(column) for column in runs[0].metrics.target}) > 1
    rows = [LeaderboardRow(None, CONSTANT, {}, _figures([part.constant for part in judged.values()], mixed))]
    for members in groups:
        first = members[0]
        rows.append(
            LeaderboardRow(
                None,
                first.metrics.head,
                {short: first.setting.get(key) for key, short in differing[first.metrics.head].items()},
                _figures([run.metrics.splits[split].model for run in members], mixed),
                first.metrics.parameters.trainable,
                fmean(run.metrics.seconds for run in members),
                tuple(run.path for run in members),
            )
        )
    rows.sort(key=lambda row: (-row.skill, row.head, row_label(row)))
    rank, ranked = 0, []
    for row in rows:
        rank += row.head != CONSTANT
        ranked.append(LeaderboardRow(**{**vars(row), "rank": None if row.head == CONSTANT else rank}))
    folds = runs[0].config.train.folds
    held_out = folds and split == "validation"  # each fold has others
    examples = sum(p.examples for p in judged.values()) if held_out else next(iter(judged.values())).examples
    return Board(runs[0].metrics.target, runs[0].metrics.unit, split, folds, examples, tuple(ranked))


def _groups(runs: list[Run]) -> list[list[Run]]:
    """Runs of one setting in one folder that differ by seed or fold; a copy of a run begins another group."""
    groups: dict[str, list[Run]] = {}
    seen: dict[str, int] = {}
    for run in runs:
        alike = json.dumps([str(run.path.parent), run.metrics.store.fingerprint, run.setting], sort_keys=True)
        one = f"{alike} {run.config.train.seed} {run.config.train.fold}"
        seen[one] = seen.get(one, 0) + 1
        groups.setdefault(f"{alike} {seen[one]}", []).append(run)
    return list(groups.values())


def _figures(scores: list[SplitScores], mixed: bool) -> dict[str, Value]:
    names = [name for name in FIGURES if not (mixed and name in IN_UNIT)]
    values = {name: [getattr(s, name) for s in scores] for name in names}
    for name, errors in (("ev", [s.ev for s in scores]), ("ep", [s.ep for s in scores])):
        values[name] = [error.get("mean") if error else None for error in errors]
    return {
        name: (fmean(known), stdev(known) if len(known) > 1 else None)
        for name, column in values.items()
        if (known := [v for v in column if v is not None])
    }


def _differing(settings: list[dict[str, Any]]) -> dict[str, str]:
    """Full name → shortest unambiguous name of every setting that is not the same in all."""
    keys = dict.fromkeys(key for setting in settings for key in setting if key not in UNSEEN)
    differing = [k for k in keys if len({json.dumps(s.get(k), sort_keys=True) for s in settings}) > 1]
    ends = [key.rpartition(".")[2] for key in differing]
    return {key: end if ends.count(end) == 1 else key for key, end in zip(differing, ends, strict=True)}
