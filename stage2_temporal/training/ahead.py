"""Reading one batch ahead while the model works on the last.

TensorFlow leaves its own prefetching out where kernels are to be deterministic; one thread that reads batches in their
order is as deterministic as none.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import keras


class Ahead(keras.utils.PyDataset):  # type: ignore[misc]
    """The same batches as `batches`, each read while the one before is in use; use it in a `with` block.

    TensorFlow keeps what it was fed from for as long as the process lives (2.21), so that the block's end lets go of
    the batches: a sweep's worker would else hold the maps of every run it has made.

    Args:
        batches: what is read; one thread reads all of it, in the order asked for.
    """

    def __init__(self, batches: keras.utils.PyDataset) -> None:
        super().__init__()
        self._batches: Any = batches
        self._thread = ThreadPoolExecutor(1)
        self._begun, self._next = False, dict[int, Future[Any]]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._batches, self._next = None, {}

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
