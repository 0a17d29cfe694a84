"""Batches for Keras, shuffled by a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.errors import FramebankError


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
