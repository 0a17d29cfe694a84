"""The frames a report embeds: each once, and no more than fit."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence

from stage2_temporal.report.clips import ReportClip, ReportStore, spread_evenly

BUDGET = 5_000_000  # characters that frames may take in the page; the rest of it stays well below 3 MB


class Pictures:
    """Frames of a store as data URIs by row.

    Attributes:
        held: the URIs by row, in the order they came in.
        full: whether the budget has left a frame out.
    """

    def __init__(self, store: ReportStore, budget: int = BUDGET) -> None:
        self._store, self._left = store, budget
        self.held: dict[int, str] = {}
        self.full = False

    def add(self, rows: Iterable[int]) -> None:
        """Take these frames in, in their order, until the budget is used up."""
        for row in rows:
            if self.full:
                return
            if row not in self.held:
                uri = "data:image/jpeg;base64," + base64.b64encode(self._store.thumbnail(row)).decode()
                self._left -= len(uri)
                self.full = self._left < 0
                if not self.full:
                    self.held[row] = uri


def frames_by_turns(clips: Sequence[ReportClip]) -> Iterator[int]:
    """The rows of all frames of the clips: the last of each clip, then more of each, evenly spread, then every one."""
    longest = max((len(c.rows) for c in clips), default=0)
    counts = [1]
    while counts[-1] < longest:
        counts.append(2 * counts[-1])
    for count in counts:
        for c in clips:
            for position in spread_evenly(len(c.rows), count):
                yield c.rows[position]
