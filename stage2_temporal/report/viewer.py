"""What `report.js` gets to know: the examples it can show, and the frames that no filmstrip holds."""

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
    drawn: int,
    arrows: Arrows | None,
    pictures: Pictures,
    shown: Container[int],
) -> dict[str, Any]:
    """The page's data as JSON values.

    Args:
        results: the run.
        clips: every example that can be looked at; the first `drawn` are the dots of the plots, in their order.
        drawn: how many of them are dots.
        arrows: how velocities are drawn; None where the target is none.
        pictures: the frames that fit.
        shown: rows of the frames that the filmstrips hold, where the script finds them.
    """
    return {
        "target": list(results.metrics.target),
        "units": [results.metrics.unit_of(k) for k in range(len(results.metrics.target))],
        "constant": results.constant and [_short(v) for v in results.constant],
        "drawn": drawn,
        "arrow": arrows and asdict(arrows),
        "clips": [_clip(c) for c in clips],
        "pictures": {row: uri.partition(",")[2] for row, uri in pictures.held.items() if row not in shown},
    }


def _clip(c: ReportClip) -> dict[str, Any]:
    e = c.example
    known = any(box is not None for box in c.boxes)
    return {
        "name": e.sequence,
        "label": f"label {e.label + 1} of {c.labels} for frame {e.frame}",
        "first": e.first,
        "stride": e.stride,
        "seconds": _short(c.seconds),
        "true": [_short(v) for v in e.true],
        "predicted": [_short(v) for v in e.predicted],
        "distance": _short(e.distance) if math.isfinite(e.distance) else None,
        "row": c.rows[0],
        "length": len(c.rows),
        "height": round(c.height, 1),
        "boxes": list(c.boxes) if known else [],
    }


def _short(value: float) -> float:
    """Six digits are more than any drawing or figure here shows."""
    return float(f"{value:.6g}")
