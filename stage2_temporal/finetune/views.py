"""Views of windows as the frozen part of a model sees them, computed once and kept on disk while the rest trains."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features._common.atomic import naming
from features._common.bounded_file import require_regular
from features._common.plain_text import one_line
from features._common.types import Floats, Image
from features.errors import DataError, raise_refusal
from features.streams import VECTORS
from stage1_extract.engines.engine import choose_engine
from stage1_extract.engines.openvino import OpenVinoRunner, openvino_installed
from stage2_temporal.data.batches import Batches
from stage2_temporal.finetune.augmentation import ImageWindowBatches
from stage2_temporal.fused.fuse import ReadWindow

TARGETS = "targets.npy"

Arrays = dict[str, NDArray[Any]]
Compute = Callable[[Image], Arrays]  # windows (n, T, height, width, 3) → arrays (n, …) by name


class StoredView:
    """What a frozen model computed from one view of n windows, and that view's targets (n, K), in a folder.

    Args:
        frozen: the model.
        targets: (n, K), the shape of the targets.

    Raises:
        DataError: a file is no array of numbers, or of another shape.
    """

    def __init__(self, folder: Path, frozen: keras.Model, targets: tuple[int, ...]) -> None:
        shapes = {name: (targets[0], *tensor.shape[1:]) for name, tensor in frozen.output.items()}
        self.targets: Floats = np.asarray(_load(folder / TARGETS, targets))
        self.arrays = {name: _load(folder / f"{name}.npy", shape) for name, shape in shapes.items()}


def _load(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map an array of floating-point numbers from a file."""
    what, hint = f"{path}: damaged views of windows", f"rm -r {path.parent.parent}"
    try:
        require_regular(path)
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError) as e:
        raise_refusal(e, path)
        raise DataError(what, got=one_line(str(e))[:200], hint=hint) from None
    if array.dtype.kind != "f" or array.shape != shape:
        expected = f"floating-point numbers of shape {shape}"
        raise DataError(what, expected=expected, got=f"{array.dtype} of shape {array.shape}", hint=hint)
    return array


class Mirror(NamedTuple):
    """How vectors (n, …) change in a mirrored scene, and the factors (K,) of the targets."""

    vectors: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    signs: Floats


def view_batches(
    views: Sequence[StoredView], batch: int, shuffle: np.random.Generator | None = None, mirror: Mirror | None = None
) -> Batches:
    """Batches of the arrays of several views of the same windows, as the part that trains takes them, and targets.

    With `mirror`, the same again of the mirrored scenes; the views' only array is the head's vectors.
    """
    count, targets = len(views[0].targets), np.concatenate([view.targets for view in views])
    plain = len(targets)
    if mirror is not None:
        targets = np.concatenate([targets, targets * mirror.signs])

    def read(rows: NDArray[np.int64]) -> Arrays:
        pairs = [(views[view].arrays, window) for view, window in zip(*divmod(rows % plain, count), strict=True)]
        arrays = {name: np.stack([a[name][i] for a, i in pairs]).astype(np.float32) for name in views[0].arrays}
        if mirror is not None:
            mirrored, vectors = rows >= plain, arrays[VECTORS]
            vectors[mirrored] = mirror.vectors(vectors[mirrored])
        return arrays

    rows = np.arange(len(targets)) if shuffle is None else shuffle.permutation(len(targets))
    return Batches(read, rows, targets[rows], batch)


def keep_windows(read: ReadWindow, path: Path, indices: NDArray[np.int64]) -> ReadWindow:
    """Return a function that reads the same windows as `read`, each of `indices` once; a file at `path` keeps them.

    Decoding takes a third of the time of a view. Several threads may call the result, on different windows.
    """
    position = {int(index): i for i, index in enumerate(indices)}
    first = read(int(indices[0]))
    windows = _new_array(path, first.dtype, (len(indices), *first.shape))
    windows[0] = first
    kept = np.arange(len(indices)) == 0

    def read_once(index: int) -> Image:
        at = position[index]
        if not kept[at]:
            windows[at] = read(index)
            kept[at] = True
        return np.array(windows[at])

    return read_once


def _new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Make a file for an array, mapped into memory; an OSError if the disk is full.

    Its space is taken at once: where it is missing, a write to the mapped memory would end the process (SIGBUS).
    """
    path.unlink(missing_ok=True)  # it may be a link to another file
    array: NDArray[Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with naming(path, path), path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def compile_frozen(frozen: keras.Model, engine: str) -> Compute:
    """Compile the frozen part of a model for this machine; several threads may call the result.

    Args:
        frozen: frames to arrays by name, the first part of `frozen_part.divide_model`.
        engine: the setting `extract.engine`.
    """
    gpus = len(tf.config.list_physical_devices("GPU"))
    if choose_engine(engine, "float32", gpus, openvino_installed()) == "tensorflow":
        function = tf.function(lambda frames: frozen(frames, training=False), autograph=False, reduce_retracing=True)
        return lambda frames: {name: value.numpy() for name, value in function(tf.constant(frames)).items()}
    run = OpenVinoRunner(frozen, 1, "float32")

    def compute(frames: Image) -> Arrays:
        windows = [run(frames[i : i + 1]) for i in range(len(frames))]
        return {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}

    return compute


def store_view(folder: Path, compute: Compute, windows: ImageWindowBatches, dtype: str) -> None:
    """Compute a view, unless its folder exists.

    Args:
        compute: what `compile_frozen` returns.
        windows: all windows of the view, augmented if it is to be.
        dtype: in which maps are stored; other arrays are small and stay in float32.

    Raises:
        DataError: a frame cannot be read.
    """
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays: dict[str, Any] = {}
    targets: list[NDArray[np.float32]] = []
    at = 0
    for computed, batch_targets in _in_order(compute, windows):
        for name, value in computed.items():
            if at == 0:
                shape, kind = (windows.examples, *value.shape[1:]), dtype if value.ndim == 5 else "float32"
                arrays[name] = _new_array(partial / f"{name}.npy", kind, shape)
            arrays[name][at : at + len(value)] = value
        at += len(batch_targets)
        targets.append(batch_targets)
    for array in arrays.values():
        array.flush()
    np.save(partial / TARGETS, np.concatenate(targets).astype(np.float64))
    partial.rename(folder)


def _in_order(compute: Compute, windows: ImageWindowBatches) -> Iterator[tuple[Arrays, NDArray[np.float32]]]:
    """What is computed from each batch, and its targets, by several threads."""

    def run(batch: int) -> tuple[Arrays, NDArray[np.float32]]:
        frames, targets = windows[batch]
        return compute(frames), targets

    pending: deque[Future[tuple[Arrays, NDArray[np.float32]]]] = deque()
    with ThreadPoolExecutor(windows.workers) as pool:
        for i in range(len(windows)):
            pending.append(pool.submit(run, i))
            if len(pending) > windows.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
