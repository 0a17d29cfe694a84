"""Windows of frames for Keras, decoded in threads ahead of the network, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features.errors import FramebankError
from stage2_temporal.finetune.augmentation import Augmentation

AHEAD = 2  # finished batches a thread that may wait for the network

ReadWindow = Callable[[int], NDArray[np.uint8]]


class ImageWindowBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of windows and targets.

    At most `AHEAD` batches a thread wait, whatever the data set's size. The order and the augmentation depend on the
    seed, the epoch and the example alone, not on how threads interleave.

    Args:
        read: an example's index → its frames (T, height, width, 3) uint8; called by several threads at once.
        chosen: (n,) indices of the examples.
        targets: (N, K) of all examples; None gives windows alone, to predict.
        batch: windows a batch.
        threads: that decode; 0: one a core.
        seed: shuffles anew each epoch; None keeps the order.
        augmentation: drawn anew for each window and epoch.
        whole: leave out the last batch of an epoch where it is not full.

    Attributes:
        fault: what the user can mend and went wrong while decoding; TensorFlow hides it in an error of its own.
    """

    def __init__(
        self,
        read: ReadWindow,
        chosen: NDArray[np.int64],
        targets: NDArray[np.float64] | None,
        batch: int,
        *,
        threads: int = 0,
        seed: int | None = None,
        augmentation: Augmentation | None = None,
        whole: bool = False,
    ) -> None:
        threads = threads or os.cpu_count() or 1
        super().__init__(workers=threads, max_queue_size=AHEAD * threads)
        self._read, self._chosen, self._batch, self._seed = read, chosen, batch, seed
        self._targets = None if targets is None else targets.astype(np.float32)
        self._augmentation, self._order, self._epoch = augmentation, chosen, 0
        self._count = max(1, len(chosen) // batch) if whole else -(-len(chosen) // batch)
        self.fault: FramebankError | None = None

    def __len__(self) -> int:
        return self._count

    def begin(self, epoch: int) -> None:
        """Set the epoch; before `fit`, since Keras' threads run ahead of its own callbacks."""
        self._epoch = epoch
        if self._seed is not None:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self._chosen)

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
