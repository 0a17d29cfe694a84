"""Batches for Keras from the store: shuffled with a seed, read by the chunk, in memory only where it fits."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from features.errors import FramebankError
from features.store import Store

ROWS_PER_READ = 256  # rows read at a time when everything is taken into memory


class FrameReader:
    """Windows of one stream.

    Where the needed rows fit into `memory_gb` they are read once, in the store's order and type, and held; else each
    call reads the rows it needs, each once.

    Args:
        store: an open store.
        rows: every row that will be asked for, in any order and shape.
        memory_gb: what may be held, in 10⁹ bytes.
        stream: name of the stream.

    Attributes:
        held: whether the rows are held in memory.
        held_bytes: what they take there.
        reads: rows read from the store so far.
    """

    def __init__(self, store: Store, rows: NDArray[np.int64], memory_gb: float, stream: str = "appearance") -> None:
        self.store, self.stream, self.reads = store, stream, 0
        info = store.streams[stream]
        self._rows = np.unique(rows)
        size = len(self._rows) * int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize
        self.held = size <= memory_gb * 1e9
        self.held_bytes = size if self.held else 0
        if self.held:
            self._frames = np.empty((len(self._rows), *info.shape), info.dtype)
            for start in range(0, len(self._rows), ROWS_PER_READ):
                self._frames[start : start + ROWS_PER_READ] = self._read(self._rows[start : start + ROWS_PER_READ])

    def windows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n, T) rows → (n, T, h, w, c) in the stored type.

        Raises:
            StoreError: a frame that cannot be read.
        """
        if self.held:
            chosen: NDArray[Any] = self._frames[np.searchsorted(self._rows, rows)]
            return chosen
        unique, back = np.unique(rows, return_inverse=True)
        return self._read(unique)[back.reshape(rows.shape)]

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        self.reads += len(rows)
        return self.store.read(self.stream, rows)


class WindowReader(Protocol):
    """Gives what a model takes for some examples."""

    def windows(self, rows: NDArray[np.int64]) -> Any:
        """An array, or a dictionary of arrays by the model's input names, first axis = `rows`' first."""


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of windows and targets; a thread of Keras' reads ahead.

    Args:
        reader: where windows come from.
        rows: (n, …) what it is asked for, an example each.
        targets: (n, K) their targets; None gives windows alone, to predict.
        batch: examples a batch.
        seed: shuffles anew each epoch; None keeps the order.

    Attributes:
        fault: what the user can mend and went wrong while reading; TensorFlow hides it in an error of its own.
    """

    def __init__(
        self,
        reader: WindowReader,
        rows: NDArray[np.int64],
        targets: NDArray[np.float64] | None,
        batch: int,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._reader, self._rows, self._batch, self._seed = reader, rows, batch, seed
        self._targets = None if targets is None else targets.astype(np.float32)
        self._order, self._epoch = np.arange(len(rows)), 0
        self.fault: FramebankError | None = None

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        chosen = self._order[index * self._batch : (index + 1) * self._batch]
        try:
            windows = self._reader.windows(self._rows[chosen])
        except FramebankError as e:
            self.fault = e
            raise
        return (windows,) if self._targets is None else (windows, self._targets[chosen])

    def on_epoch_begin(self) -> None:
        """Draw this epoch's order, which depends on the seed and the epoch alone."""
        if self._seed is not None:
            self._order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._rows))
        self._epoch += 1
