"""Streams of principal components: each frame's whole map, projected on the directions in which maps vary most.

The basis is found by scikit-learn's IncrementalPCA (Ross et al., "Incremental learning for robust visual tracking",
2008) on frames of the training split alone, and kept in the store beside the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA
from sklearn.utils import gen_batches

from features.errors import ConfigError
from features.recipe import json_digest
from features.store import Store, StreamInfo
from features.store_writer import StreamContent
from features.streams import APPEARANCE
from stage2_temporal.data.grid_pooling import source_info

PCA_VERSION = 1  # raise it whenever the same stream gives other numbers
MAPS_PER_BATCH = (
    256  # frames fitted or projected at a time; a fit takes as many as there are components where these are more
)
MAX_FIT_FRAMES = 4096  # a fit sees at most; drawn from all
PCA_SEED = 0  # of the draw
MIN_RELATIVE_DEVIATION = 1e-6  # of a map's length: components that vary less are rounding
ReadRows = Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True)
class PCABasis:
    """A mean map (F,) and the components (N, F) that a map's difference from it is projected on, float32."""

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """From what a store keeps, see `arrays`."""
        return cls(arrays["mean"], arrays["components"])

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What a store keeps."""
        return {"mean": self.mean, "components": self.components}

    @property
    def weights(self) -> list[NDArray[np.float32]]:
        """The projection as a Dense layer's kernel (F, N) and bias (N,)."""
        bias = -(self.components.astype(np.float64) @ self.mean.astype(np.float64))
        return [np.ascontiguousarray(self.components.T), bias.astype(np.float32)]


@dataclass(frozen=True)
class PCAProjection:
    """The first `count` principal components of a stream's maps."""

    source: str
    count: int

    @property
    def name(self) -> str:
        """Under which it lies in the store."""
        return ("" if self.source == APPEARANCE else f"{self.source}.") + f"pca{self.count}"

    def info(self, store: Store) -> StreamInfo:
        """Shape, type and origin in a store; the origin changes with the training sequences.

        Raises:
            ConfigError: no such source, or more components than its maps or the training frames have.
        """
        of = source_info(store, self.source, self.name)
        check_count(self.count, len(training_rows(store)), math.prod(of.shape), f"{store.path}: {self.name}")
        seen = [[s.digest, s.length] for s in store.sequences if s.split == "train"]
        origin = {
            "derived": PCA_VERSION,
            "source": [store.fingerprint, self.source, of.fingerprint],
            "components": self.count,
            "seen": json_digest(seen),
        }
        return StreamInfo((self.count,), "float32", origin)

    def basis(self, store: Store) -> PCABasis:
        """The basis, found anew from the store's training frames.

        Raises:
            ConfigError: see `info`.
        """
        self.info(store)
        return fit_pca(lambda rows: store.read(self.source, rows), training_rows(store), self.count)

    def stream(self, store: Store) -> StreamContent:
        """What a store is extended by."""
        basis = self.basis(store)
        return StreamContent(self.info(store), batches=self._batches(store, basis), arrays=basis.arrays)

    def _batches(self, store: Store, basis: PCABasis) -> Iterator[NDArray[np.float32]]:
        kernel, bias = basis.weights
        for block in gen_batches(store.frames, MAPS_PER_BATCH):
            maps = store.read(self.source, np.arange(block.start, block.stop)).astype(np.float32)
            yield maps.reshape(len(maps), -1) @ kernel + bias


def fit_pca(read: ReadRows, rows: NDArray[np.int64], count: int) -> PCABasis:
    """The first `count` principal components of the maps that `read` gives for rows, or for FRAMES drawn from them.

    Memory is bounded by a block of maps in double precision, a few times. Within one block it is an exact PCA.
    """
    if len(rows) > MAX_FIT_FRAMES:
        rows = np.sort(np.random.default_rng(PCA_SEED).choice(rows, max(MAX_FIT_FRAMES, count + 1), replace=False))
    machine = IncrementalPCA(count, copy=False)
    for block in gen_batches(len(rows), max(MAPS_PER_BATCH, count), min_batch_size=count):
        maps = read(rows[block])
        machine.partial_fit(maps.reshape(len(maps), -1).astype(np.float64))
    length = math.sqrt(float(np.square(machine.mean_).sum() + machine.var_.sum()))
    # directions in which nothing varies are any; as zeros they are the same however they are computed
    alive = np.sqrt(machine.explained_variance_) > MIN_RELATIVE_DEVIATION * length
    components = machine.components_ * alive[:, None]
    return PCABasis(machine.mean_.astype(np.float32), components.astype(np.float32))


def check_count(count: int, frames: int, numbers: int, what: str) -> None:
    """Refuse more components than `frames` maps of `numbers` numbers have.

    Raises:
        ConfigError: with how many there are at most.
    """
    most = max(0, min(frames - 1, numbers))
    if count > most:
        raise ConfigError(
            f"{what}: the training frames have fewer principal components",
            expected=f"at most {most} ({frames} frames of {numbers} numbers)",
            got=count,
            hint=f"--head.components {most}, or --stream pca{most}" if most else "--head.components 0",
        )


def training_rows(store: Store) -> NDArray[np.int64]:
    """The rows of the training sequences' frames, in the store's order."""
    found = zip(store.sequences, store.first.tolist(), strict=True)
    parts = [np.arange(first, first + s.length) for s, first in found if s.split == "train"]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
