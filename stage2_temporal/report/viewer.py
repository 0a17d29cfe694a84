"""The data that `report.js` works with: the examples that it can show, and frames that are in no filmstrip."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import Any

from stage2_temporal.report.clips import ReportClip
from stage2_temporal.report.glyphs import Arrows
from stage2_temporal.report.pictures import Pictures
from stage2_temporal.runs.results import Results


def viewer_data(
    results: Results,
    clips: Sequence[ReportClip],
    dots: int,
    arrows: Arrows | None,
    pictures: Pictures,
    strip_rows: Container[int],
) -> dict[str, Any]:
    """The page's data as JSON values.

    Args:
        results: the run.
        clips: every example that the viewer can show; the first `dots` are the dots of the plots, in their order.
        dots: number of dots in a plot.
        arrows: scale of the velocity arrows; None if the target has no velocity.
        pictures: the embedded frames.
        strip_rows: rows of the frames in filmstrips, which the script finds in the page.
    """
    return {
        "target": list(results.metrics.target),
        "units": [results.metrics.unit_of(k) for k in range(len(results.metrics.target))],
        "constant": results.constant and [_round(v) for v in results.constant],
        "dots": dots,
        "arrow": arrows and asdict(arrows),
        "clips": [_clip(c) for c in clips],
        "pictures": {row: uri.partition(",")[2] for row, uri in pictures.uris.items() if row not in strip_rows},
    }


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
