"""A plot as an SVG that needs no JavaScript; `report.js` finds its points, bars and scales in it.

It names no colour: series carry their role, and the page's style sheet says which colour that is in which scheme.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from markupsafe import Markup

from stage2_temporal.report.plots import Plot, Range, Series, round_step

PAGE, HEIGHT = 1100, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 8, 40
MAX_COLUMNS = 200  # places of a plot at most that say their values


def plot_svg(plot: Plot, across_the_page: int = 3) -> Markup:
    """A plot; its colours are the classes `role-…` of the page's style sheet.

    Args:
        across_the_page: how many such plots stand side by side, which decides its width.
    """
    width = PAGE // across_the_page
    across = _scale(plot.x_range, LEFT, width - RIGHT)
    up = _scale(plot.y_range, HEIGHT - BOTTOM, TOP, log=plot.log)
    parts = [Markup('<svg viewBox="0 0 {} {}" aria-hidden="true"').format(width, HEIGHT)]
    if plot.component is not None and not plot.log:  # where the values 0 and 1 lie
        scales = Markup(' data-component="{}" data-across="{:.4f} {:.4f}" data-up="{:.4f} {:.4f}"')
        parts.append(scales.format(plot.component, across(0.0), across(1.0), up(0.0), up(1.0)))
    parts.append(Markup(">"))
    for value in ticks(plot.x_range, width // 60):
        at = across(value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(at, TOP, HEIGHT - BOTTOM))
        parts.append(Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(at, HEIGHT - 24, _short(value)))
    for value in ticks(plot.y_range, 6, log=plot.log):
        at = up(value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, at, width - RIGHT))
        parts.append(Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(LEFT - 6, at + 4, _short(value)))
    parts += [_mark(series, across, up) for series in plot.series]
    parts += [
        Markup('<rect class="column" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
            across(left), TOP, across(right) - across(left), HEIGHT - BOTTOM - TOP, text
        )
        for left, right, text in _columns(plot)
    ]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format((width + LEFT) / 2, HEIGHT - 6, plot.x))
    turned = Markup('<text transform="translate(11 {}) rotate(-90)" class="middle">{}</text></svg>')
    parts.append(turned.format(middle, plot.y))
    return Markup("").join(parts)


def _columns(plot: Plot) -> Iterator[tuple[float, float, str]]:
    """From where to where on the x axis which values hold, for plots whose series share their x."""

    def short(value: float) -> str:
        return _short(value, 4)

    drawn = [s for s in plot.series if s.kind in ("line", "bars", "steps") and s.role != "guide"]
    if not drawn or any(s.kind == "points" for s in plot.series):
        return
    x = drawn[0].x
    edges = [plot.x_range[0], *((a + b) / 2 for a, b in itertools.pairwise(x)), plot.x_range[1]]
    flat = [f"{s.name} {short(s.y[0])}" for s in plot.series if s.kind == "dashed" and s.y[0] is not None]
    kept = range(0, len(x), -(-len(x) // MAX_COLUMNS))
    for i, after in zip(kept, [*kept[1:], len(x)], strict=True):
        if drawn[0].kind == "bars":
            at = f"{short(edges[i])} to {short(edges[i + 1])}"
        else:
            at = f"{plot.x.split(' [')[0]} {short(x[i])}"
        values = [f"{s.name} {short(y)}" for s in drawn if (y := s.y[i]) is not None]
        yield edges[i], edges[after], f"{at}: {', '.join([*values, *flat])}"


def _mark(series: Series, across: Callable[[float], float], up: Callable[[float], float]) -> Markup:
    known = [(across(x), None if y is None else up(y)) for x, y in zip(series.x, series.y, strict=True)]
    points = [(x, y) for x, y in known if y is not None]
    style = f"{series.kind} role-{series.role}"
    if series.kind == "ring":
        path = "".join(f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0" for x, y in points)
    elif series.kind == "points":
        # a dot is a line of no length with round ends: one path for the whole cloud
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    elif series.kind in ("bars", "steps"):
        half = (points[1][0] - points[0][0]) / 2 if len(points) > 1 else 10
        base = up(0.0)
        if series.kind == "bars":
            path = "".join(f"M{x - 0.9 * half:.1f} {base:.1f}V{y:.1f}h{1.8 * half:.1f}V{base:.1f}Z" for x, y in points)
        else:
            path = f"M{points[0][0] - half:.1f} {base:.1f}" + "".join(f"V{y:.1f}h{2 * half:.1f}" for _, y in points)
            path += f"V{base:.1f}"
    else:
        path, broken = "", True
        for x, y in known:
            if y is not None:
                path += f"{'M' if broken else 'L'}{x:.1f} {y:.1f}"
            broken = y is None
    return Markup('<path class="{}" d="{}"/>').format(style, path)


def _scale(values: Range, start: float, stop: float, *, log: bool = False) -> Callable[[float], float]:
    low, high = (math.log10(v) for v in values) if log else values

    def place(value: float) -> float:
        return start + ((math.log10(value) if log else value) - low) / (high - low) * (stop - start)

    return place


def ticks(values: Range, count: int, *, log: bool = False) -> list[float]:
    """At most about `count` round values inside a range."""
    low, high = values
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        return [v for p in powers for m in (1, 2, 5) if low <= (v := m * 10.0**p) <= high]
    step = round_step((high - low) / count)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("-", "−")
