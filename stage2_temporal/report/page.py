"""The report page: fills `page.html.jinja` with a run's results, plots and clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stage2_temporal.report.clips import FRAME_WIDTH, ReportStore, pick_clips, report_clip
from stage2_temporal.report.glyphs import arrows, bars
from stage2_temporal.report.pictures import Pictures, frames_by_turns
from stage2_temporal.report.plots import Plot, curves, finetune_curves, scatters, thin_out, timeline
from stage2_temporal.report.svg import plot_svg
from stage2_temporal.report.viewer import viewer_data
from stage2_temporal.runs.results import Results

WORST_CLIPS, BEST_CLIPS = 8, 3
UNKNOWN = "–"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Panel:
    """A plot and its drawing; a wide one fills the page's width."""

    plot: Plot
    svg: Markup
    wide: bool


def render_page(results: Results, store: ReportStore) -> str:
    """The whole report as HTML; it loads nothing from anywhere."""
    template = environment().get_template("page.html.jinja")
    examples, target = results.verdict_examples, results.metrics.target
    components = []
    for k, column in enumerate(target):
        panels = [panel(plot, 3) for plot in scatters(results, k)]
        if over_time := timeline(results, store, k):
            panels.append(panel(over_time, 1))
        components.append((column, panels))

    worst = [report_clip(e, store) for e in pick_clips(examples, WORST_CLIPS, worst=True)]
    worst_examples = [c.example for c in worst]
    others = [e for e in examples if e not in worst_examples]
    best = [report_clip(e, store) for e in pick_clips(others, BEST_CLIPS, worst=False)]
    listed = [*worst, *best]
    dots = [report_clip(examples[i], store) for i in thin_out(len(examples))]
    clips = [*dots, *(c for c in listed if c not in dots)]

    pictures = Pictures(store)
    strip_rows = [c.rows[position] for c in listed for position in c.strip]
    pictures.add(strip_rows)
    pictures.add(row for c in listed for row in c.rows)
    pictures.add(frames_by_turns(clips))

    arrow_scale = arrows(target, [c.example for c in clips])
    return template.render(
        results=results,
        metrics=results.metrics,
        splits=results.splits,
        constant=results.constant,
        learning=[panel(plot, 2) for plot in curves(results)],
        finetune_metrics=results.finetune_metrics,
        fine_tuning=[panel(plot, 2) for plot in finetune_curves(results)],
        components=components,
        worst=worst,
        best=best,
        number_of=clips.index,
        pictures=pictures,
        width=FRAME_WIDTH,
        arrows=arrow_scale,
        bars=[bars([c.example for c in clips], k) for k in range(len(target))],
        farthest=max((e.distance for e in examples if math.isfinite(e.distance)), default=None),
        data=viewer_data(results, clips, len(dots), arrow_scale, pictures, set(strip_rows)),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    )


def environment() -> Environment:
    """Jinja's environment for the templates: every value is escaped, and a missing one is an error."""
    loader = FileSystemLoader(TEMPLATES)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"number": number, "signed": signed, "duration": duration}
    return jinja


def panel(plot: Plot, plots_per_row: int) -> Panel:
    """A plot drawn as wide as its share of the page."""
    return Panel(plot, plot_svg(plot, plots_per_row), plots_per_row == 1)


def number(value: float | None, digits: int = 3) -> str:
    """A number with a true minus sign; a dash if unknown."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference, always with its sign."""
    return ("+" if value >= 0 else "") + number(value, digits)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever suits."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
