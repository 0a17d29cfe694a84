"""A store's examples as a data set of TensorFlow or PyTorch, for training loops of your own.

Both give dictionaries with the same three entries:

    windows    (…, T, h, w, c) of maps or (…, T, F) of vectors, in the stored type; with several streams, a dictionary
               of them by name
    targets    (…, K) float32, in their unit
    groups     (…) int64, each example's sequence
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.extras import require_package
from features._common.types import Floats
from features.config import Config
from features.errors import ConfigError
from stage2_temporal.data.examples import StoreExamples, load_examples, read_windows
from stage2_temporal.data.read_ahead import ReadAhead, shuffled_order

Batch = dict[str, Any]  # windows, targets and groups


def tf_dataset(
    store: Path | str,
    config: Config | None = None,
    splits: Sequence[str] = ("train",),
    *,
    shuffle: bool = True,
    streams: Sequence[str] = (),
) -> Any:
    """Read batches of a store's examples as a `tf.data.Dataset` of dictionaries: `windows`, `targets` and `groups`.

    For Keras, `.map(lambda batch: (batch["windows"], batch["targets"]))`.

    Args:
        store: a complete store.
        config: the task, see `load_examples`; `[train] batch` is the batch's size, and `seed` the one of the order.
        splits: which splits; only examples with a known target are returned.
        shuffle: in another order in each epoch; else in the store's.
        streams: streams of the store; default: those that the config's head reads.

    Raises:
        StoreError: the store is incomplete.
        ConfigError: as `load_examples`, or the store has no such stream.
    """
    import tensorflow as tf

    config = config or Config()
    X, y, _ = load_examples(store, config, splits)
    names, batch = input_streams(X, config, streams), config.train.batch
    types = {name: X.stream(name, X.examples.rows[:1]).dtype for name in names}  # into memory, if all fit
    seed = config.train.seed if shuffle else None
    if X.source.fits_into_memory:
        arrays = tf.nest.map_structure(tf.constant, _arrays(X, y, names))
        X.source.release_frames()
        indices = tf.data.Dataset.range(len(X))
        if seed is not None:
            indices = indices.shuffle(max(1, len(X)), seed=seed, reshuffle_each_iteration=True)
        return indices.batch(batch).map(lambda chosen: _gather(arrays, chosen)).prefetch(2)
    windows = {name: tf.TensorSpec((None, *X.window(name)), types[name]) for name in names}
    signature = {
        "windows": _single(windows),
        "targets": tf.TensorSpec((None, y.shape[1]), tf.float32),
        "groups": tf.TensorSpec((None,), tf.int64),
    }
    epochs = itertools.count()
    dataset = tf.data.Dataset.from_generator(
        lambda: _epoch_batches(X, y, names, batch, seed, next(epochs)), output_signature=signature
    )
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # parts are read ahead already; it took 15 % longer
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-len(X) // batch))).with_options(options)


def _arrays(X: StoreExamples, y: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Examples whose frames are in memory, as arrays that TensorFlow gathers batches from without Python."""
    return {
        "frames": {name: X.source.frames(name) for name in names},
        "rows": np.searchsorted(X.source.rows, X.examples.rows),  # (n, T) of `frames`
        "targets": y.astype(np.float32),
        "groups": X.groups,
    }


def _epoch_batches(
    X: StoreExamples, y: Floats, names: Sequence[str], batch: int, seed: int | None, epoch: int
) -> Iterator[Batch]:
    """Yield an epoch's batches of examples that do not fit into memory; shuffled unless `seed` is None."""
    order: NDArray[np.int64] = np.arange(len(X)) if seed is None else shuffled_order(len(X), seed, epoch)
    targets, groups, reader = y.astype(np.float32), X.groups, ReadAhead(X, order, batch)
    try:
        for i, start in enumerate(range(0, len(X), batch)):
            chosen = order[start : start + batch]
            windows = read_windows(reader.batch(i), names)
            yield {"windows": windows, "targets": targets[chosen], "groups": groups[chosen]}
    finally:
        reader.close()


def _gather(arrays: dict[str, Any], chosen: Any) -> Batch:
    """A batch of some of the examples in `arrays`."""
    import tensorflow as tf

    rows = tf.gather(arrays["rows"], chosen)
    windows = {name: tf.gather(frames, rows) for name, frames in arrays["frames"].items()}
    return {"windows": _single(windows)} | {name: tf.gather(arrays[name], chosen) for name in ("targets", "groups")}


def torch_dataset(
    store: Path | str,
    config: Config | None = None,
    splits: Sequence[str] = ("train",),
    *,
    streams: Sequence[str] = (),
) -> Any:
    """Read a store's examples as a map-style `Dataset` of PyTorch: dictionaries of `windows`, `targets` and `groups`.

    An index gives one example, a list of indices a batch. A `DataLoader` reads batches at once with
    `sampler=BatchSampler(RandomSampler(dataset), size, drop_last=False), batch_size=None`. Frames are kept in memory if
    all fit into `[train] memory_gb`. Worker processes may be forked or spawned.

    Args:
        store, config, splits, streams: as in `tf_dataset`.

    Raises:
        StoreError: the store is incomplete.
        ConfigError: PyTorch is not installed; as `load_examples`; the store has no such stream.
    """
    require_package("torch", "torch", "torch_dataset")
    from stage2_temporal.data.torch_windows import TorchWindows

    config = config or Config()
    X, y, _ = load_examples(store, config, splits)
    return TorchWindows(X, y, input_streams(X, config, streams))


def input_streams(X: StoreExamples, config: Config, streams: Sequence[str] = ()) -> tuple[str, ...]:
    """The streams to read, by default those of the config's head; a ConfigError if there are none."""
    names = tuple(streams) or config.head.input_streams
    if not names:
        known = ", ".join(X.source.store.streams)
        what = f"{config.head.name} reads no stream of the store"
        raise ConfigError(what, expected=f"streams=, one of {known}", hint="streams=[NAME], or another head")
    for name in names:
        X.window(name)  # refuses an unknown one
    return names


def _single(streams: dict[str, Any]) -> Any:
    """The only one of some streams, or all of them."""
    return streams if len(streams) > 1 else next(iter(streams.values()))
