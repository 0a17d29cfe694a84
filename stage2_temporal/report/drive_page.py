"""The page of one drive: its frames to step through, and the predictions over time with their intervals.

They are about the camera's own car, or about vehicles in boxes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.types import Floats
from features.streams import UNITS
from stage2_temporal.evaluation.uncertainty import UncertainPredictions
from stage2_temporal.report.clips import spread_evenly
from stage2_temporal.report.page import environment, number, read_script
from stage2_temporal.report.plots import MAX_POINTS, Plot, Series, padded_range, with_unit

MAX_PICTURES = 240  # frames that the page embeds
STRIP_PICTURES = 8  # of which it shows without a script
MAX_ROWS = 400  # of the table
MAX_CHARTED = 8  # vehicles with charts


@dataclass(frozen=True)
class Drive:
    """The predictions over one video."""

    name: str
    times: Floats  # seconds of every frame
    frames: NDArray[np.int64]  # (n,) the frame of each prediction, ascending
    predictions: UncertainPredictions
    columns: Sequence[str]  # the targets
    vehicles: Sequence[str] = ()  # (n,) which vehicle each prediction is about; none: the camera's own car


def shown_frames(drive: Drive) -> list[int]:
    """The frames that the page shows: those with a prediction, or as many of them, evenly spread, as it can embed."""
    predicted = np.unique(drive.frames)
    frames: list[int] = predicted[spread_evenly(len(predicted), MAX_PICTURES)].tolist()
    return frames


def write_drive_page(path: Path, drive: Drive, pictures: dict[int, bytes]) -> None:
    """Write the page, which loads nothing from anywhere, with JPEGs of the `shown_frames`."""
    html = drive_html(drive, pictures)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def drive_html(drive: Drive, pictures: dict[int, bytes]) -> str:
    """The page as HTML."""
    predictions, shown = drive.predictions, shown_frames(drive)
    indices: dict[int, list[int]] = {}
    for i, frame in enumerate(drive.frames.tolist()):
        indices.setdefault(frame, []).append(i)
    uris = {f: "data:image/jpeg;base64," + base64.b64encode(pictures[f]).decode() for f in shown if f in pictures}
    strip = [i for i in spread_evenly(len(shown), STRIP_PICTURES) if shown[i] in uris]
    moments = [_moment(drive, frame, indices[frame]) for frame in shown]
    return (
        environment()
        .get_template("drive.html.jinja")
        .render(
            drive=drive,
            predictions=predictions,
            columns=[(name, UNITS.get(name) or "") for name in drive.columns],
            percent=f"{100 * predictions.level:g} %" if math.isfinite(predictions.level) else "",
            threshold=predictions.threshold,
            tiles=list(_tiles(drive)),
            charts=_charts(drive),
            vehicles=len(set(drive.vehicles)),
            strip=[(moments[i], uris[shown[i]], i) for i in strip],
            shown=len(shown),
            predicted=len(indices),
            rows=[_row(drive, i) for i in spread_evenly(len(drive.frames), MAX_ROWS)],
            data={
                "moments": moments,
                "pictures": {i: uris[f].partition(",")[2] for i, f in enumerate(shown) if f in uris and i not in strip},
            },
            script=read_script("drive.js"),
        )
    )


def _moment(drive: Drive, frame: int, indices: Sequence[int]) -> dict[str, Any]:
    """What the page says about one frame: all its predictions."""
    time = round(float(drive.times[frame]), 3)
    return {"frame": frame, "time": time, "readings": [_row(drive, i) for i in indices]}


def _row(drive: Drive, i: int) -> dict[str, Any]:
    """What the page says about one prediction."""
    predictions, frame = drive.predictions, int(drive.frames[i])
    values = []
    for k in range(len(drive.columns)):
        low, high = float(predictions.low[i, k]), float(predictions.high[i, k])
        above = None if predictions.above is None else f"{100 * predictions.above[i, k]:.0f} %"
        interval = f"{number(low, 1)} to {number(high, 1)}" if math.isfinite(low) else ""
        values.append({"value": number(float(predictions.values[i, k]), 1), "interval": interval, "above": above})
    return {
        "frame": frame,
        "time": round(float(drive.times[frame]), 3),
        "vehicle": drive.vehicles[i] if drive.vehicles else "",
        "targets": values,
        "unlike": predictions.is_unlike(i),
    }


def _tiles(drive: Drive) -> Iterator[tuple[str, str, str]]:
    """Name, value and unit of what sums up the drive: of its own car each target's mean and range."""
    predictions = drive.predictions
    if drive.vehicles:
        yield "vehicles", f"{len(set(drive.vehicles)):,}", ""
        yield "frames with predictions", f"{len(np.unique(drive.frames)):,}", ""
    for k, name in enumerate(drive.columns):
        values, unit = predictions.values[:, k], UNITS.get(name) or ""
        if not drive.vehicles:
            yield f"{name}, mean", number(float(values.mean()), 1), unit
            yield f"{name}, range", f"{number(float(values.min()), 1)} to {number(float(values.max()), 1)}", unit
        if predictions.above is not None:
            share = f"{100 * float((predictions.above[:, k] > 0.5).mean()):.0f} %"
            of = f"predictions of {name}" if drive.vehicles else "time"
            yield f"{of} probably above {predictions.threshold:g} {unit}".rstrip(), share, ""


def _charts(drive: Drive) -> list[tuple[str, list[Plot]]]:
    """The plots of each vehicle that has charts, those seen longest, with its name; "" is the camera's own car."""
    names = np.array(drive.vehicles or [""] * len(drive.frames))
    unique, counts = np.unique(names, return_counts=True)
    longest = sorted(unique[np.argsort(-counts, kind="stable")[:MAX_CHARTED]].tolist())
    return [
        (name, [_plot(drive, np.flatnonzero(names == name), k) for k in range(len(drive.columns))]) for name in longest
    ]


def _plot(drive: Drive, rows: NDArray[np.int64], k: int) -> Plot:
    """A target over time in some predictions: its band, the threshold, and where footage is unlike the training's."""
    chosen = rows[spread_evenly(len(rows), MAX_POINTS)]
    predictions, name = drive.predictions[chosen], drive.columns[k]
    x = drive.times[drive.frames[chosen]].tolist()
    values, low, high = (part[:, k].tolist() for part in (predictions.values, predictions.low, predictions.high))
    threshold = predictions.threshold
    limits = [*values, *low, *high, *([] if threshold is None else [threshold])]
    y_range = padded_range([v for v in limits if math.isfinite(v)])
    series = [Series(name, "line", "model", x, values)]
    if np.isfinite(low).all():
        series.insert(0, Series("interval", "band", "model", [*x, *x[::-1]], [*high, *low[::-1]]))
    first, last = drive.times[drive.frames[[0, -1]]].tolist()
    span = [first, last if last > first else first + 1]  # the same for all vehicles
    if threshold is not None:
        series.append(Series("threshold", "dashed", "constant", span, [threshold] * 2))
    flagged = [t for i, t in enumerate(x) if predictions.is_unlike(i)]
    if flagged:
        series.append(Series("unlike training", "points", "bad", flagged, [y_range[0]] * len(flagged)))
    unit = UNITS.get(name)
    return Plot(name, "", "time [s]", with_unit(name, unit), tuple(series), (span[0], span[1]), y_range, component=k)
