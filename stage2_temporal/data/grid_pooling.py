"""Streams of cells: a map's means over a grid, or how much each cell changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.errors import ConfigError
from features.store import Store, StreamInfo
from features.store_writer import StreamContent
from features.streams import APPEARANCE
from stage2_temporal.data.examples import as_maps
from stage2_temporal.data.pooling import check_grid, grid_changes, grid_means

GRID_POOLING_VERSION = 1  # raise it whenever the same stream gives other numbers
FRAMES_PER_BATCH = 64  # frames computed at a time


@dataclass(frozen=True)
class GridPooling:
    """Cells' means (`lag` 0) or cells' changes over `lag` frames, of a stream."""

    source: str
    grid: tuple[int, int]
    lag: int = 0

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
        of = source_info(store, self.source, self.name)
        height, width, channels = map_shape(of.shape)
        check_grid(self.grid, height, width)
        origin = {
            "derived": GRID_POOLING_VERSION,
            "source": [store.fingerprint, self.source, of.fingerprint],
            "grid": list(self.grid),
            "lag": self.lag,
        }
        return StreamInfo((self.grid[0] * self.grid[1] * channels,), "float32", origin)

    def batches(self, store: Store) -> Iterator[NDArray[np.float32]]:
        """All frames of the store, in order; a sequence's first `lag` frames, which have nothing before, are 0."""
        for sequence, first in zip(store.sequences, store.first.tolist(), strict=True):
            for start in range(0, sequence.length, FRAMES_PER_BATCH):
                stop = min(start + FRAMES_PER_BATCH, sequence.length)
                before = min(self.lag, start)
                rows = np.arange(first + start - before, first + stop)
                maps = as_maps(store.read(self.source, rows).astype(np.float32)[None])
                blank = min(self.lag - before, stop - start)
                if not self.lag:
                    made = grid_means(maps, self.grid)
                elif maps.shape[1] > self.lag:
                    made = grid_changes(maps, self.grid, self.lag)
                else:
                    yield np.zeros((blank, *self.info(store).shape), np.float32)
                    continue
                values = np.asarray(made, np.float32)[0]
                yield np.concatenate([np.zeros((blank, values.shape[1]), np.float32), values]) if blank else values

    def stream(self, store: Store) -> StreamContent:
        """What a store is extended by."""
        return StreamContent(self.info(store), batches=self.batches(store))


def map_shape(entry: tuple[int, ...]) -> tuple[int, int, int]:
    """(h, w, c) of a stream's entry, vectors as maps of one cell."""
    return (1, 1, entry[0]) if len(entry) == 1 else (entry[0], entry[1], entry[2])


def source_info(store: Store, source: str, name: str) -> StreamInfo:
    """What a store says of the stream that the stream `name` is derived from.

    Raises:
        ConfigError: it has none.
    """
    if source not in store.streams:
        raise ConfigError(
            f"{store.path}: no stream {source!r} to derive {name} from",
            expected=f"one of {', '.join(store.streams)}",
            got=source,
            hint="--stream NAME",
        )
    return store.streams[source]
