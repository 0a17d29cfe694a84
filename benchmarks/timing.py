"""Time functions that take turns, in seconds by the clock and by CPU: arrays (2,), or (rounds, 2).

Each ratio is taken within a round, so that a change of the machine's speed between rounds does not matter; its median
over the rounds is reported. CPU seconds are those of all threads, which other programs hardly change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.console import text_table

Function = Callable[[], Any]
Row = dict[str, str | float]


def seconds(function: Function) -> NDArray[np.float64]:
    """Time one call."""
    started = np.array([time.perf_counter(), time.process_time()])
    function()
    return np.array([time.perf_counter(), time.process_time()]) - started


def take_turns(functions: Mapping[str, Function], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Call each function once to warm up, and then time them `rounds` times in turn."""
    for function in functions.values():
        function()
    turns = [[seconds(function) for function in functions.values()] for _ in range(rounds)]
    return dict(zip(functions, np.swapaxes(turns, 0, 1), strict=True))


def speed(times: NDArray[np.float64], frames: int) -> Row:
    """Frames per second of a function that takes so many frames: the median over the rounds."""
    wall, cpu = frames / np.median(times, axis=0)
    return {"frames/s": wall, "frames per CPU second": cpu}


def ratio(name: str, times: NDArray[np.float64], *references: NDArray[np.float64]) -> Row:
    """The median over the rounds of times relative to those of a reference, or of several together."""
    wall, cpu = np.median(times / sum(references), axis=0)
    return {name: wall, f"{name}, by CPU": cpu}


def table(rows: list[Row]) -> str:
    """Format rows, which may lack columns, as a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return text_table(columns, [[_cell(row.get(c, "")) for c in columns] for row in rows], markdown=True)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
