"""Reading examples that do not fit into memory: in which order, how many at a time, and one part ahead.

The order depends on the seed, the epoch and the number of examples alone, and memory only decides how much is read at
once, so that training gives the same numbers whatever the memory.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stage2_temporal.data.examples import StoreExamples

SHUFFLE_BUFFER = 4096  # examples that are mixed with each other; up to as many, every order is as likely
SHUFFLE_BLOCK = 64  # neighbouring examples that stay in one buffer, whose frames lie side by side in the store


def shuffled_order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of `count` examples in an epoch: (count,) indices.

    More examples than `SHUFFLE_BUFFER` are divided into blocks of neighbours, at other borders in each epoch. The
    blocks are put in random order, and then examples are mixed within each `SHUFFLE_BUFFER`.
    """
    rng = np.random.default_rng((seed, epoch))
    if count <= SHUFFLE_BUFFER:
        return rng.permutation(count)
    blocks = np.split(np.arange(count), np.arange(rng.integers(1, SHUFFLE_BLOCK + 1), count, SHUFFLE_BLOCK))
    order = np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])
    buffers = np.split(order, np.arange(SHUFFLE_BUFFER, count, SHUFFLE_BUFFER))
    return np.concatenate([rng.permutation(buffer) for buffer in buffers])


def plan_parts(rows: NDArray[np.int64], batch: int, max_rows: int) -> list[tuple[int, int]]:
    """Divide examples, in the order in which they are used, into parts that are read at once.

    Args:
        rows: (n, T) rows of the store for each example.
        batch: examples per batch; no batch is divided.
        max_rows: how many different rows fit into memory. A part has fewer, unless it is a single batch.

    Returns:
        The first batch of each part, and the one after its last.

    >>> plan_parts(np.array([[0, 1], [1, 2], [6, 7], [8, 9], [4, 5]]), batch=1, max_rows=3)
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    parts: list[tuple[int, int]] = []
    count, most = -(-len(rows) // batch), max(1, SHUFFLE_BUFFER // batch)
    start, size = 0, most
    while start < count:
        stop = min(start + min(most, 2 * size), count)  # parts are of similar sizes
        while stop - start > 1 and len(np.unique(rows[start * batch : stop * batch])) > max_rows:
            stop = start + (stop - start) // 2
        parts.append((start, stop))
        start, size = stop, stop - start
    return parts


class ReadAhead:
    """Reads examples that do not fit into memory, batch by batch, in a given order.

    The part that batches are taken from is in memory, and the next part is read in a thread.

    Args:
        examples: all of them.
        order: (n,) their order.
        batch: examples per batch.
    """

    def __init__(self, examples: StoreExamples, order: NDArray[np.int64], batch: int) -> None:
        self._examples, self._order, self._batch = examples, order, batch
        self._parts = plan_parts(examples.examples.rows[order], batch, examples.source.rows_per_part)
        self._firsts = [start for start, _ in self._parts]
        self._index = -1  # of the part in memory
        self._part: StoreExamples | None = None
        self._next: tuple[int, Future[StoreExamples]] | None = None
        self._thread = ThreadPoolExecutor(1, "read-ahead")

    def batch(self, index: int) -> StoreExamples:
        """The examples of a batch, whose frames are in memory; fastest if batches are asked for in order."""
        i = int(np.searchsorted(self._firsts, index, side="right")) - 1
        start = self._firsts[i]
        if i != self._index or self._part is None:
            self._part = None  # before the next part is read, to save memory
            self._part, self._index = self._wait_for(i), i
        at = (index - start) * self._batch
        examples = self._part[at : at + self._batch]
        if index == self._parts[-1][1] - 1:  # other batches may need the memory now
            self._part = None
        return examples

    def close(self) -> None:
        """Release all frames."""
        self._thread.shutdown(cancel_futures=True)
        self._part, self._next = None, None

    def _wait_for(self, index: int) -> StoreExamples:
        """The examples of a part, whose frames are in memory; the next part is being read."""
        waiting, self._next = self._next, None
        future = waiting[1] if waiting is not None and waiting[0] == index else self._thread.submit(self._load, index)
        part = future.result()
        if index + 1 < len(self._parts):
            self._next = index + 1, self._thread.submit(self._load, index + 1)
        return part

    def _load(self, index: int) -> StoreExamples:
        start, stop = self._parts[index]
        return self._examples[self._order[start * self._batch : stop * self._batch]].in_memory()
