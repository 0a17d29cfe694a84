"""Views of windows as the frozen part of a model sees them, computed once and kept on disk while the rest trains."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from stage2_temporal.data.batches import Batches
from stage2_temporal.finetune.augmentation import ImageWindowBatches

TARGETS = "targets.npy"


class StoredView:
    """What a frozen model computed from one view of some windows, and that view's targets (n, K), in a folder."""

    def __init__(self, folder: Path) -> None:
        self.targets: Floats = np.load(folder / TARGETS)
        paths = sorted(path for path in folder.glob("*.npy") if path.name != TARGETS)
        self._arrays = {path.stem: np.load(path, mmap_mode="r") for path in paths}

    def batches(self, batch: int, shuffle: np.random.Generator | None = None) -> Batches:
        """Batches of the arrays, as the part that trains takes them, and targets."""

        def read(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
            return {name: array[rows].astype(np.float32) for name, array in self._arrays.items()}

        count = len(self.targets)
        rows = np.arange(count) if shuffle is None else shuffle.permutation(count)
        return Batches(read, rows, self.targets[rows], batch)


def store_view(folder: Path, frozen: keras.Model, windows: ImageWindowBatches, dtype: str) -> StoredView:
    """Compute a view, unless its folder exists.

    Args:
        frozen: frames to arrays by name, the first part of `frozen_part.divide_model`.
        windows: all windows of the view, augmented if it is to be.
        dtype: in which maps are stored; other arrays are small and stay in float32.

    Raises:
        DataError: a frame cannot be read.
    """
    if folder.exists():
        return StoredView(folder)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays: dict[str, Any] = {}
    targets: list[NDArray[np.float32]] = []
    at = 0
    for frames, batch_targets in _read_ahead(windows):
        for name, value in frozen.predict_on_batch(frames).items():
            if at == 0:
                shape, kind = (windows.examples, *value.shape[1:]), dtype if value.ndim == 5 else "float32"
                arrays[name] = np.lib.format.open_memmap(partial / f"{name}.npy", "w+", kind, shape)
            arrays[name][at : at + len(value)] = value
        at += len(frames)
        targets.append(batch_targets)
    for array in arrays.values():
        array.flush()
    np.save(partial / TARGETS, np.concatenate(targets).astype(np.float64))
    partial.rename(folder)
    return StoredView(folder)


def _read_ahead(windows: ImageWindowBatches) -> Iterator[tuple[Any, ...]]:
    """The batches in order, read by threads a few ahead of the network."""
    pending: deque[Future[tuple[Any, ...]]] = deque()
    with ThreadPoolExecutor(windows.workers) as pool:
        for i in range(len(windows)):
            pending.append(pool.submit(windows.__getitem__, i))
            if len(pending) > windows.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
