"""A store's examples as a data set of TensorFlow or PyTorch, for training loops of your own.

Both give dictionaries with the same three entries:

    windows    (…, T, h, w, c) of maps or (…, T, F) of vectors, in the stored type; with several streams, a dictionary
               of them by name
    targets    (…, K) float32, in their unit
    groups     (…) int64, each example's sequence
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    names, batch, epoch = input_streams(X, config, streams), config.train.batch, -1
    types = {name: X.stream(name, X.examples.rows[:1]).dtype for name in names}  # into memory, if all fit
    specs = {
        "windows": _single({name: tf.TensorSpec((None, *X.window(name)), types[name]) for name in names}),
        "targets": tf.TensorSpec((None, y.shape[1]), tf.float32),
        "groups": tf.TensorSpec((None,), tf.int64),
    }
    in_memory, source_rows = X.source.fits_into_memory, X.source.rows

    def read(examples: StoreExamples) -> Any:
        return np.searchsorted(source_rows, examples.examples.rows) if in_memory else read_windows(examples, names)

    def next_epoch() -> Iterator[Batch]:
        nonlocal epoch
        epoch += 1
        yield from epoch_batches(X, y, read, batch, config.train.seed if shuffle else None, epoch)

    if not in_memory:
        dataset = tf.data.Dataset.from_generator(next_epoch, output_signature=specs)
    else:  # TensorFlow gathers the windows itself, which saves two copies of each
        frames = {name: tf.constant(X.source.windows(name, source_rows)) for name in names}
        X.source.release_frames()
        indices = specs | {"windows": tf.TensorSpec((None, X.examples.rows.shape[1]), tf.int64)}
        dataset = tf.data.Dataset.from_generator(next_epoch, output_signature=indices).map(
            lambda part: part | {"windows": _single({n: tf.gather(v, part["windows"]) for n, v in frames.items()})}
        )
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-len(X) // batch))).prefetch(2)


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


def epoch_batches(
    X: StoreExamples, y: Floats, read: Callable[[StoreExamples], Any], batch: int, seed: int | None, epoch: int
) -> Iterator[Batch]:
    """Yield an epoch's batches, shuffled unless `seed` is None; reads ahead where frames do not fit into memory.

    `read` makes the windows of a batch's examples.
    """
    order: NDArray[np.int64] = np.arange(len(X)) if seed is None else shuffled_order(len(X), seed, epoch)
    targets, groups = y.astype(np.float32), X.groups
    reader = None if X.source.fits_into_memory else ReadAhead(X, order, batch)
    try:
        for i in range(-(-len(X) // batch)):
            chosen = order[i * batch : (i + 1) * batch]
            examples = X[chosen] if reader is None else reader.batch(i)
            yield {"windows": read(examples), "targets": targets[chosen], "groups": groups[chosen]}
    finally:
        if reader is not None:
            reader.close()
