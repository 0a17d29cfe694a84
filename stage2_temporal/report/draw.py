"""Two drawings of one plot: a plotly figure, and a small SVG that needs no JavaScript.

Neither names a colour: series carry their role, and the page's style sheet says which colour that is in which scheme.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from html import escape
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from stage2_temporal.report.plots import Plot, Range, Series, nice

PAGE, HEIGHT = 1100, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 40


def figure(plot: Plot) -> dict[str, Any]:
    """A plotly figure as JSON values; every trace's `meta` is its role."""
    drawn = go.Figure()
    for series in plot.series:
        common = {"name": series.name, "meta": series.role, "x": series.x, "y": series.y}
        if series.kind == "bars":
            drawn.add_bar(**common, hovertemplate="%{y} examples at %{x:.3g}")
            continue
        look: dict[str, Any] = {"mode": "lines", "hovertemplate": "%{y:.4g}"}
        if series.kind == "points":
            # plotly reads a little HTML in texts, and a sequence's id is data
            look = {"mode": "markers", "text": [escape(t) for t in series.text or []]}
            look["hovertemplate"] = "%{text}<br>%{x:.3f} → %{y:.3f}<extra></extra>"
            look["marker"] = {"size": 5, "opacity": 0.6 if len(series.x) < 500 else 0.3}
        elif series.kind == "ring":
            look = {"mode": "markers", "marker": {"size": 10, "symbol": "circle-open", "line": {"width": 2}}}
            look["hovertemplate"] = "%{y:.4g}"
        elif series.kind == "steps":
            look |= {"line": {"shape": "hvh", "width": 1.5}, "hovertemplate": "%{y} examples"}
        else:
            dash = "dash" if series.kind == "dashed" else "solid"
            look["line"] = {"width": 1 if series.role == "guide" else 2, "dash": dash}
        drawn.add_scatter(**common, **look)
    x_axis = {"title": {"text": plot.x}, "range": plot.x_range, "zeroline": False}
    y_axis: dict[str, Any] = {"title": {"text": plot.y}, "range": plot.y_range, "zeroline": False}
    if plot.log:
        y_axis |= {"type": "log", "range": [math.log10(v) for v in plot.y_range], "dtick": "D1"}
    drawn.update_layout(
        template=None, xaxis=x_axis, yaxis=y_axis, showlegend=False, bargap=0.06,
        margin={"l": 52, "r": 8, "t": 8, "b": 42}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
    )  # fmt: skip
    value: dict[str, Any] = json.loads(drawn.to_json())
    value["layout"].pop("template", None)  # 7 kB of defaults a figure
    return value


def svg(plot: Plot, across_the_page: int = 3) -> Markup:
    """The same plot as an SVG; its colours are the classes `role-…` of the page's style sheet.

    Args:
        across_the_page: how many such plots stand side by side, which decides its width.
    """
    width = PAGE // across_the_page
    across = _scale(plot.x_range, LEFT, width - RIGHT)
    up = _scale(plot.y_range, HEIGHT - BOTTOM, TOP, log=plot.log)
    parts = [Markup('<svg viewBox="0 0 {} {}" aria-hidden="true">').format(width, HEIGHT)]
    for value in ticks(plot.x_range, width // 60):
        at = across(value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(at, TOP, HEIGHT - BOTTOM))
        parts.append(Markup('<text x="{:.1f}" y="{}" class="middle">{}</text>').format(at, HEIGHT - 24, _short(value)))
    for value in ticks(plot.y_range, 6, log=plot.log):
        at = up(value)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, at, width - RIGHT))
        parts.append(Markup('<text x="{}" y="{:.1f}" class="end">{}</text>').format(LEFT - 6, at + 4, _short(value)))
    parts += [_mark(series, across, up) for series in plot.series]
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(Markup('<text x="{}" y="{}" class="middle">{}</text>').format((width + LEFT) / 2, HEIGHT - 6, plot.x))
    turned = Markup('<text transform="translate(11 {}) rotate(-90)" class="middle">{}</text></svg>')
    parts.append(turned.format(middle, plot.y))
    return Markup("").join(parts)


def _mark(series: Series, across: Callable[[float], float], up: Callable[[float], float]) -> Markup:
    known = [(across(x), None if y is None else up(y)) for x, y in zip(series.x, series.y, strict=True)]
    points = [(x, y) for x, y in known if y is not None]
    style = f"{series.kind} role-{series.role}"
    if series.kind in ("points", "ring"):
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
    step = nice((high - low) / count)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")
