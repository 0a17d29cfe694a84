"""Derived streams of grid cells: the mean of each cell of a map, or how much each cell changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.errors import ConfigError
from features.store import Store, StreamInfo
from features.store_writer import StreamContent
from features.streams import APPEARANCE
from stage2_temporal.data.pooling import as_maps, check_grid, pool_frames

GRID_POOLING_VERSION = 1  # increase it whenever the same stream gets other numbers
FRAMES_PER_BATCH = 64


@dataclass(frozen=True)
class GridPooling:
    """Each frame's map of the stream `source`, averaged over a grid; with a lag above 0, its change over that lag."""

    source: str
    grid: tuple[int, int]  # rows, columns
    lag: int = 0

    @property
    def name(self) -> str:
        """The stream's name in a store."""
        prefix = "" if self.source == APPEARANCE else f"{self.source}."
        cells = f"{self.grid[0]}x{self.grid[1]}"
        if not self.lag:
            return prefix + ("pooled" if self.grid == (1, 1) else f"grid{cells}")
        return f"{prefix}change{cells}" + (f"lag{self.lag}" if self.lag > 1 else "")

    def info(self, store: Store) -> StreamInfo:
        """Describe the stream as a store has it: shape, type and origin.

        Raises:
            ConfigError: the store has no such source, or the grid is finer than its maps.
        """
        source = source_info(store, self.source, self.name)
        height, width, channels = (1, 1, *source.shape)[-3:]  # a vector counts as a map of one cell
        check_grid(self.grid, height, width)
        origin = {
            "derived": GRID_POOLING_VERSION,
            "source": [store.fingerprint, self.source, source.fingerprint],
            "grid": list(self.grid),
            "lag": self.lag,
        }
        return StreamInfo((self.grid[0] * self.grid[1] * channels,), "float32", origin)

    def batches(self, store: Store) -> Iterator[NDArray[np.float32]]:
        """Compute the stream for all frames of a store, in order; 0 where a sequence has no frame `lag` before."""
        shape = self.info(store).shape
        for sequence, first in zip(store.sequences, store.first.tolist(), strict=True):
            for start in range(0, sequence.length, FRAMES_PER_BATCH):
                stop = min(start + FRAMES_PER_BATCH, sequence.length)
                rows = np.arange(first + max(start - self.lag, 0), first + stop)
                values = np.zeros((stop - start, *shape), np.float32)
                if len(rows) > self.lag:
                    maps = as_maps(store.read(self.source, rows).astype(np.float32)[None])
                    values[len(values) + self.lag - len(rows) :] = np.asarray(pool_frames(maps, self.grid, self.lag)[0])
                yield values

    def stream(self, store: Store) -> StreamContent:
        """Return what is written into a store."""
        return StreamContent(self.info(store), batches=self.batches(store))


def source_info(store: Store, source: str, name: str) -> StreamInfo:
    """Describe the stream of a store from which the stream `name` is derived; a ConfigError if there is none."""
    if source not in store.streams:
        raise ConfigError(
            f"{store.path}: no stream {source!r} to derive {name} from",
            expected=f"one of {', '.join(store.streams)}",
            got=source,
            hint="--stream NAME",
        )
    return store.streams[source]
