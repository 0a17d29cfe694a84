"""The page of one drive: its frames to step through, and the predictions over time with their intervals."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.types import Floats
from features.streams import UNITS
from stage2_temporal.evaluation.uncertainty import UncertainPredictions
from stage2_temporal.report.clips import spread_evenly
from stage2_temporal.report.page import TEMPLATES, environment, number
from stage2_temporal.report.plots import MAX_POINTS, Plot, Series, padded_range, with_unit

MAX_PICTURES = 240  # frames that the page embeds
STRIP_PICTURES = 8  # of which it shows without a script
MAX_ROWS = 400  # of the table


@dataclass(frozen=True)
class Drive:
    """The predictions over one video."""

    name: str
    times: Floats  # seconds of every frame
    frames: NDArray[np.int64]  # (n,) the frame of each prediction
    predictions: UncertainPredictions
    columns: Sequence[str]  # the targets


def shown_frames(drive: Drive) -> list[int]:
    """The frames that the page shows: those with a prediction, or as many of them, evenly spread, as it can embed."""
    frames: list[int] = drive.frames[spread_evenly(len(drive.frames), MAX_PICTURES)].tolist()
    return frames


def write_drive_page(path: Path, drive: Drive, pictures: dict[int, bytes]) -> None:
    """Write the page, which loads nothing from anywhere, with JPEGs of the `shown_frames`."""
    html = drive_html(drive, pictures)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def drive_html(drive: Drive, pictures: dict[int, bytes]) -> str:
    """The page as HTML."""
    predictions, shown = drive.predictions, shown_frames(drive)
    window_at = {frame: i for i, frame in enumerate(drive.frames.tolist())}
    uris = {f: "data:image/jpeg;base64," + base64.b64encode(pictures[f]).decode() for f in shown if f in pictures}
    strip = [shown[i] for i in spread_evenly(len(shown), STRIP_PICTURES)]
    rows = [_row(drive, i) for i in spread_evenly(len(drive.frames), MAX_ROWS)]
    return (
        environment()
        .get_template("drive.html.jinja")
        .render(
            drive=drive,
            predictions=predictions,
            columns=[(name, UNITS.get(name) or "") for name in drive.columns],
            percent=f"{100 * predictions.level:g} %" if math.isfinite(predictions.level) else "",
            threshold=predictions.threshold,
            summaries=[_summary(drive, k) for k in range(len(drive.columns))],
            plots=[_plot(drive, k) for k in range(len(drive.columns))],
            strip=[
                (_row(drive, window_at[frame]), uris[frame], shown.index(frame)) for frame in strip if frame in uris
            ],
            shown=len(shown),
            rows=rows,
            data={
                "rows": [_row(drive, window_at[frame]) for frame in shown],
                "pictures": {i: uris[f].partition(",")[2] for i, f in enumerate(shown) if f in uris and f not in strip},
            },
            script=Markup((TEMPLATES / "drive.js").read_text(encoding="utf-8")),
        )
    )


def _row(drive: Drive, i: int) -> dict[str, Any]:
    """What the page says about one window."""
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
        "targets": values,
        "unlike": predictions.is_unlike(i),
    }


def _summary(drive: Drive, k: int) -> dict[str, str]:
    """Mean and range of a target, and how long it is probably above the threshold."""
    predictions = drive.predictions
    values = predictions.values[:, k]
    summary = {
        "mean": number(float(values.mean()), 1),
        "range": f"{number(float(values.min()), 1)} to {number(float(values.max()), 1)}",
    }
    if predictions.above is not None:
        summary["above"] = f"{100 * float((predictions.above[:, k] > 0.5).mean()):.0f} %"
    return summary


def _plot(drive: Drive, k: int) -> Plot:
    """A target over time: its band, the threshold, and where footage is unlike the training's."""
    chosen = spread_evenly(len(drive.frames), MAX_POINTS)
    predictions, name = drive.predictions[np.array(chosen)], drive.columns[k]
    x = drive.times[drive.frames[chosen]].tolist()
    values, low, high = (part[:, k].tolist() for part in (predictions.values, predictions.low, predictions.high))
    threshold = predictions.threshold
    limits = [*values, *low, *high, *([] if threshold is None else [threshold])]
    y_range = padded_range([v for v in limits if math.isfinite(v)])
    series = [Series(name, "line", "model", x, values)]
    if np.isfinite(low).all():
        series.insert(0, Series("interval", "band", "model", [*x, *x[::-1]], [*high, *low[::-1]]))
    span = [x[0], x[-1] if x[-1] > x[0] else x[0] + 1]
    if threshold is not None:
        series.append(Series("threshold", "dashed", "constant", span, [threshold] * 2))
    flagged = [t for i, t in enumerate(x) if predictions.is_unlike(i)]
    if flagged:
        series.append(Series("unlike training", "points", "bad", flagged, [y_range[0]] * len(flagged)))
    unit = UNITS.get(name)
    return Plot(name, "", "time [s]", with_unit(name, unit), tuple(series), (span[0], span[1]), y_range, component=k)
