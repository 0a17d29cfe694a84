"""Whether intervals contain the truth as often as they should: for small and large values, near and far vehicles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features._common.types import Floats
from stage2_temporal.evaluation.intervals import interval_scores
from stage2_temporal.runs.results import Results

DISTANCES = (("near, < 20 m", 0.0, 20.0), ("medium, < 45 m", 20.0, 45.0), ("far, ≥ 45 m", 45.0, np.inf))
VALUE_PARTS = 3  # of equal size, by the true value
MAX_BAND_POINTS, EXAMPLES_PER_POINT = 12, 8


@dataclass(frozen=True)
class CoverageRow:
    """Some examples of the verdict's split: how many, the share in their intervals, mean width and interval score."""

    name: str
    examples: int
    coverage: float
    width: float
    score: float


def coverage_rows(results: Results, component: int) -> list[CoverageRow]:
    """The coverage of all examples, of thirds by true value, and by distance where known; empty without intervals."""
    examples, level = results.verdict_examples, results.metrics.interval_level
    ends = np.array([(e.low[component], e.high[component]) for e in examples if e.low]).reshape(-1, 2)
    if level is None or len(ends) < len(examples) or not len(ends) or not np.isfinite(ends).all():
        return []
    true = np.array([e.true[component] for e in examples])
    distance = np.array([e.distance for e in examples])
    limits = np.quantile(true, np.linspace(0, 1, VALUE_PARTS + 1))
    parts = np.searchsorted(limits[1:-1], true, "left")
    masks = [("all", np.ones(len(true), bool))]
    if len(true) >= 2 * VALUE_PARTS and np.ptp(true) > 0:
        masks += [(f"{limits[i]:.1f} to {limits[i + 1]:.1f}".replace("-", "−"), parts == i) for i in range(VALUE_PARTS)]
    masks += [(name, (distance >= low) & (distance < high)) for name, low, high in DISTANCES]
    rows = []
    for name, mask in masks:
        if mask.any():
            scored = interval_scores(true[mask], ends[mask, 0], ends[mask, 1], level)
            rows.append(CoverageRow(name, int(mask.sum()), scored.coverage, scored.width, scored.score))
    return rows


def usual_band(true: Floats, half_widths: Floats) -> tuple[Floats, Floats]:
    """True values (m,) and the median half-width of the intervals round each, for a band round the perfect line."""
    order = np.argsort(true)
    count = max(1, min(MAX_BAND_POINTS, len(true) // EXAMPLES_PER_POINT))
    groups = np.array_split(order, count)
    return np.array([np.median(true[g]) for g in groups]), np.array([np.median(half_widths[g]) for g in groups])
