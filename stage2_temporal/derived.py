"""Derived streams: what pooled heads look at, computed once from a stream of the store and kept in it.

They are the first part of a head's graph, with the same numbers, so that most heads train in seconds without reading a
map. A stream's name says what it is: `grid3x4` (cells' means), `pooled` (one cell), `change3x4` (mean |map − map of the
frame before| of each cell), `change3x4lag2` (of two frames before). Of another stream than the appearance:
`motion.grid3x4`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence as Listed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from features.assembly import Stream, extend
from features.errors import ConfigError, StoreError
from features.lock import only_writer
from features.store import Store, StreamInfo
from stage2_temporal.inputs import APPEARANCE, as_maps
from stage2_temporal.pooling import average, change, check_grid

VERSION = 1  # raise it whenever the same stream gives other numbers
BLOCK = 64  # frames computed at a time
PATIENCE = 120.0  # seconds to wait for another process that writes into the store
KIND = r"(?P<pooled>pooled)|(?P<kind>grid|change)(?P<rows>\d+)x(?P<columns>\d+)(?:lag(?P<lag>\d+))?"
NAME = re.compile(rf"(?:(?P<source>\w+)\.)?(?:{KIND})")


@dataclass(frozen=True)
class Derived:
    """Cells' means (`lag` 0) or cells' changes over `lag` frames, of a stream."""

    source: str
    grid: tuple[int, int]
    lag: int = 0

    @classmethod
    def named(cls, name: str) -> Self:
        """The derived stream of that name.

        Raises:
            ConfigError: no such kind of stream.
        """
        found = NAME.fullmatch(name)
        if found is None or (found["kind"] == "grid" and found["lag"]):
            raise ConfigError(
                f"{name}: no stream that can be derived",
                expected="pooled, gridRxC, changeRxC or changeRxClagN",
                got=name,
                mend="--stream grid3x4",
            )
        source = found["source"] or APPEARANCE
        if found["pooled"]:
            return cls(source, (1, 1))
        lag = int(found["lag"] or 1) if found["kind"] == "change" else 0
        return cls(source, (int(found["rows"]), int(found["columns"])), lag)

    @property
    def name(self) -> str:
        """Under which it lies in the store."""
        prefix = "" if self.source == APPEARANCE else f"{self.source}."
        cells = f"{self.grid[0]}x{self.grid[1]}"
        if not self.lag:
            return prefix + ("pooled" if self.grid == (1, 1) else f"grid{cells}")
        return f"{prefix}change{cells}" + (f"lag{self.lag}" if self.lag > 1 else "")

    def info(self, store: Store) -> StreamInfo:
        """Shape, type and origin in a store.

        Raises:
            ConfigError: no such source, or a grid finer than its map.
        """
        if self.source not in store.streams:
            raise ConfigError(
                f"{store.path}: no stream {self.source!r} to derive {self.name} from",
                expected=f"one of {', '.join(store.streams)}",
                got=self.source,
                mend="--stream NAME",
            )
        of = store.streams[self.source]
        height, width, channels = maps_shape(of.shape)
        check_grid(self.grid, height, width)
        origin = {
            "derived": VERSION,
            "source": [store.fingerprint, self.source, of.fingerprint],
            "grid": list(self.grid),
            "lag": self.lag,
        }
        return StreamInfo((self.grid[0] * self.grid[1] * channels,), "float32", origin)

    def batches(self, store: Store) -> Iterator[NDArray[np.float32]]:
        """All frames of the store, in order; a sequence's first `lag` frames, which have nothing before, are 0."""
        for sequence, first in zip(store.sequences, store.first.tolist(), strict=True):
            for start in range(0, sequence.length, BLOCK):
                stop = min(start + BLOCK, sequence.length)
                before = min(self.lag, start)
                rows = np.arange(first + start - before, first + stop)
                maps = as_maps(store.read(self.source, rows).astype(np.float32)[None])
                blank = min(self.lag - before, stop - start)
                if not self.lag:
                    made = average(maps, self.grid)
                elif maps.shape[1] > self.lag:
                    made = change(maps, self.grid, self.lag)
                else:
                    yield np.zeros((blank, *self.info(store).shape), np.float32)
                    continue
                values = np.asarray(made, np.float32)[0]
                yield np.concatenate([np.zeros((blank, values.shape[1]), np.float32), values]) if blank else values


def present(store: Store, wanted: Derived) -> bool:
    """Whether the store has the stream, derived from what its source is now."""
    there = store.streams.get(wanted.name)
    return there is not None and there == wanted.info(store)


def derive(path: Path, wanted: Listed[Derived]) -> list[str]:
    """Put streams into a store where they are lacking; the names of those that were.

    Raises:
        StoreError: another process writes into the store and does not come to an end.
        ConfigError: see `Derived.info`.
        OSError: the store cannot be written.
    """
    with Store(path) as store:
        if not _lacking(store, wanted):
            return []
    with ExitStack() as held:
        _wait(held, path)
        with Store(path) as store:
            lacking = _lacking(store, wanted)
            if lacking:
                extend(path, {d.name: Stream(d.info(store), batches=d.batches(store)) for d in lacking})
    return [d.name for d in lacking]


def provide(path: Path, wanted: Listed[Derived]) -> bool:
    """`derive`, or a line that says why not: whether the streams are there."""
    try:
        made = derive(path, wanted)
    except (OSError, StoreError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        names = ", ".join(d.name for d in wanted)
        print(f"{path}: {names} are not kept in the store ({reason}), but computed anew each time", file=sys.stderr)
        return False
    if made:
        print(f"{path}: {', '.join(made)} derived, for this head and others", file=sys.stderr)
    return True


def maps_shape(entry: tuple[int, ...]) -> tuple[int, int, int]:
    """(h, w, c) of a stream's entry, vectors as maps of one cell."""
    return (1, 1, entry[0]) if len(entry) == 1 else (entry[0], entry[1], entry[2])


def _lacking(store: Store, wanted: Listed[Derived]) -> list[Derived]:
    return [d for d in dict.fromkeys(wanted) if not present(store, d)]


def _wait(held: ExitStack, path: Path) -> None:
    """Take the store's lock, when a sweep's other process has derived its streams."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            held.enter_context(only_writer(path))
            return
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
