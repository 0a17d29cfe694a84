"""Derived streams: the features of pooled heads, computed once from another stream of a store and kept in it.

Names say what they hold: `grid3x4` the mean of each cell, `pooled` of the whole map, `change3x4lag2` each cell's mean
|map − map 2 frames before|, `pca64` 64 principal components; `motion.grid3x4` is derived from another stream.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA
from sklearn.utils import gen_batches

from features._common.atomic import exclusive_write_lock
from features._common.console import logger
from features._common.types import Tensor
from features.errors import ConfigError, StoreError
from features.frame_ranges import sequence_ranges
from features.principal_components import PCABasis, check_count, fit_pca
from features.recipe import json_digest
from features.store import Store
from features.store_tables import StreamInfo
from features.store_writer import StreamContent, extend_store
from features.streams import APPEARANCE
from stage2_temporal.data.correlation import CELL_FEATURES, correlate_frames, normalise_maps, visible_rows
from stage2_temporal.data.pooling import as_maps, check_grid, pool_frames

LOCK_TIMEOUT = 120.0  # seconds to wait for another process that writes to the store, as in a parallel sweep
GRID_PATTERN = r"(?P<pooled>pooled)|(?P<kind>grid|change)(?P<rows>\d+)x(?P<columns>\d+)(?:lag(?P<lag>\d+))?"
STREAM_NAME = re.compile(rf"(?:(?P<source>\w+)\.)?(?:{GRID_PATTERN}|pca(?P<components>[1-9]\d*))")
CORRELATION_VERSION = GRID_POOLING_VERSION = 1  # increase these whenever the same stream gets other numbers
PCA_VERSION = 1
FRAMES_PER_BATCH = 16  # at once, each correlated with an earlier one; 64 would not fit into the processor's caches
MAPS_PER_BATCH = 256


@dataclass(frozen=True)
class DerivedStream:
    """A stream that is computed from the stream `source` of the same store."""

    source: str

    @property
    def name(self) -> str:
        """The stream's name in a store."""
        return ("" if self.source == APPEARANCE else f"{self.source}.") + self._content_name

    @property
    @abstractmethod
    def _content_name(self) -> str:
        """The name without that of the source."""

    def info(self, store: Store) -> StreamInfo:
        """Describe the stream as a store has it; a ConfigError if there is no such source or its maps are too small."""
        if self.source not in store.streams:
            raise ConfigError(
                f"{store.path}: no stream {self.source!r} to derive {self.name} from",
                expected=f"one of {', '.join(store.streams)}",
                got=self.source,
                hint=f"--head.streams {APPEARANCE}, or framebank derive --stream {self._content_name}",
            )
        source = store.streams[self.source]
        size, origin = self._size_and_origin(store, source.shape)
        return StreamInfo(
            (size,), "float32", {"source": [store.fingerprint, self.source, source.fingerprint], **origin}
        )

    @abstractmethod
    def _size_and_origin(self, store: Store, shape: tuple[int, ...]) -> tuple[int, dict[str, Any]]:
        """Numbers per frame, and what they depend on besides the source, whose entries have a shape."""

    def content(self, store: Store) -> StreamContent:
        """What is written into a store: the stream of each sequence that does not have it yet."""
        info = self.info(store)
        is_partial = store.partial_streams.get(self.name) == info
        ranges = sequence_ranges(store.sequences, store.stored_ranges(self.name) if is_partial else [])
        lacking = [i for i, parts in enumerate(ranges) if not parts]
        arrays = store.basis(self.name) if is_partial else self.fit(store)
        return StreamContent(info, ranges, self._batches(store, lacking, arrays), arrays)

    def fit(self, store: Store) -> Mapping[str, NDArray[np.float32]]:
        """Compute what is stored with the stream and decides its numbers; nothing for most streams."""
        return {}

    @abstractmethod
    def _batches(
        self, store: Store, sequences: Sequence[int], arrays: Mapping[str, NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        """Compute the stream of some of the store's sequences, by their indices."""

    def is_stored(self, store: Store) -> bool:
        """Whether a store has the stream, derived from its source as it is now."""
        return store.streams.get(self.name) == self.info(store)


@dataclass(frozen=True)
class GridPooling(DerivedStream):
    """Each frame's map averaged over a grid or, with a lag, its change over that many frames, 0 at the start."""

    grid: tuple[int, int]  # rows, columns
    lag: int = 0

    @property
    def _content_name(self) -> str:
        cells = f"{self.grid[0]}x{self.grid[1]}"
        if not self.lag:
            return "pooled" if self.grid == (1, 1) else f"grid{cells}"
        return f"change{cells}" + (f"lag{self.lag}" if self.lag > 1 else "")

    def _size_and_origin(self, store: Store, shape: tuple[int, ...]) -> tuple[int, dict[str, Any]]:
        height, width, channels = (1, 1, *shape)[-3:]  # a vector counts as a map of one cell
        check_grid(self.grid, height, width)
        origin = {"derived": GRID_POOLING_VERSION, "grid": list(self.grid), "lag": self.lag}
        return math.prod(self.grid) * channels, origin

    def _batches(
        self, store: Store, sequences: Sequence[int], arrays: Mapping[str, NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        shape = self.info(store).shape
        for i in sequences:
            first = int(store.first[i])
            for batch in gen_batches(store.sequences[i].length, MAPS_PER_BATCH):
                rows = np.arange(first + max(batch.start - self.lag, 0), first + batch.stop)
                values = np.zeros((batch.stop - batch.start, *shape), np.float32)
                if len(rows) > self.lag:
                    maps = as_maps(store.read(self.source, rows).astype(np.float32)[None])
                    values[len(values) + self.lag - len(rows) :] = np.asarray(self._features(maps)[0])
                yield values

    def _features(self, maps: Tensor) -> Tensor:
        return pool_frames(maps, self.grid, self.lag)


@dataclass(frozen=True)
class CorrelationPooling(GridPooling):
    """Where the content of each cell moved over `lag` frames, see `correlation.correlate_frames`."""

    search: tuple[int, int] = (5, 5)  # rows, columns
    skip_top: float = 0.0

    @property
    def _content_name(self) -> str:
        (rows, columns), (height, width) = self.grid, self.search
        return f"correlation{rows}x{columns}within{height}x{width}lag{self.lag}"

    def _size_and_origin(self, store: Store, shape: tuple[int, ...]) -> tuple[int, dict[str, Any]]:
        _, origin = super()._size_and_origin(store, (len(visible_rows(shape[0], self.skip_top)), *shape[1:]))
        settings = {"search": list(self.search), "skip_top": self.skip_top, "correlation": CORRELATION_VERSION}
        return math.prod(self.grid) * len(CELL_FEATURES), origin | settings

    def _batches(
        self, store: Store, sequences: Sequence[int], arrays: Mapping[str, NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        height, width, channels = (1, 1, *store.streams[self.source].shape)[-3:]
        pair = keras.Input((2, height, width, channels))
        # compiled: operation by operation it takes twice the time
        model = keras.Model(pair, correlate_frames(normalise_maps(pair, self.skip_top), 1, self.grid, self.search))
        shape = self.info(store).shape
        frames = [np.arange(store.sequences[i].length) for i in sequences]
        position = np.concatenate(frames)
        rows = np.concatenate([numbers + store.first[i] for i, numbers in zip(sequences, frames, strict=True)])
        for batch in gen_batches(len(rows), FRAMES_PER_BATCH):  # of several short sequences at once
            has_earlier = position[batch] >= self.lag
            values = np.zeros((len(has_earlier), *shape), np.float32)
            if has_earlier.any():
                later = rows[batch][has_earlier]
                read, pairs = np.unique([later - self.lag, later], return_inverse=True)
                maps = store.read(self.source, read).astype(np.float32).reshape(-1, height, width, channels)
                values[has_earlier] = model.predict_on_batch(maps[pairs.reshape(2, -1).T])[:, 0]
            yield values


@dataclass(frozen=True)
class PCAProjection(DerivedStream):
    """Each frame's map, projected on `count` principal components of the training split, kept in the store."""

    count: int

    @property
    def _content_name(self) -> str:
        return f"pca{self.count}"

    def _size_and_origin(self, store: Store, shape: tuple[int, ...]) -> tuple[int, dict[str, Any]]:
        check_count(self.count, len(_training_rows(store)), math.prod(shape), f"{store.path}: {self.name}")
        training = [[s.digest, s.length] for s in store.sequences if s.split == "train"]
        return self.count, {"derived": PCA_VERSION, "components": self.count, "seen": json_digest(training)}

    def is_stored(self, store: Store) -> bool:
        return super().is_stored(store) and bool(store.basis(self.name))

    def stored_basis(self, store: Store) -> PCABasis:
        """Read the basis of the stored stream."""
        return PCABasis(**store.basis(self.name))

    def fit_basis(self, store: Store) -> PCABasis:
        """Fit the basis to the store's training frames; raises what `info` does."""
        self.info(store)
        pca = IncrementalPCA(self.count, copy=False)
        return fit_pca(pca, lambda rows: store.read(self.source, rows), _training_rows(store))

    def fit(self, store: Store) -> Mapping[str, NDArray[np.float32]]:
        return vars(self.fit_basis(store))

    def _batches(
        self, store: Store, sequences: Sequence[int], arrays: Mapping[str, NDArray[np.float32]]
    ) -> Iterator[NDArray[np.float32]]:
        kernel, bias = PCABasis(**arrays).weights
        rows = np.concatenate([np.arange(store.sequences[i].length) + store.first[i] for i in sequences])
        for batch in gen_batches(len(rows), MAPS_PER_BATCH):
            maps = store.read(self.source, rows[batch]).astype(np.float32)
            yield maps.reshape(len(maps), -1) @ kernel + bias


def _training_rows(store: Store) -> NDArray[np.int64]:
    is_training = np.repeat([s.split == "train" for s in store.sequences], [s.length for s in store.sequences])
    return np.flatnonzero(is_training)


def parse_stream_name(name: str) -> DerivedStream:
    """Return the derived stream that a name describes; a ConfigError if it describes none.

    >>> parse_stream_name("motion.change3x4lag2")
    GridPooling(source='motion', grid=(3, 4), lag=2)
    """
    match = STREAM_NAME.fullmatch(name)
    if match is None or (match["kind"] == "grid" and match["lag"]):
        raise ConfigError(
            f"{name}: not a stream that can be derived",
            expected="pooled, gridRxC, changeRxC, changeRxClagN or pcaN",
            got=name,
            hint="--stream grid3x4",
        )
    source = match["source"] or APPEARANCE
    if match["components"]:
        return PCAProjection(source, int(match["components"]))
    if match["pooled"]:
        return GridPooling(source, (1, 1))
    lag = int(match["lag"] or 1) if match["kind"] == "change" else 0
    return GridPooling(source, (int(match["rows"]), int(match["columns"])), lag)


def derive_streams(path: Path, streams: Sequence[DerivedStream]) -> list[str]:
    """Add streams to a store where they are missing, and return the names of those added; OSError if it is read-only.

    A StoreError if another process still writes to it after `LOCK_TIMEOUT`; a ConfigError if a stream does not fit it.
    """

    def missing(store: Store) -> list[DerivedStream]:
        return [stream for stream in dict.fromkeys(streams) if not stream.is_stored(store)]

    with Store(path) as store:
        if not missing(store):
            return []
    with exclusive_write_lock(path, LOCK_TIMEOUT), Store(path) as store:
        added = missing(store)  # another process may have added some in the meantime
        if added:
            extend_store(path, {stream.name: stream.content(store) for stream in added})
    return [stream.name for stream in added]


def try_derive_streams(path: Path, streams: Sequence[DerivedStream]) -> None:
    """Call `derive_streams`, and log what was added, or why the store cannot be written."""
    try:
        added = derive_streams(path, streams)
    except (OSError, StoreError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        names = ", ".join(stream.name for stream in streams)
        logger.warning(f"{path}: {names} cannot be saved in the store ({reason}), so each run computes them again")
    else:
        if added:
            logger.info(f"{path}: {', '.join(added)} derived and saved in the store")
