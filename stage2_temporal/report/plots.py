"""What the report plots: decided here, drawn by `draw.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stage2_temporal.report.clips import ReportStore
from stage2_temporal.runs.results import HistoryRow, PredictedExample, Results

Kind = Literal["line", "dashed", "points", "ring", "bars", "steps"]
Role = Literal["model", "train", "true", "constant", "guide"]
Range = tuple[float, float]

MAX_POINTS = 2000  # drawn at most in one plot: more is a blot and a slow page
LONG = 20  # labels from which on a sequence is worth a plot over time
LOG_AXIS_RATIO = 30.0  # largest over smallest loss from which on its axis is logarithmic


@dataclass(frozen=True)
class Series:
    """One line, cloud or row of bars; `role` decides its colour, None is a gap."""

    name: str
    kind: Kind
    role: Role
    x: list[float]
    y: list[float | None]


@dataclass(frozen=True)
class Plot:
    """One panel; `component` is the target's column it is about, where it is about one."""

    title: str
    note: str
    x: str
    y: str
    series: tuple[Series, ...]
    x_range: Range
    y_range: Range
    log: bool = False
    component: int | None = None


def curves(results: Results) -> list[Plot]:
    """Loss and RMSE over the epochs, with the constant predictor's RMSE."""
    return _curves(results, results.history, results.metrics.best_epoch, results.metrics.epochs)


def finetune_curves(results: Results) -> list[Plot]:
    """The same over the epochs of fine-tuning, where there are any; epoch 0 is the two stages' own result."""
    if results.tuned is None:
        return []
    drawn = _curves(results, results.tuning, results.tuned.best_epoch, results.tuned.epochs)
    return [replace(plot, note=f"Epoch 0: the two stages. {plot.note}") for plot in drawn]


def _curves(results: Results, history: tuple[HistoryRow, ...], kept: int, count: int) -> list[Plot]:
    metrics = results.metrics
    if len(history) < 2:  # a dot is no curve
        return []
    epochs = [float(row.epoch) for row in history]
    width = epochs[0] - 0.5, epochs[-1] + 0.5
    losses = [row.loss for row in history], [row.val_loss for row in history]
    errors = [row.rmse for row in history], [row.val_rmse for row in history]
    compared = "validation" if any(v is not None for v in errors[1]) else "train"
    split = metrics.splits.get(compared)
    constant = split.constant.rmse if split else None
    plots = []
    for title, unit, (train, validation) in (("Loss", None, losses), ("RMSE", metrics.unit, errors)):
        series = [Series("training", "line", "train", epochs, train)]
        if any(v is not None for v in validation):
            series.append(Series("validation", "line", "model", epochs, validation))
        best = [(e, v) for e, v in zip(epochs, series[-1].y, strict=True) if e == kept]
        series.append(Series("kept", "ring", "model", [e for e, _ in best], [v for _, v in best]))
        if title == "RMSE" and constant is not None:
            series.append(Series("constant", "dashed", "constant", list(width), [constant] * 2))
        values = [v for s in series for v in s.y if v is not None]
        if not values:
            continue
        log = min(values) > 0 and max(values) / min(values) > LOG_AXIS_RATIO
        note = f"Epoch {kept} of {count} was kept."
        if title == "RMSE":
            note += f" Dashed: the constant predictor on the {compared} split."
        span = _span(values, log=log, zero=not log)
        plots.append(Plot(title, note, "epoch", _named(title, unit), tuple(series), width, span, log))
    return plots


def scatters(results: Results, component: int) -> list[Plot]:
    """Predicted against true, the residuals' histogram, and the residuals against true, for one component.

    The constant predictor stands in each: its answer, its residuals' histogram, its residuals.
    """
    examples, unit = results.counted, results.metrics.unit_of(component)
    if not examples:
        return []
    constant = results.constant[component] if results.constant else None
    true = np.array([e.true[component] for e in examples])
    predicted = np.array([e.predicted[component] for e in examples])
    residual = predicted - true
    shown = thin_out(len(examples))
    x = [float(true[i]) for i in shown]
    note = "" if len(shown) == len(examples) else f" {len(shown):,} of {len(examples):,} examples are drawn."

    ends = _span([*true, *predicted, *([] if constant is None else [constant])])
    against = [
        Series("perfect", "line", "guide", list(ends), list(ends)),
        Series("model", "points", "model", x, [float(predicted[i]) for i in shown]),
    ]
    left = _span(true)
    residuals = [
        Series("perfect", "line", "guide", list(left), [0.0, 0.0]),
        Series("model", "points", "model", x, [float(residual[i]) for i in shown]),
    ]
    bounds = list(residual)
    if constant is not None:
        against.append(Series("constant", "dashed", "constant", list(ends), [constant] * 2))
        residuals.append(Series("constant", "dashed", "constant", list(left), [constant - v for v in left]))
        bounds += [constant - v for v in true]
    counts, edges = np.histogram(residual, bins=_bins(bounds))
    centres = [float(v) for v in (edges[:-1] + edges[1:]) / 2]
    histogram = [Series("model", "bars", "model", centres, [float(n) for n in counts])]
    if constant is not None:
        blank, _ = np.histogram(constant - true, bins=edges)
        histogram.append(Series("constant", "steps", "constant", centres, [float(n) for n in blank]))
    tallest = max(v for s in histogram for v in s.y if v is not None)
    error = _named("predicted − true", unit)
    return [
        Plot(
            "Predicted against true",
            f"On the thin line a prediction is perfect; the dashed one is the constant predictor.{note}",
            _named("true", unit), _named("predicted", unit), tuple(against), ends, ends, component=component,
        ),
        Plot(
            "Residuals", "Filled: the model. Outlined: the constant predictor.", error, "examples",
            tuple(histogram), (float(edges[0]), float(edges[-1])), (0.0, 1.08 * tallest), component=component,
        ),
        Plot(
            "Residual against true", f"A cloud along the dashed line answers as the constant does.{note}",
            _named("true", unit), error, tuple(residuals), left, _span([*bounds, 0.0]),
            component=component,
        ),
    ]  # fmt: skip


def timeline(results: Results, store: ReportStore, component: int) -> Plot | None:
    """Truth and prediction over the counted split's sequence with the most labels; None where all have few."""
    by_sequence: dict[str, dict[int, PredictedExample]] = {}
    for example in results.counted:
        by_sequence.setdefault(example.sequence, {})[example.frame] = example
    name, rows = max(by_sequence.items(), key=lambda item: len(item[1]), default=("", {}))
    if len(rows) < LONG:
        return None
    fps = store.sequences[store.index(name)].fps
    shown = [rows[frame] for frame in sorted(rows)]
    shown = [shown[i] for i in thin_out(len(shown))]
    x = [e.frame / fps for e in shown]
    true, predicted = [e.true[component] for e in shown], [e.predicted[component] for e in shown]
    series = [Series("true", "line", "true", x, [*true]), Series("model", "line", "model", x, [*predicted])]
    values = [*true, *predicted]
    if results.constant:
        values.append(results.constant[component])
        series.append(Series("constant", "dashed", "constant", [x[0], x[-1]], [values[-1]] * 2))
    unit = _named(results.metrics.target[component], results.metrics.unit_of(component))
    note = f"{name}, the sequence with the most labels."
    return Plot("Over time", note, "time [s]", unit, tuple(series), (x[0], x[-1]), _span(values))


def thin_out(count: int) -> list[int]:
    """At most `MAX_POINTS` of `count` positions, evenly spread."""
    return [i * count // MAX_POINTS for i in range(MAX_POINTS)] if count > MAX_POINTS else list(range(count))


def _named(name: str, unit: str | None) -> str:
    return f"{name} [{unit}]" if unit else name


def _span(values: Iterable[float], *, log: bool = False, zero: bool = False) -> Range:
    """The values' range and a margin; on a logarithmic axis the margin is a factor."""
    listed = [float(v) for v in values]
    low, high = min(listed), max(listed)
    if log:
        margin = (high / low) ** 0.06
        return low / margin, high * margin
    if zero:
        low = min(low, 0.0)
    margin = 0.05 * (high - low) or 0.5
    return low if zero and low == 0 else low - margin, high + margin


def _bins(values: Iterable[float]) -> list[float]:
    """Edges of equal bins of a round width, one of which is 0, so that signs do not mix."""
    listed = [float(v) for v in values]
    low, high = min(listed), max(listed)
    width = round_step((high - low) / 24 or 1.0)
    start, stop = math.floor(low / width), math.floor(high / width) + 1
    return [i * width for i in range(start, stop + 1)]


def round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))
