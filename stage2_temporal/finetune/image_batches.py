"""Batches of image windows for Keras, decoded in threads ahead of the network, within bounded memory."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.cpu import cpu_count
from features.errors import FramebankError
from stage2_temporal.finetune.augmentation import Augmentation
from stage2_temporal.fused.fuse import ReadWindow

QUEUED_BATCHES = 2  # finished batches per thread that may wait for the network


class ImageWindowBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of windows (n, T, height, width, 3) and targets (n, K).

    Order and augmentation depend only on the seed, the epoch and the example, not on how threads interleave. `fault`
    is the error, if any, that a decoding thread raised; TensorFlow hides it in an error of its own.
    """

    def __init__(
        self,
        read: ReadWindow,
        indices: NDArray[np.int64],
        targets: NDArray[np.float64] | None,
        batch: int,
        *,
        threads: int = 0,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        only_full: bool = False,
    ) -> None:
        """Plan batches of `batch` examples each, out of `indices`.

        Args:
            read: returns an example's window; called by several threads at once.
            targets: (N, K) of all examples; None gives windows alone, to predict.
            threads: that decode; 0: one per core.
            seed: for shuffling in each epoch; None keeps the order.
            augmentation: drawn for each window in each epoch.
            only_full: leave out an epoch's last batch if it is not full.
        """
        threads = threads or cpu_count()
        super().__init__(workers=threads, max_queue_size=QUEUED_BATCHES * threads)
        self._read, self._indices, self._batch, self._seed = read, indices, batch, seed
        self._targets = None if targets is None else targets.astype(np.float32)
        self._augmentation, self._order, self._epoch = augmentation, indices, 0
        self._count = max(1, len(indices) // batch) if only_full else -(-len(indices) // batch)
        self.fault: FramebankError | None = None

    def __len__(self) -> int:
        return self._count

    def begin(self, epoch: int) -> None:
        """Set the epoch; call it before `fit`, since Keras' threads run ahead of its callbacks."""
        self._epoch = epoch
        if self._seed is not None:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
        examples = self._order[index * self._batch : (index + 1) * self._batch]
        try:
            windows = [self._read(int(i)) for i in examples]
        except FramebankError as e:
            self.fault = e
            raise
        if self._targets is None:
            return (np.stack(windows),)
        targets = self._targets[examples]
        if self._augmentation is not None:
            for k, i in enumerate(examples):
                rng = np.random.default_rng((self._seed or 0, self._epoch, int(i)))
                windows[k], targets[k] = self._augmentation(windows[k], targets[k], rng)
        return np.stack(windows), targets
