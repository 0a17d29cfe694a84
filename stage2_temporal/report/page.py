"""The page: results, plots and clips set into `page.html.jinja`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from stage2_temporal.report.clips import Frames, clip, pick
from stage2_temporal.report.draw import figure, svg
from stage2_temporal.report.plots import Plot, curves, scatters, timeline, tuning
from stage2_temporal.report.results import Results

WORST, BEST = 8, 3
UNKNOWN = "–"


@dataclass(frozen=True)
class Panel:
    """A plot in both drawings, numbered through the page."""

    number: int
    plot: Plot
    figure: dict[str, Any]
    svg: Markup
    wide: bool


def page(results: Results, store: Frames) -> str:
    """The whole report as HTML: no part of it is fetched from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "duration": duration}
    drawn: list[Panel] = []

    def panel(plot: Plot, across_the_page: int) -> Panel:
        drawn.append(Panel(len(drawn), plot, figure(plot), svg(plot, across_the_page), across_the_page == 1))
        return drawn[-1]

    learning = [panel(plot, 2) for plot in curves(results)]
    fine_tuning = [panel(plot, 2) for plot in tuning(results)]
    components = []
    for k, column in enumerate(results.metrics.target):
        panels = [panel(plot, 3) for plot in scatters(results, k)]
        if over_time := timeline(results, store, k):
            panels.append(panel(over_time, 1))
        components.append((column, panels))
    worst = pick(results.counted, WORST, worst=True)
    rest = [e for e in results.counted if e not in worst]
    return environment.get_template("page.html.jinja").render(
        results=results,
        metrics=results.metrics,
        splits=results.splits,
        constant=results.constant,
        learning=learning,
        tuned=results.tuned,
        fine_tuning=fine_tuning,
        components=components,
        drawings=[p.figure for p in drawn],
        worst=[clip(e, store) for e in worst],
        best=[clip(e, store) for e in pick(rest, BEST, worst=False)],
        plotly=Markup(get_plotlyjs()),
    )


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a true minus sign; a dash where it is unknown."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference, its sign always written."""
    return ("+" if value >= 0 else "") + number(value, digits)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
