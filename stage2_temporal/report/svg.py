"""Geometry of the plots and of a clip's arrows and bars, which templates draw as SVG; `report.js` draws alike.

The SVG names no colours: a series has its role as a class, and the page's style sheet gives the role a colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stage2_temporal.report.clips import Rectangle
from stage2_temporal.report.plots import Plot, Range, Series, round_step
from stage2_temporal.runs.results import PredictedExample

PAGE_WIDTH, HEIGHT = 1100, 300
RIGHT, TOP, BOTTOM = 8, 8, 40  # margins
TITLE_WIDTH, DIGIT_WIDTH, MIN_LEFT = 26, 8, 52  # left margin: y title, one digit of a tick label, least width
MAX_COLUMNS = 200  # columns of a plot that show their values under the pointer
VELOCITY = ("vx", "vy")
MAX_ARROW_LENGTH = 26.0
BARS_LENGTH = 100  # from the smallest to the largest value
AxisScale = Callable[[float], float]  # from a value to its place in the drawing


def plot_drawing(plot: Plot, plots_per_row: int) -> dict[str, Any]:
    """What `predictions.html.jinja` draws a plot from, so wide that `plots_per_row` of them fill the page's width."""
    width = PAGE_WIDTH // plots_per_row
    y_ticks = ticks(plot.y_range, 6, log=plot.log)
    left = max(MIN_LEFT, TITLE_WIDTH + DIGIT_WIDTH * max((len(_format(v)) for v in y_ticks), default=0))
    to_x = _scale(plot.x_range, left, width - RIGHT, log=plot.x_log)
    to_y = _scale(plot.y_range, HEIGHT - BOTTOM, TOP, log=plot.log)
    edges = {"left": left, "right": width - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    return {
        **edges,
        "size": (width, HEIGHT),
        "scales": (to_x, to_y),
        "x_ticks": [(to_x(value), _format(value)) for value in ticks(plot.x_range, width // 60, log=plot.x_log)],
        "y_ticks": [(to_y(value), _format(value)) for value in y_ticks],
        "marks": [(series, _path(series, to_x, to_y)) for series in plot.series],
        "columns": [(to_x(start), to_x(stop), text) for start, stop, text in _columns(plot)],
    }


def ticks(values: Range, count: int, *, log: bool = False) -> list[float]:
    """About `count` round values at most inside a range."""
    low, high = values
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        return [v for p in powers for m in (1, 2, 5) if low <= (v := m * 10.0**p) <= high]
    step = round_step((high - low) / count)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


@dataclass(frozen=True)
class Arrows:
    """Velocities seen from above: x, forward, points up; y, right, points right."""

    columns: tuple[int, int]  # the target's vx and vy
    scale: float  # units of the drawing per m/s
    ring: float  # m/s of the ring that shows the scale

    def path(self, values: Sequence[float], side: int, box: Rectangle | None = None) -> str:
        """An arrow as an SVG path; it starts left (−1) or right (1) of the box or the centre, and hides neither."""
        left, top, width, height = box or (0.0, 0.0, 0.0, 0.0)
        x, y = left + width / 2 + side * max(width / 2 + 1.5, 3.0), top + height / 2
        vx, vy = (values[k] for k in self.columns)
        right, down = vy * self.scale, -vx * self.scale
        length = math.hypot(right, down)
        head, angle = min(4.0, 0.6 * length), math.atan2(down, right)
        barbs = [
            f"L{x + right - head * math.cos(angle + turn):.1f} {y + down - head * math.sin(angle + turn):.1f}"
            for turn in (-0.6, 0.6)
        ]
        tip = f"{x + right:.1f} {y + down:.1f}"
        return f"M{x:.1f} {y:.1f}L{tip}{barbs[0]}M{tip}{barbs[1]}"


def arrows(target: Sequence[str], examples: Iterable[PredictedExample]) -> Arrows | None:
    """The common scale of all arrows; None if the target has no velocity."""
    if not set(VELOCITY) <= set(target):
        return None
    columns = target.index("vx"), target.index("vy")
    fastest = max((math.hypot(*(v[k] for k in columns)) for e in examples for v in (e.true, e.predicted)), default=0.0)
    return Arrows(columns, MAX_ARROW_LENGTH / fastest, round_step(fastest / 4)) if fastest > 0 else None


def bars(examples: Sequence[PredictedExample], column: int) -> tuple[float, float]:
    """Where zero lies along a column's bars, and how long they are per unit of the value."""
    values = [0.0, *(v for e in examples for v in (e.true[column], e.predicted[column]))]
    scale = BARS_LENGTH / ((max(values) - min(values)) or 1.0)
    return abs(min(values)) * scale, scale


def _columns(plot: Plot) -> Iterator[tuple[float, float, str]]:
    """Start, stop and text of each column of the x axis that shows its values; only if the series share their x."""
    shared = [s for s in plot.series if s.kind in ("line", "bars", "steps") and s.role != "guide"]
    if not shared or any(s.kind == "points" and s.role == "model" for s in plot.series):
        return
    x = shared[0].x
    edges = [plot.x_range[0], *((a + b) / 2 for a, b in itertools.pairwise(x)), plot.x_range[1]]
    constants = [f"{s.name} {_format(s.y[0], 4)}" for s in plot.series if s.kind == "dashed" and math.isfinite(s.y[0])]
    columns = range(0, len(x), -(-len(x) // MAX_COLUMNS))
    for i, after in zip(columns, [*columns[1:], len(x)], strict=True):
        if shared[0].kind == "bars":
            place = f"{_format(edges[i], 4)} to {_format(edges[i + 1], 4)}"
        else:
            place = f"{plot.x_title.split(' [')[0]} {_format(x[i], 4)}"
        values = [f"{s.name} {_format(s.y[i], 4)}" for s in shared if math.isfinite(s.y[i])]
        yield edges[i], edges[after], f"{place}: {', '.join([*values, *constants])}"


def _path(series: Series, to_x: AxisScale, to_y: AxisScale) -> str:
    points = [(to_x(x), to_y(y)) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    if series.kind == "ring":
        return "".join(f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0" for x, y in points)
    if series.kind == "points":
        # a dot is a line of no length with round ends, so that the whole cloud is one path
        return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    if series.kind in ("bars", "steps"):
        half, base = (points[1][0] - points[0][0]) / 2 if len(points) > 1 else 10, to_y(0.0)
        if series.kind == "bars":
            return "".join(f"M{x - 0.9 * half:.1f} {base:.1f}V{y:.1f}h{1.8 * half:.1f}V{base:.1f}Z" for x, y in points)
        steps = "".join(f"V{y:.1f}h{2 * half:.1f}" for _, y in points)
        return f"M{points[0][0] - half:.1f} {base:.1f}{steps}V{base:.1f}"
    path, command = "", "M"
    for x, y in zip(series.x, series.y, strict=True):
        if math.isfinite(y):
            path += f"{command}{to_x(x):.1f} {to_y(y):.1f}"
        command = "L" if math.isfinite(y) else "M"
    return path + ("Z" if series.kind == "band" else "")


def _scale(values: Range, start: float, stop: float, *, log: bool = False) -> AxisScale:
    low, high = (math.log10(v) for v in values) if log else values
    return lambda value: start + ((math.log10(value) if log else value) - low) / (high - low) * (stop - start)


def _format(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("-", "−")
