"""Truth and prediction as small drawings: arrows for a velocity, bars for anything else. `report.js` draws the same.

A glyph is of paths, each with a role; the style sheet says their colours. Units are those of the drawing they stand in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stage2_temporal.report.clips import BoxRectangle
from stage2_temporal.report.plots import round_step
from stage2_temporal.runs.results import PredictedExample

VELOCITY = ("vx", "vy")
REACH = 26.0  # length of the longest arrow
BAR, GAP, LONG = 5, 3, 100  # height of a bar, between bars, length of the longest


@dataclass(frozen=True)
class Arrows:
    """Velocities seen from above: x, forward, is up; y, right, is right.

    Attributes:
        columns: which of the target's columns are vx and vy.
        scale: units a m/s.
        ring: m/s of the ring that shows the scale.
    """

    columns: tuple[int, int]
    scale: float
    ring: float

    def true(self, example: PredictedExample, box: BoxRectangle | None = None) -> str:
        """The true velocity's arrow: from the left of a box, or of the middle."""
        return self._path(example.true, *arrow_start(box, -1))

    def predicted(self, example: PredictedExample, box: BoxRectangle | None = None) -> str:
        """The predicted velocity's arrow: from the right."""
        return self._path(example.predicted, *arrow_start(box, 1))

    def _path(self, values: Sequence[float], x: float, y: float) -> str:
        vx, vy = (values[k] for k in self.columns)
        right, down = vy * self.scale, -vx * self.scale
        length = math.hypot(right, down)
        head, turn = min(4.0, 0.6 * length), math.atan2(down, right)
        barbs = [
            f"L{x + right - head * math.cos(turn + side):.1f} {y + down - head * math.sin(turn + side):.1f}"
            for side in (-0.6, 0.6)
        ]
        tip = f"{x + right:.1f} {y + down:.1f}"
        return f"M{x:.1f} {y:.1f}L{tip}{barbs[0]}M{tip}{barbs[1]}"


@dataclass(frozen=True)
class Bars:
    """One column's truth and prediction as bars from a common zero.

    Attributes:
        zero: where 0 lies, in units from the left.
        scale: units a value's unit.
    """

    zero: float
    scale: float

    def path(self, value: float, line: int) -> str:
        """A bar in the given line, as an SVG path."""
        return f"M{self.zero:.1f} {(BAR + GAP) * line + BAR}H{self.at(value):.1f}"

    def at(self, value: float) -> float:
        """Where a value lies, in units from the left."""
        return self.zero + value * self.scale


def arrow_start(box: BoxRectangle | None, side: int) -> tuple[float, float]:
    """Where an arrow starts: left (−1) or right (1) of a box, so that neither hides the vehicle or the other arrow."""
    left, top, width, height = box or (0.0, 0.0, 0.0, 0.0)
    return left + width / 2 + side * max(width / 2 + 1.5, 3.0), top + height / 2


def arrows(target: Sequence[str], examples: Iterable[PredictedExample]) -> Arrows | None:
    """The arrows' common scale; None where the target has no velocity."""
    if not set(VELOCITY) <= set(target):
        return None
    columns = target.index("vx"), target.index("vy")
    fastest = max((math.hypot(*(v[k] for k in columns)) for e in examples for v in (e.true, e.predicted)), default=0.0)
    return Arrows(columns, REACH / fastest, round_step(fastest / 4)) if fastest > 0 else None


def bars(examples: Sequence[PredictedExample], column: int) -> Bars:
    """A column's scale over all examples."""
    values = [0.0, *(v for e in examples for v in (e.true[column], e.predicted[column]))]
    low, high = min(values), max(values)
    scale = LONG / ((high - low) or 1.0)
    return Bars(abs(low) * scale, scale)
