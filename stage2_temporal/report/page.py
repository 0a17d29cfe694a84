"""The report page: fills `page.html.jinja` with a run's results, plots and clips."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from features._common.atomic import atomic_write
from features.store import Store
from stage2_temporal.report.clips import (
    FRAME_WIDTH,
    ReportClip,
    embed_frames,
    frames_by_turns,
    pick_clips,
    report_clip,
    spread_evenly,
)
from stage2_temporal.report.coverage import coverage_rows
from stage2_temporal.report.plots import MAX_POINTS, curves, scatters, timeline
from stage2_temporal.report.svg import arrows, bars, plot_drawing
from stage2_temporal.runs.folder import REPORT
from stage2_temporal.runs.results import Results, occlusion_key, read_results

WORST_CLIPS, BEST_CLIPS = 8, 3
UNKNOWN = "–"
TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: Path, store: Store) -> Path:
    """Write `report.html` into a run's folder, with frames from the store that it was trained on; return its path.

    A DataError if a file of the run is missing or damaged, a StoreError if the store lacks a predicted sequence.
    """
    html = render_page(read_results(run), store)
    path = run / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render_page(results: Results, store: Store) -> str:
    """The whole report as HTML; it loads nothing from anywhere."""
    template = environment().get_template("page.html.jinja")
    examples, target = results.verdict_examples, results.metrics.target
    worst = [report_clip(e, store) for e in pick_clips(examples, WORST_CLIPS, worst=True)]
    worst_examples = [c.example for c in worst]
    others = [e for e in examples if e not in worst_examples]
    best = [report_clip(e, store) for e in pick_clips(others, BEST_CLIPS, worst=False)]
    listed = [*worst, *best]
    dots = [report_clip(examples[i], store) for i in spread_evenly(len(examples), MAX_POINTS)]
    clips = [*dots, *(c for c in listed if c not in dots)]

    strip_rows = dict.fromkeys(c.rows[position] for c in listed for position in c.strip)
    listed_rows = (row for c in listed for row in c.rows)
    pictures = embed_frames(itertools.chain(strip_rows, listed_rows, frames_by_turns(clips)), store)
    arrow_scale = arrows(target, [c.example for c in clips])
    viewer_data = {  # what `report.js` works with; the first clips are the dots of the plots, in their order
        "target": list(target),
        "units": [results.metrics.unit_of(k) for k in range(len(target))],
        "constant": None if math.isnan(results.constant[0]) else [_round(v) for v in results.constant],
        "dots": len(dots),
        "arrow": arrow_scale and asdict(arrow_scale),
        "clips": [_clip(c) for c in clips],
        "pictures": {row: uri.partition(",")[2] for row, uri in pictures.items() if row not in strip_rows},
    }
    return template.render(
        results=results,
        metrics=results.metrics,
        splits=results.splits,
        constant=results.constant,
        learning=curves(results),
        finetune_metrics=results.finetune_metrics,
        fine_tuning=curves(results, finetuning=True),
        components=[
            (name, scatters(results, k), timeline(results, store, k), coverage_rows(results, k))
            for k, name in enumerate(target)
        ],
        flagged=sum(e.unlike_training for e in examples),
        worst=worst,
        best=best,
        number_of=clips.index,
        pictures=pictures,
        width=FRAME_WIDTH,
        arrows=arrow_scale,
        bars=[bars([c.example for c in clips], k) for k in range(len(target))],
        occlusion=results.occlusion,
        looks=_looks(results, worst, pictures),
        farthest=max((e.distance for e in examples if math.isfinite(e.distance)), default=None),
        data=viewer_data,
        script=read_script("report.js"),
    )


def _looks(results: Results, worst: list[ReportClip], pictures: dict[int, str]) -> list[dict[str, Any]]:
    """Where the model looks, over a frame each: on average, and for each worst clip; none if that was not measured."""
    if results.occlusion is None:
        return []
    clips = [(c, next((c.rows[p] for p in reversed(c.strip) if c.rows[p] in pictures), None)) for c in worst]
    shown = [(c, row, results.occlusion.clips.get(occlusion_key(c.example))) for c, row in clips if row is not None]
    maps = [(c.example.sequence, c, row, cells) for c, row, cells in shown if cells is not None]
    if maps:
        title = f"on average over {results.occlusion.examples} examples"
        maps.insert(0, (title, maps[0][1], maps[0][2], results.occlusion.mean))
    return [_look(title, c, pictures[row], cells) for title, c, row, cells in maps]


def _look(title: str, c: ReportClip, picture: str, cells: list[list[float]]) -> dict[str, Any]:
    largest = max(max(row) for row in cells)
    places = [(value, i, k) for i, row in enumerate(cells) for k, value in enumerate(row)]
    _, row, column = max(places)
    return {
        "title": title,
        "picture": picture,
        "height": c.height,
        "rows": len(cells),
        "columns": len(cells[0]),
        "cells": [(k, i, round(0.75 * value / largest, 2) if largest > 0 else 0.0) for value, i, k in places],
        "largest": largest,
        "row": row + 1,
        "column": column + 1,
    }


@cache
def environment() -> Environment:
    """Jinja's environment for the templates: every value is escaped, and a missing one is an error."""
    loader = FileSystemLoader(TEMPLATES)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"number": number, "signed": signed, "duration": duration, "drawing": plot_drawing}
    jinja.globals["content_policy"] = content_policy
    return jinja


def read_script(name: str) -> Markup:
    """One of our scripts, to stand in a page."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704  # our own file


def content_policy(style: str, script: str) -> str:
    """A page's Content-Security-Policy: its own style and script, by their hashes, and embedded pictures alone."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    styles, scripts = (f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; img-src data:; style-src {styles}; script-src {scripts}; base-uri 'none'; "
        "form-action 'none'"
    )


def _clip(c: ReportClip) -> dict[str, Any]:
    e = c.example
    return {
        "name": e.sequence,
        "label": f"label {e.label + 1} of {c.label_count} at frame {e.frame}",
        "first": e.first,
        "stride": e.stride,
        "seconds": _round(c.seconds),
        "true": [_round(v) for v in e.true],
        "predicted": [_round(v) for v in e.predicted],
        "distance": _round(e.distance) if math.isfinite(e.distance) else None,
        "row": c.rows[0],
        "length": len(c.rows),
        "height": round(c.height, 1),
        "boxes": list(c.boxes) if any(box is not None for box in c.boxes) else [],
    }


def _round(value: float) -> float:
    """Six digits are more than any drawing or number of the page shows."""
    return float(f"{value:.6g}")


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
