"""What the report's plots show; `svg.py` draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from features.store import Store
from stage2_temporal.report.clips import spread_evenly
from stage2_temporal.report.coverage import usual_band
from stage2_temporal.runs.results import PredictedExample, Results

Kind = Literal["line", "dashed", "points", "ring", "bars", "steps", "band"]
Role = Literal["model", "train", "true", "constant", "guide", "bad"]
Range = tuple[float, float]

MAX_POINTS = 2000  # points in one plot; more would overlap and slow the page down
MIN_TIMELINE_LABELS = 20  # a sequence needs this many labels for a plot over time
SMALLEST_LOSS = 1e-30  # on a logarithmic axis; below it is rounding
LOG_AXIS_RATIO = 30.0  # if the largest loss is this many times the smallest, the axis is logarithmic


@dataclass(frozen=True)
class Series:
    """One line, cloud, row of bars or outline of a band; `role` decides its colour, NaN is a gap."""

    name: str
    kind: Kind
    role: Role
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Plot:
    """One panel; `component` is the target's column that it is about, if any."""

    title: str
    note: str
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    x_range: Range
    y_range: Range
    log: bool = False
    component: int | None = None
    x_log: bool = False


def curves(results: Results, *, finetuning: bool = False) -> list[Plot]:
    """Loss and RMSE over the epochs of training or fine-tuning, if any, with the constant predictor's RMSE."""
    metrics = results.metrics
    fit = results.finetune_metrics if finetuning else metrics
    history = results.finetune_history if finetuning else results.history
    if fit is None or len(history) < 2:  # a dot is not a curve
        return []
    epochs = [float(row.epoch) for row in history]
    x_range = epochs[0] - 0.5, epochs[-1] + 0.5
    losses = [row.loss for row in history], [row.val_loss for row in history]
    errors = [row.rmse for row in history], [row.val_rmse for row in history]
    split_name = "validation" if any(map(math.isfinite, errors[1])) else "train"
    split = metrics.splits.get(split_name)
    constant = split.constant.rmse if split else math.nan
    plots = []
    for title, unit, (training, validation) in (("Loss", None, losses), ("RMSE", metrics.unit, errors)):
        series = [Series("training", "line", "train", epochs, training)]
        if any(map(math.isfinite, validation)):
            series.append(Series("validation", "line", "model", epochs, validation))
        best = [(e, v) for e, v in zip(epochs, series[-1].y, strict=True) if e == fit.best_epoch]
        series.append(Series("saved model", "ring", "model", [e for e, _ in best], [v for _, v in best]))
        if title == "RMSE" and math.isfinite(constant):
            series.append(Series("constant", "dashed", "constant", list(x_range), [constant] * 2))
        values = [v for s in series for v in s.y if math.isfinite(v)]
        if not values:
            continue
        log = min(values) > SMALLEST_LOSS and max(values) / min(values) > LOG_AXIS_RATIO
        note = "Epoch 0 is the two-stage model. " if finetuning else ""
        averaged = finetuning and fit.best_epoch == fit.epochs
        saved = "the average of their weights" if averaged else f"that of epoch {fit.best_epoch} of {fit.epochs}"
        note += f"The saved model is {saved}."
        if title == "RMSE":
            note += f" Dashed: the constant predictor on the {split_name} split."
        y_range = padded_range(values, log=log, zero=not log)
        plots.append(Plot(title, note, "epoch", with_unit(title, unit), tuple(series), x_range, y_range, log))
    return plots


def scatters(results: Results, component: int) -> list[Plot]:
    """Predicted against true, the residuals' histogram, and the residuals against true, with the constant predictor."""
    examples, unit = results.verdict_examples, results.metrics.unit_of(component)
    if not examples:
        return []
    constant = results.constant[component]
    true = np.array([e.true[component] for e in examples])
    predicted = np.array([e.predicted[component] for e in examples])
    residual, constant_residual = predicted - true, constant - true
    drawn = spread_evenly(len(examples), MAX_POINTS)
    x = true[drawn].tolist()
    note = "" if len(drawn) == len(examples) else f" Shows {len(drawn):,} of {len(examples):,} examples."

    value_range, true_range = padded_range([*true, *predicted, constant]), padded_range(true)
    band = _interval_band(results, component, value_range)
    against = [
        *band,
        Series("perfect", "line", "guide", list(value_range), list(value_range)),
        Series("model", "points", "model", x, predicted[drawn].tolist()),
        Series("constant", "dashed", "constant", list(value_range), [constant] * 2),
    ]
    band_note = f" The band is the usual {100 * (results.metrics.interval_level or 0):g} % interval." if band else ""
    residuals = [
        Series("perfect", "line", "guide", list(true_range), [0.0, 0.0]),
        Series("model", "points", "model", x, residual[drawn].tolist()),
        Series("constant", "dashed", "constant", list(true_range), [constant - v for v in true_range]),
    ]
    all_residuals = [*residual, *constant_residual]
    low, high = _extremes(all_residuals)
    width = round_step((high - low) / 24 or 1.0)
    edges = np.arange(math.floor(low / width), math.floor(high / width) + 2) * width  # 0 is one: no bin mixes signs
    centres = ((edges[:-1] + edges[1:]) / 2).tolist()
    counts, constant_counts = (np.histogram(values, edges)[0].tolist() for values in (residual, constant_residual))
    histogram = [
        Series("model", "bars", "model", centres, counts),
        Series("constant", "steps", "constant", centres, constant_counts),
    ]
    highest = max(v for s in histogram for v in s.y)
    error = with_unit("predicted − true", unit)
    return [
        Plot(
            "Predicted against true",
            f"Perfect predictions lie on the thin line.{band_note} Dashed: the constant predictor.{note}",
            with_unit("true", unit), with_unit("predicted", unit), tuple(against), value_range, value_range,
            component=component,
        ),
        Plot(
            "Residuals", "Filled: the model. Outlined: the constant predictor.", error, "examples",
            tuple(histogram), (float(edges[0]), float(edges[-1])), (0.0, 1.08 * highest), component=component,
        ),
        Plot(
            "Residual against true", f"Dots along the dashed line: the model predicts like the constant.{note}",
            with_unit("true", unit), error, tuple(residuals), true_range, padded_range([*all_residuals, 0.0]),
            component=component,
        ),
    ]  # fmt: skip


def _interval_band(results: Results, component: int, value_range: Range) -> list[Series]:
    """The usual width of the intervals round the perfect line; empty if there are none."""
    examples = results.verdict_examples
    ends = np.array([(e.low[component], e.high[component]) for e in examples if e.low]).reshape(-1, 2)
    if len(ends) < len(examples) or not np.isfinite(ends).all():
        return []
    x, half = usual_band(np.array([e.true[component] for e in examples]), (ends[:, 1] - ends[:, 0]) / 2)
    x, half = np.array([value_range[0], *x, value_range[1]]), np.array([half[0], *half, half[-1]])
    low, high = np.maximum(x - half, value_range[0]), np.minimum(x + half, value_range[1])
    return [Series("interval", "band", "model", [*x, *x[::-1]], [*high, *low[::-1]])]


def timeline(results: Results, store: Store, component: int) -> Plot | None:
    """Truth and prediction over the sequence with the most labels; None if it has too few for a curve."""
    by_sequence: dict[str, dict[int, PredictedExample]] = {}
    for example in results.verdict_examples:
        by_sequence.setdefault(example.sequence, {})[example.frame] = example
    name, by_frame = max(by_sequence.items(), key=lambda item: len(item[1]), default=("", {}))
    if len(by_frame) < MIN_TIMELINE_LABELS:
        return None
    sequence = store.sequences[store.index(name)]
    examples = [by_frame[frame] for frame in sorted(by_frame)]
    examples = [examples[i] for i in spread_evenly(len(examples), MAX_POINTS)]
    times = sequence.frame_times.tolist()  # a label's frame may lie outside the sequence
    x = [times[e.frame] if 0 <= e.frame < sequence.length else e.frame / sequence.fps for e in examples]
    true, predicted = [e.true[component] for e in examples], [e.predicted[component] for e in examples]
    constant = results.constant[component]
    series = (
        Series("true", "line", "true", x, true),
        Series("model", "line", "model", x, predicted),
        Series("constant", "dashed", "constant", [x[0], x[-1]], [constant] * 2),
    )
    y_title = with_unit(results.metrics.target[component], results.metrics.unit_of(component))
    note = f"{name}, the sequence with the most labels."
    return Plot(
        "Over time", note, "time [s]", y_title, series, (x[0], x[-1]), padded_range([*true, *predicted, constant])
    )


def round_step(step: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def with_unit(name: str, unit: str | None) -> str:
    return f"{name} [{unit}]" if unit else name


def _extremes(values: Iterable[float]) -> Range:
    finite = [float(v) for v in values if math.isfinite(v)]
    return min(finite), max(finite)


def padded_range(values: Iterable[float], *, log: bool = False, zero: bool = False) -> Range:
    """The values' range with a margin, which is a factor on a logarithmic axis; with `zero`, it includes 0."""
    low, high = _extremes(values)
    if log:
        margin = (high / low) ** 0.06
        return low / margin, high * margin
    if zero:
        low = min(low, 0.0)
    margin = 0.05 * (high - low) or 0.5
    return low if zero and low == 0 else low - margin, high + margin
