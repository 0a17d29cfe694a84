"""Truth and prediction as small drawings: arrows for a velocity, bars for anything else. `report.js` draws the same.

A drawing consists of SVG paths whose classes the style sheet colours. Lengths are in units of the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stage2_temporal.report.clips import Rectangle
from stage2_temporal.report.plots import round_step
from stage2_temporal.runs.results import PredictedExample

VELOCITY = ("vx", "vy")
MAX_ARROW_LENGTH = 26.0
BAR_HEIGHT, BAR_GAP, BARS_LENGTH = 5, 3, 100  # the last is the length from the smallest to the largest value


@dataclass(frozen=True)
class Arrows:
    """Velocities seen from above: x, forward, points up; y, right, points right."""

    columns: tuple[int, int]  # of the target: vx and vy
    scale: float  # units per m/s
    ring: float  # m/s of the ring that shows the scale

    def true(self, example: PredictedExample, box: Rectangle | None = None) -> str:
        """The true velocity's arrow, left of the box or of the centre."""
        return self._path(example.true, *arrow_start(box, -1))

    def predicted(self, example: PredictedExample, box: Rectangle | None = None) -> str:
        """The predicted velocity's arrow, right of the box or of the centre."""
        return self._path(example.predicted, *arrow_start(box, 1))

    def _path(self, values: Sequence[float], x: float, y: float) -> str:
        vx, vy = (values[k] for k in self.columns)
        right, down = vy * self.scale, -vx * self.scale
        length = math.hypot(right, down)
        head, angle = min(4.0, 0.6 * length), math.atan2(down, right)
        barbs = [
            f"L{x + right - head * math.cos(angle + side):.1f} {y + down - head * math.sin(angle + side):.1f}"
            for side in (-0.6, 0.6)
        ]
        tip = f"{x + right:.1f} {y + down:.1f}"
        return f"M{x:.1f} {y:.1f}L{tip}{barbs[0]}M{tip}{barbs[1]}"


@dataclass(frozen=True)
class Bars:
    """One column's truth and prediction as bars from `zero`, with `scale` units per unit of the value."""

    zero: float
    scale: float

    def path(self, value: float, line: int) -> str:
        """The bar on a line, as an SVG path."""
        return f"M{self.zero:.1f} {(BAR_HEIGHT + BAR_GAP) * line + BAR_HEIGHT}H{self.zero + value * self.scale:.1f}"


def arrow_start(box: Rectangle | None, side: int) -> tuple[float, float]:
    """Where an arrow starts: left (−1) or right (1) of a box, so that it hides neither vehicle nor other arrow."""
    left, top, width, height = box or (0.0, 0.0, 0.0, 0.0)
    return left + width / 2 + side * max(width / 2 + 1.5, 3.0), top + height / 2


def arrows(target: Sequence[str], examples: Iterable[PredictedExample]) -> Arrows | None:
    """The common scale of all arrows; None if the target has no velocity."""
    if not set(VELOCITY) <= set(target):
        return None
    columns = target.index("vx"), target.index("vy")
    fastest = max((math.hypot(*(v[k] for k in columns)) for e in examples for v in (e.true, e.predicted)), default=0.0)
    return Arrows(columns, MAX_ARROW_LENGTH / fastest, round_step(fastest / 4)) if fastest > 0 else None


def bars(examples: Sequence[PredictedExample], column: int) -> Bars:
    """The common scale of a column's bars."""
    values = [0.0, *(v for e in examples for v in (e.true[column], e.predicted[column]))]
    low, high = min(values), max(values)
    scale = BARS_LENGTH / ((high - low) or 1.0)
    return Bars(abs(low) * scale, scale)
