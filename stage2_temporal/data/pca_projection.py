"""Derived streams of principal components: each frame's whole map, projected on the directions of largest variance.

The basis is fitted by scikit-learn's IncrementalPCA (Ross et al., "Incremental learning for robust visual tracking",
2008) to frames of the training split only, and kept in the store beside the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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

PCA_VERSION = 1  # increase it whenever the same stream gets other numbers
MAPS_PER_BATCH = 256  # a fit takes as many as it has components, if these are more
MAX_FIT_FRAMES = 4096  # a fit uses a random sample of this many, drawn with PCA_SEED
PCA_SEED = 0
MIN_RELATIVE_DEVIATION = 1e-6  # components that vary less, relative to a map's length, are rounding errors


@dataclass(frozen=True)
class PCABasis:
    """The basis that maps are projected on. A store keeps its fields as arrays."""

    mean: NDArray[np.float32]  # (F,) the mean map, flattened
    components: NDArray[np.float32]  # (N, F) unit vectors

    @property
    def weights(self) -> list[NDArray[np.float32]]:
        """The projection as a Dense layer's kernel (F, N) and bias (N,)."""
        bias = -(self.components.astype(np.float64) @ self.mean.astype(np.float64))
        return [np.ascontiguousarray(self.components.T), bias.astype(np.float32)]


@dataclass(frozen=True)
class PCAProjection:
    """Each frame's map of the stream `source`, projected on its first `count` principal components."""

    source: str
    count: int

    @property
    def name(self) -> str:
        """The stream's name in a store."""
        return ("" if self.source == APPEARANCE else f"{self.source}.") + f"pca{self.count}"

    def info(self, store: Store) -> StreamInfo:
        """Describe the stream as a store has it: shape, type and origin, which changes with the training sequences.

        Raises:
            ConfigError: the store has no such source, or its maps have fewer components.
        """
        source = source_info(store, self.source, self.name)
        check_count(self.count, len(training_rows(store)), math.prod(source.shape), f"{store.path}: {self.name}")
        training = [[s.digest, s.length] for s in store.sequences if s.split == "train"]
        origin = {
            "derived": PCA_VERSION,
            "source": [store.fingerprint, self.source, source.fingerprint],
            "components": self.count,
            "seen": json_digest(training),
        }
        return StreamInfo((self.count,), "float32", origin)

    def basis(self, store: Store) -> PCABasis:
        """Fit the basis to the store's training frames; raises what `info` does."""
        self.info(store)
        return fit_pca(lambda rows: store.read(self.source, rows), training_rows(store), self.count)

    def stream(self, store: Store) -> StreamContent:
        """Return what is written into a store."""
        basis = self.basis(store)
        return StreamContent(self.info(store), batches=self._batches(store, basis), arrays=vars(basis))

    def _batches(self, store: Store, basis: PCABasis) -> Iterator[NDArray[np.float32]]:
        kernel, bias = basis.weights
        for batch in gen_batches(store.frames, MAPS_PER_BATCH):
            maps = store.read(self.source, np.arange(batch.start, batch.stop)).astype(np.float32)
            yield maps.reshape(len(maps), -1) @ kernel + bias


def fit_pca(read: Callable[[NDArray[np.int64]], NDArray[Any]], rows: NDArray[np.int64], count: int) -> PCABasis:
    """Fit the first `count` principal components of maps.

    Memory is limited to a few batches of maps in double precision. Within one batch the PCA is exact.

    Args:
        read: returns the maps (n, …) of some rows.
        rows: the rows to fit to; a random sample of them if there are more than `MAX_FIT_FRAMES`.
    """
    if len(rows) > MAX_FIT_FRAMES:
        rows = np.sort(np.random.default_rng(PCA_SEED).choice(rows, max(MAX_FIT_FRAMES, count + 1), replace=False))
    pca = IncrementalPCA(count, copy=False)
    for batch in gen_batches(len(rows), max(MAPS_PER_BATCH, count), min_batch_size=count):
        maps = read(rows[batch])
        pca.partial_fit(maps.reshape(len(maps), -1).astype(np.float64))
    length = math.sqrt(float(np.square(pca.mean_).sum() + pca.var_.sum()))
    # directions without variance are arbitrary; zeros are the same however they are computed
    varies = np.sqrt(pca.explained_variance_) > MIN_RELATIVE_DEVIATION * length
    components = pca.components_ * varies[:, None]
    return PCABasis(pca.mean_.astype(np.float32), components.astype(np.float32))


def check_count(count: int, frames: int, numbers: int, what: str) -> None:
    """Raise a ConfigError, about `what`, if `frames` maps of so many `numbers` have fewer than `count` components."""
    most = max(0, min(frames - 1, numbers))
    if count > most:
        raise ConfigError(
            f"{what}: more principal components than the training frames have",
            expected=f"at most {most} ({frames} frames of {numbers} numbers)",
            got=count,
            hint=f"--head.components {most}, or --stream pca{most}" if most else "--head.components 0",
        )


def training_rows(store: Store) -> NDArray[np.int64]:
    """Return the rows of all frames of the training split, in the store's order."""
    starts = zip(store.sequences, store.first.tolist(), strict=True)
    parts = [np.arange(first, first + s.length) for s, first in starts if s.split == "train"]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
