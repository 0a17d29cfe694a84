"""The frames that a report embeds, each once and within a budget."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence

from stage2_temporal.report.clips import ReportClip, ReportStore, spread_evenly

BUDGET = 5_000_000  # characters for frames; the rest of the page stays well below 3 MB


class Pictures:
    """Frames of a store as data URIs.

    Attributes:
        uris: the URIs by row, in the order in which they were added.
        full: whether a frame was left out because the budget was used up.
    """

    def __init__(self, store: ReportStore, budget: int = BUDGET) -> None:
        self._store, self._remaining = store, budget
        self.uris: dict[int, str] = {}
        self.full = False

    def add(self, rows: Iterable[int]) -> None:
        """Add frames in this order until the budget is used up."""
        for row in rows:
            if self.full:
                return
            if row not in self.uris:
                uri = "data:image/jpeg;base64," + base64.b64encode(self._store.thumbnail(row)).decode()
                self._remaining -= len(uri)
                self.full = self._remaining < 0
                if not self.full:
                    self.uris[row] = uri


def frames_by_turns(clips: Sequence[ReportClip]) -> Iterator[int]:
    """Rows of all frames of the clips: the last of each clip, then more of each, evenly spread, at last all of them."""
    longest = max((len(c.rows) for c in clips), default=0)
    counts = [1]
    while counts[-1] < longest:
        counts.append(2 * counts[-1])
    for count in counts:
        for c in clips:
            for position in spread_evenly(len(c.rows), count):
                yield c.rows[position]
