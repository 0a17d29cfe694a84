"""Time pieces of work that take turns, by the clock and by CPU.

Each ratio is taken within a round, so that a change of the machine's speed between rounds does not matter; its median
over the rounds is reported. CPU seconds are those of all threads, which other programs hardly change.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Work = Callable[[], Any]


class Seconds(NamedTuple):
    """Wall and CPU seconds, or a ratio of them."""

    wall: float
    cpu: float


Timings = dict[str, list[Seconds]]


def measure_seconds(work: Work) -> Seconds:
    """Time one piece of work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def take_turns(works: Mapping[str, Work], rounds: int, prepare: Work = lambda: None) -> Timings:
    """Run each piece of work once to warm up, and then `rounds` times in turn; `prepare` runs before each round."""
    for work in works.values():
        work()
    timings: Timings = {name: [] for name in works}
    for _ in range(rounds):
        prepare()
        for name, work in works.items():
            timings[name].append(measure_seconds(work))
    return timings


def median_seconds(times: list[Seconds]) -> Seconds:
    """The median of wall and of CPU seconds."""
    return Seconds(*map(statistics.median, zip(*times, strict=True)))


def median_ratio(times: list[Seconds], *references: list[Seconds]) -> Seconds:
    """The median over the rounds of times relative to those of a reference, or of several together."""
    sums = [Seconds(*map(sum, zip(*parts, strict=True))) for parts in zip(*references, strict=True)]
    return median_seconds([Seconds(t.wall / s.wall, t.cpu / s.cpu) for t, s in zip(times, sums, strict=True)])
