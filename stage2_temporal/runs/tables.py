"""A run's metrics as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from features._common.console import text_table
from stage2_temporal.evaluation.intervals import IntervalScores
from stage2_temporal.evaluation.metrics import ComponentScores, Scores
from stage2_temporal.evaluation.tusimple import ByDistance
from stage2_temporal.runs.results import VERDICT_SPLITS, Metrics, SplitMetrics


def metrics_table(metrics: Metrics) -> str:
    """The scores of the model and of the constant predictor on each split, and the verdict."""
    unit = f" [{metrics.unit}]" if metrics.unit else ""
    errors = [name for name in ("ev", "ep") if any(getattr(s.model, name) for s in metrics.splits.values())]
    header = ["split", "examples", "", f"RMSE{unit}", f"MAE{unit}", "skill", "spread ratio"]
    header += [f"{name.upper()}: near medium far" for name in errors]
    if any(split.intervals for split in metrics.splits.values()):
        header += [f"coverage of {100 * (metrics.interval_level or 0):g} %", "mean width", "interval score"]
    rows = [row for name, split in metrics.splits.items() for row in _split_rows(name, split, metrics, errors)]
    return "\n".join(["", text_table(header, rows, left=(0, 2)), "", metrics.verdict])


def comparison_table(runs: Sequence[tuple[str, Metrics]]) -> str:
    """Labelled runs of one target, in the given order, and the constant predictor: scores on the split that counts."""
    first = runs[0][1]
    split = next(name for name in VERDICT_SPLITS if name in first.splits)
    scored = first.splits[split]
    title = f"{', '.join(first.target)} on the {split} split, {scored.examples:,} examples"
    unit = f" [{first.unit}]" if first.unit else ""
    header = ["", f"RMSE{unit}", "skill", "95 % interval", "trained weights", "trained in"]
    rows = [
        [
            f"{label} ({metrics.head})" if label else metrics.head,
            "–" if metrics.mixed_units else _format(metrics.splits[split].model.rmse),
            _format(metrics.splits[split].model.skill),
            " to ".join(map(_format, metrics.splits[split].skill_interval or ())) or "–",
            f"{metrics.parameters.trainable:,}",
            f"{metrics.seconds:.1f} s",
        ]
        for label, metrics in runs
    ]
    rows.append(
        ["constant predictor", "–" if first.mixed_units else _format(scored.constant.rmse), "0.000", "–", "0", "–"]
    )
    return "\n".join(["", title, text_table(header, rows)])


def format_scores(scores: Scores | ComponentScores) -> list[str]:
    """RMSE, MAE, skill and spread ratio with three digits; a dash where unknown."""
    return [_format(value) for value in (scores.rmse, scores.mae, scores.skill, scores.spread_ratio)]


def _split_rows(name: str, split: SplitMetrics, metrics: Metrics, errors: list[str]) -> Iterator[list[str]]:
    """Two rows, and two more per component if their units differ: errors of different units have no sum."""
    predictors = ("model", split.model), ("constant", split.constant)
    for predictor, scores in predictors:
        lead = [name, f"{split.examples:,}"] if predictor == "model" else ["", ""]
        figures = ["–", "–", *format_scores(scores)[2:]] if metrics.mixed_units else format_scores(scores)
        intervals = _interval_cells(list((split.intervals or {}).values()), metrics) if predictor == "model" else []
        yield [*lead, predictor, *figures, *(_format_by_distance(getattr(scores, name)) for name in errors), *intervals]
    for k, column in enumerate(metrics.target if metrics.mixed_units else ()):
        unit = metrics.unit_of(k)
        title = f"  {column} [{unit}]" if unit else f"  {column}"
        for predictor, scores in predictors:
            lead = [title if predictor == "model" else "", ""]
            cells = [*format_scores(scores.components[column]), *("" for _ in errors)]
            if split.intervals and predictor == "model":
                cells += _interval_cells([split.intervals[column]], metrics, single=True)
            yield [*lead, predictor, *cells]


def _interval_cells(intervals: list[IntervalScores], metrics: Metrics, *, single: bool = False) -> list[str]:
    """Coverage, width and interval score, as means over targets; errors of different units have no mean."""
    if not intervals:
        return []
    figures = [fmean(getattr(i, name) for i in intervals) for name in ("coverage", "width", "score")]
    return [_format(figures[0]), *("–" if metrics.mixed_units and not single else _format(f) for f in figures[1:])]


def _format_by_distance(error: ByDistance | None) -> str:
    """The mean, and the three that it is the mean of."""
    return f"{_format(error.mean)}: {' '.join(map(_format, (error.near, error.medium, error.far)))}" if error else ""


def _format(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
