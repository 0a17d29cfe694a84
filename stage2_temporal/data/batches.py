"""Batches for Keras from a store: shuffled by a seed, and in memory where the frames fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.errors import FramebankError
from features.store import Store


class FrameReader:
    """Reads windows of one stream.

    If all `rows` that windows will need fit into `memory_gb` (10⁹ bytes), they are read once, in the store's order and
    type, and kept in memory. Otherwise each call reads the rows that it needs, each once.

    Attributes:
        in_memory, bytes_in_memory: whether the rows are in memory, and what they take there.
        rows_read: number of rows read from the store so far.
    """

    def __init__(self, store: Store, rows: NDArray[np.int64], memory_gb: float, stream: str = "appearance") -> None:
        self.store, self.stream, self.rows_read = store, stream, 0
        info = store.streams[stream]
        self._rows = np.unique(rows)
        size = len(self._rows) * int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize
        self.in_memory = size <= memory_gb * 1e9
        self.bytes_in_memory = size if self.in_memory else 0
        if self.in_memory:
            self._frames = self._read(self._rows)

    def windows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read windows (n, T) → (n, T, h, w, c) in the stored type.

        Raises:
            StoreError: a frame cannot be read.
        """
        if self.in_memory:
            windows: NDArray[Any] = self._frames[np.searchsorted(self._rows, rows)]
            return windows
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._read(unique)[inverse.reshape(rows.shape)]

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        self.rows_read += len(rows)
        return self.store.read(self.stream, rows)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of windows and targets, for one call of `fit` or `predict`.

    Args:
        read: takes some entries of `rows`; returns an array, or a dictionary of arrays by the model's input names.
        rows: (n, …) one entry per example.
        targets: (n, K) targets; None makes batches of windows alone, to predict.
        batch: examples per batch.
        seed: for shuffling in each epoch; None keeps the order.

    Attributes:
        fault: the user's error, if any, that reading raised; TensorFlow hides it in an error of its own.
    """

    def __init__(
        self,
        read: Callable[[NDArray[np.int64]], Any],
        rows: NDArray[np.int64],
        targets: NDArray[np.float64] | None,
        batch: int,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._read: Callable[[NDArray[np.int64]], Any] | None = read
        self._rows, self._batch, self._seed = rows, batch, seed
        self._targets = None if targets is None else targets.astype(np.float32)
        self._order, self._epoch = np.arange(len(rows)), 0
        self.fault: FramebankError | None = None

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        assert self._read is not None
        chosen = self._order[index * self._batch : (index + 1) * self._batch]
        try:
            windows = self._read(self._rows[chosen])
        except FramebankError as e:
            self.fault = e
            raise
        return (windows,) if self._targets is None else (windows, self._targets[chosen])

    def on_epoch_begin(self) -> None:
        """Draw the epoch's order, which depends only on the seed and the epoch."""
        if self._seed is not None:
            self._order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._rows))
        self._epoch += 1

    def close(self) -> None:
        """Release what is read and its frames: TensorFlow keeps every data set as long as the process lives (2.21)."""
        self._read = None
