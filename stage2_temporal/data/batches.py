"""Batches for Keras, shuffled by a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.errors import FramebankError
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.data.read_ahead import ReadAhead, shuffled_order

PROBED_EXAMPLES = 4


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of windows and targets, for one call of `fit` or `predict`.

    Args:
        read: takes some of the examples; returns an array, or a dictionary of arrays by the model's input names.
        examples: n examples, or an array (n, …) with an entry for each.
        targets: (n, K) targets; None makes batches of windows alone, to predict.
        batch: examples per batch.
        seed: for shuffling in each epoch, see `shuffled_order`; None keeps the order.

    Attributes:
        fault: the user's error, if any, that reading raised; TensorFlow hides it in an error of its own.
    """

    def __init__(
        self,
        read: Callable[[Any], Any],
        examples: HeadInputs | NDArray[Any],
        targets: NDArray[np.float64] | None,
        batch: int,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._read: Callable[[Any], Any] | None = read
        self._rows: Any = examples
        self._count, self._batch, self._seed = len(examples), batch, seed
        self._targets = None if targets is None else targets.astype(np.float32)
        self._order, self._epoch = np.arange(self._count), 0
        self._ahead: ReadAhead | None = None
        self.fault: FramebankError | None = None
        self.part = (0, 1)  # which of how many parts of each batch to take

    def __len__(self) -> int:
        return -(-self._count // self._batch)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        assert self._read is not None and self._rows is not None
        chosen = self._chosen(index)
        try:
            windows = self._read(self._rows[chosen] if self._ahead is None else self._ahead.batch(index))
        except FramebankError as e:
            self.fault = e
            raise
        return (windows,) if self._targets is None else (windows, self._targets[chosen])

    def size(self, index: int) -> int:
        """The number of examples in a batch, in all of its parts."""
        return len(self._order[index * self._batch : (index + 1) * self._batch])

    def _chosen(self, index: int) -> NDArray[np.int64]:
        """The examples of a batch, or of a part of it."""
        batch = self._order[index * self._batch : (index + 1) * self._batch]
        return batch if self.part == (0, 1) else np.array_split(batch, self.part[1])[self.part[0]]

    def inputs(self) -> Iterator[Any]:
        """Yield the windows of each batch, then close."""
        try:
            self.on_epoch_begin()
            for index in range(len(self)):
                yield self[index][0]
        finally:
            self.close()

    def on_epoch_begin(self) -> None:
        """Draw the epoch's order, which depends only on the seed and the epoch."""
        if self._seed is not None:
            self._order = shuffled_order(self._count, self._seed, self._epoch)
        self._epoch += 1
        self._stop_reading_ahead()
        if isinstance(self._rows, StoreExamples) and self._count and self._read is not None:
            some = np.linspace(0, self._count - 1, PROBED_EXAMPLES, dtype=np.int64)
            self._read(self._rows[some])  # which streams are read, and whether they fit into memory
            if not self._rows.source.fits_into_memory:
                self._ahead = ReadAhead(self._rows, self._order, self._batch)

    def close(self) -> None:
        """Release what is read and its frames: TensorFlow keeps every data set as long as the process lives (2.21)."""
        self._stop_reading_ahead()
        self._read, self._rows, self._targets, self._order = None, None, None, self._order[:0].copy()

    def _stop_reading_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
