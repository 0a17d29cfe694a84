"""The page: results, plots and clips set into `page.html.jinja`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stage2_temporal.report.clips import WIDTH, ReportStore, pick_clips, report_clip
from stage2_temporal.report.glyphs import arrows, bars
from stage2_temporal.report.pictures import Pictures, frames_by_turns
from stage2_temporal.report.plots import Plot, curves, finetune_curves, scatters, thin_out, timeline
from stage2_temporal.report.svg import plot_svg
from stage2_temporal.report.viewer import viewer_data
from stage2_temporal.runs.results import Results

WORST, BEST = 8, 3
UNKNOWN_MARK = "–"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Panel:
    """A plot and its drawing; a wide one fills the page's width."""

    plot: Plot
    svg: Markup
    wide: bool


def render_page(results: Results, store: ReportStore) -> str:
    """The whole report as HTML: no part of it is fetched from anywhere."""
    template = environment().get_template("page.html.jinja")
    counted, target = results.counted, results.metrics.target
    components = []
    for k, column in enumerate(target):
        panels = [panel(plot, 3) for plot in scatters(results, k)]
        if over_time := timeline(results, store, k):
            panels.append(panel(over_time, 1))
        components.append((column, panels))

    worst = [report_clip(e, store) for e in pick_clips(counted, WORST, worst=True)]
    rest = [e for e in counted if e not in [c.example for c in worst]]
    best = [report_clip(e, store) for e in pick_clips(rest, BEST, worst=False)]
    listed = [*worst, *best]
    drawn = [report_clip(counted[i], store) for i in thin_out(len(counted))]
    clips = [*drawn, *(c for c in listed if c not in drawn)]

    pictures = Pictures(store)
    strips = [c.rows[position] for c in listed for position in c.strip]
    pictures.add(strips)
    pictures.add(row for c in listed for row in c.rows)
    pictures.add(frames_by_turns(clips))

    scale = arrows(target, [c.example for c in clips])
    return template.render(
        results=results,
        metrics=results.metrics,
        splits=results.splits,
        constant=results.constant,
        learning=[panel(plot, 2) for plot in curves(results)],
        tuned=results.tuned,
        fine_tuning=[panel(plot, 2) for plot in finetune_curves(results)],
        components=components,
        worst=worst,
        best=best,
        number_of=clips.index,
        pictures=pictures,
        width=WIDTH,
        arrows=scale,
        bars=[bars([c.example for c in clips], k) for k in range(len(target))],
        farthest=max((e.distance for e in counted if math.isfinite(e.distance)), default=None),
        data=viewer_data(results, clips, len(drawn), scale, pictures, set(strips)),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def environment() -> Environment:
    """The templates beside this file: every value is escaped, and one that is missing is an error."""
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"number": number, "signed": signed, "duration": duration}
    return made


def panel(plot: Plot, across_the_page: int) -> Panel:
    """A plot drawn as wide as its share of the page."""
    return Panel(plot, plot_svg(plot, across_the_page), across_the_page == 1)


def number(value: float | None, digits: int = 3) -> str:
    """A figure with a true minus sign; a dash where it is unknown."""
    if value is None or not math.isfinite(value):
        return UNKNOWN_MARK
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
