"""Time functions in turn: each in every round, so that a change of the machine's speed affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from features._common.console import text_table

Timer = Callable[[], NDArray[np.float64]]  # seconds per item, by the clock and by CPU, summed over all threads
Row = dict[str, str | float]


def timer(function: Callable[[], object], items: float = 1) -> Timer:
    """Wrap a function that processes so many items (frames, epochs …) into one that times a call of it."""

    def call() -> NDArray[np.float64]:
        started = np.array([time.perf_counter(), time.process_time()])
        function()
        return (np.array([time.perf_counter(), time.process_time()]) - started) / items

    return call


def compare(timers: Mapping[str, Timer], references: Mapping[str, tuple[str, ...]], rounds: int) -> list[Row]:
    """Call each timer once to warm up and then `rounds` times in turn; one row per timer, with medians.

    A timer that has `references` is divided by their times together, round by round.
    """
    for call in timers.values():
        call()
    rounds_of_times = [[call() for call in timers.values()] for _ in range(rounds)]
    times = dict(zip(timers, np.swapaxes(rounds_of_times, 0, 1), strict=True))  # (rounds, 2) each
    rows = []
    for name, seconds in times.items():
        wall, cpu = np.median(seconds, axis=0)
        row: Row = {"function": name, "seconds": wall, "per second": 1 / wall, "per CPU second": 1 / cpu}
        if name in references:
            ratio, cpu_ratio = np.median(seconds / sum(times[r] for r in references[name]), axis=0)
            row |= {"relative to": " + ".join(references[name]), "ratio": ratio, "by CPU": cpu_ratio}
        rows.append(row)
    return rows


def table(rows: list[Row]) -> str:
    """Format rows, which may lack columns, as a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return text_table(columns, [[_cell(row.get(c, "")) for c in columns] for row in rows], markdown=True)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
