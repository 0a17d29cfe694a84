"""Inputs: examples together with the store their frames lie in; the X of every head.

    X, y, groups = inputs("stores/sample.h5", config)
    GridSearchCV(Ridge(), {"alpha": [1, 10]}, cv=GroupKFold(5)).fit(X, y, groups=groups)

Nothing is read before a head asks for it, and slices share what is held in memory. A pickled copy opens the store by
its path again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.config import Config, TrainConfig
from features.errors import ConfigError
from features.sequences import Camera
from features.store import Store, StreamInfo, TopRecord
from features.tracks import Track
from features.windows import Examples
from stage2_temporal.data.batches import FrameReader
from stage2_temporal.data.task import read_task
from stage2_temporal.data.time_augmentation import augment_windows


class StoreSource:
    """A store by its path: opened when first read, with the frames of some windows held where they fit.

    Args:
        rows: every row that windows will ask for.
        memory_gb: what all streams together may hold, in 10⁹ bytes.
    """

    def __init__(self, path: Path | str, rows: NDArray[np.int64], memory_gb: float = 4.0) -> None:
        self.path, self.rows, self.memory_gb = Path(path).absolute(), np.unique(rows), memory_gb
        self.forget()

    _store: Store | None
    _opened: tuple[int, int]
    _readers: dict[str, FrameReader]
    _tracks: dict[tuple[int, int], Track | None]

    @property
    def store(self) -> Store:
        """The open store."""
        if self._store is None:
            found = self.path.stat()
            self._store, self._opened = Store(self.path), (found.st_dev, found.st_ino)
        return self._store

    def renew(self) -> bool:
        """Open the file anew where another one has taken its place since; whether it has."""
        found = self.path.stat()
        if (found.st_dev, found.st_ino) == self._opened:
            return False
        self.forget()
        return True

    def reader(self, stream: str) -> FrameReader:
        """What reads a stream's windows."""
        if stream not in self._readers:
            held = sum(r.held_bytes for r in self._readers.values())
            self._readers[stream] = FrameReader(self.store, self.rows, self.memory_gb - held / 1e9, stream)
        return self._readers[stream]

    def cover(self, rows: NDArray[np.int64]) -> None:
        """Take more rows in among those that windows will ask for."""
        if not np.isin(rows, self.rows).all():
            self.rows, self._readers = np.union1d(self.rows, rows), {}

    def track(self, sequence: int, label: int) -> Track | None:
        """The path of the vehicle a label is about."""
        if (sequence, label) not in self._tracks:
            self._tracks[sequence, label] = self.store.track(sequence, label)
        return self._tracks[sequence, label]

    def forget(self) -> None:
        """Let go of the file and of all that is held; the next read opens what then lies at the path."""
        self._store, self._opened, self._readers, self._tracks = None, (-1, -1), {}, {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "rows": self.rows, "memory_gb": self.memory_gb}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()


class HeadInputs(Protocol):
    """What heads see of their X: `StoreExamples`, or `ArrayExamples` around a plain array."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> HeadInputs:
        """The examples that a mask, a slice or an array of indices chooses."""

    def window(self, stream: str) -> tuple[int, ...]:
        """Shape of one example of a stream: T and the shape of an entry."""

    def stream(self, name: str) -> NDArray[Any]:
        """(n, T, …) in the stored type."""

    def top(self) -> TopRecord | None:
        """The unfrozen layers above the stream `appearance`."""

    @property
    def groups(self) -> NDArray[np.int64]:
        """(n,) the sequence of each example: none of them may stand on both sides of a split."""


class StoreExamples:
    """Examples and where their streams come from.

    Indexing by an array, a mask or a slice gives Inputs again, as scikit-learn's splitters want it.

    Args:
        source: the store.
        examples: what is asked for; their rows are among the source's.
    """

    def __init__(self, source: StoreSource, examples: Examples) -> None:
        self.source, self.examples = source, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> StoreExamples:
        if isinstance(index, tuple):  # scikit-learn asks for X[indices, ...]
            index = index[0]
        if isinstance(index, int | np.integer):
            raise TypeError("one example is no Inputs; ask for a slice, a mask or an array of indices")
        return StoreExamples(self.source, self.examples[index])

    def __repr__(self) -> str:
        return f"Inputs({len(self)} windows of {self.examples.rows.shape[1]} frames in {self.source.path})"

    @property
    def shape(self) -> tuple[int]:
        """(n,): there is no feature axis."""
        return (len(self),)

    @property
    def groups(self) -> NDArray[np.int64]:
        """(n,) index of each example's sequence."""
        return self.examples.sequence

    @property
    def fps(self) -> Floats:
        """(n,) frames a second of each example's sequence."""
        return np.array([self.source.store.sequences[s].fps for s in self.groups.tolist()])

    @property
    def times(self) -> Floats:
        """(n, T) seconds from the window's last frame, at most 0 (a window that runs backwards: at least 0)."""
        rows = self.examples.rows
        return (rows - rows[:, -1:]) / self.fps[:, None]

    @property
    def cameras(self) -> list[Camera | None]:
        """Each example's camera, where its sequence knows one."""
        return [self.source.store.sequences[s].camera for s in self.groups.tolist()]

    def info(self, stream: str) -> StreamInfo:
        """A stream's shape, type and origin.

        Raises:
            ConfigError: the store has no such stream.
        """
        streams = self.source.store.streams
        if stream not in streams:
            raise ConfigError(
                f"{self.source.path}: no stream {stream!r}",
                expected=f"one of {', '.join(streams)}",
                got=stream,
                hint="--head.streams NAME …, or extract it into the store",
            )
        return streams[stream]

    def window(self, stream: str) -> tuple[int, ...]:
        """Shape of one example of a stream: T and the shape of an entry."""
        return (self.examples.rows.shape[1], *self.info(stream).shape)

    def stream(self, name: str) -> NDArray[Any]:
        """(n, T, …) in the stored type.

        Raises:
            StoreError: a frame that cannot be read.
        """
        return self.read(name, self.examples.rows)

    def read(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Entries of a stream for rows (n, m) that occur in the source's windows: (n, m, …) in the stored type."""
        self.info(name)
        return self.source.reader(name).windows(rows)

    def retimed(self, options: TrainConfig) -> tuple[StoreExamples, NDArray[np.int64], Floats]:
        """These windows and all that `[train] reverse`, `shift` and `strides` make of them.

        Returns:
            Inputs; which example each was made of; what its targets (·, K) are multiplied by.

        Raises:
            ConfigError: a target of which it is not known what then becomes of it.
        """
        found, store = self.examples, self.source.store
        first = store.first[found.sequence]
        last = first + np.array([store.sequences[s].length for s in found.sequence.tolist()], np.int64) - 1
        made = augment_windows(found.rows, first, last, found.columns, options)
        self.source.cover(made.rows)
        examples = replace(found[made.of], rows=made.rows, start=made.rows[:, 0] - first[made.of])
        return StoreExamples(self.source, examples), made.of, made.factor

    def top(self) -> TopRecord | None:
        """The unfrozen layers above the stream `appearance`."""
        return self.source.store.top()

    def tracks(self) -> tuple[Floats, Floats]:
        """The annotated vehicle's box in each frame of the window.

        Returns:
            boxes (n, T, 4) left, top, right, bottom in full-resolution px, NaN where lost or never tracked;
            confidence (n, T), 0 where lost.
        """
        found = self.examples
        boxes = np.full((*found.rows.shape, 4), np.nan)
        confidence = np.zeros(found.rows.shape)
        frames = found.rows - self.source.store.first[found.sequence][:, None]
        for i, (sequence, label) in enumerate(zip(found.sequence.tolist(), found.label.tolist(), strict=True)):
            track = self.source.track(sequence, label)
            if track is not None:
                boxes[i], confidence[i] = track.boxes[frames[i]], track.confidence[frames[i]]
        return boxes, confidence


class ArrayExamples:
    """A plain array as heads see it: (n, F) as one frame of vectors, (n, T, F), or maps (n, T, h, w, c)."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values[:, None] if values.ndim == 2 else values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> ArrayExamples:
        return ArrayExamples(self.values[index])

    @property
    def groups(self) -> NDArray[np.int64]:
        """Each example is a sequence of its own."""
        return np.arange(len(self))

    def window(self, stream: str) -> tuple[int, ...]:
        """Shape of one example, whatever the stream is called."""
        return tuple(self.values.shape[1:])

    def stream(self, name: str) -> NDArray[Any]:
        """(n, T, …)."""
        return self.values

    def top(self) -> TopRecord | None:
        """None: an array has no backbone."""
        return None


def as_head_inputs(X: Any) -> HeadInputs:
    """X as heads see it."""
    if isinstance(X, StoreExamples | ArrayExamples):
        return X
    return ArrayExamples(np.asarray(X))


def as_maps(values: Any) -> Any:
    """(batch, T, h, w, c), a tensor's or an array's vectors (batch, T, F) as maps of one cell."""
    if len(values.shape) == 5:
        return values
    _, time, features = values.shape
    return keras.ops.reshape(values, (-1, time, 1, 1, features))


def load_examples(
    path: Path | str, config: Config | None = None, splits: Sequence[str] = ("train",)
) -> tuple[StoreExamples, Floats, NDArray[np.int64]]:
    """X, y and groups of a store's examples, for scikit-learn.

    Args:
        path: the store.
        config: what to predict from which windows (`[data] target`, `[window]`, `[train] memory_gb`); default: the
            defaults.
        splits: which of the store's splits; only examples whose target is known.

    Returns:
        X, y (n, K) in the target's unit, and each example's sequence, so that a group-wise split never puts windows
        of one sequence on both sides.

    Raises:
        StoreError, ConfigError: see `read_task`.
    """
    config = config or Config()
    with Store(path) as store:
        task = read_task(config, store)
    found = task.examples
    chosen = found[np.isin(task.splits, splits) & found.known]
    X = StoreExamples(StoreSource(path, found.rows, config.train.memory_gb), chosen)
    return X, chosen.targets, X.groups
