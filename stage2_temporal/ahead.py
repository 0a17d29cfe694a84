"""Reading one batch ahead while the model works on the last.

TensorFlow leaves its own prefetching out where kernels are to be deterministic; one thread that reads batches in their
order is as deterministic as none.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras


class Ahead(keras.utils.PyDataset):  # type: ignore[misc]
    """The same batches as `batches`, each read while the one before is in use.

    Args:
        batches: what is read; one thread reads all of it, in the order asked for.
    """

    def __init__(self, batches: keras.utils.PyDataset) -> None:
        super().__init__()
        self._batches, self._thread = batches, ThreadPoolExecutor(1)
        self._begun, self._next = False, dict[int, Future[Any]]()

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        batch = (self._next.pop(index, None) or self._read(index)).result()
        if self._begun and index + 1 < len(self):  # before, Keras looks at a batch or two for their shapes alone
            self._next = {index + 1: self._read(index + 1)}
        return batch

    def on_epoch_begin(self) -> None:
        """What was read ahead belongs to the order of the epoch before."""
        self._begun, self._next = True, {}
        self._batches.on_epoch_begin()

    def _read(self, index: int) -> Future[Any]:
        return self._thread.submit(self._batches.__getitem__, index)
