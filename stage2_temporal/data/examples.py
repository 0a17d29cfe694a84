"""Examples: what heads take as X. Windows of a store's frames, read when a head needs them, or a plain array.

X, y, groups = load_examples("stores/sample.h5", config)
GridSearchCV(Ridge(), {"alpha": [1, 10]}, cv=GroupKFold(5)).fit(X, y, groups=groups)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.aligned import take_aligned
from features._common.types import Floats
from features._common.user_path import expand_user
from features.config import Config, TrainConfig
from features.errors import ConfigError, StoreError
from features.normalised_flow import normalise_flow
from features.sequences import SPLITS
from features.store import Store
from features.store_tables import StreamInfo, TopRecord
from features.streams import MOTION, SAME_INTERVAL, scale_flow
from features.strict_model import did_you_mean
from features.tracks import Track, tracks_in_windows
from features.windows import Examples
from stage2_temporal.data.task import read_task
from stage2_temporal.data.time_augmentation import augment_windows


class StoreSource:
    """A store that is opened at the first read, and frames of it in memory where they fit; pickled by its path.

    Args:
        path, rows: the store, and every row of its frame axis that windows will need, in any shape.
        memory_gb: how much all streams together may take in memory, in 10⁹ bytes.
        frame_interval: seconds between frames to which optical flow is scaled; None: it is read as stored.
        normalise_flow: read the stream `motion` as `normalised_flow` makes it.
        opened: the store that `rows` are of, which is read if one with other frames has replaced it at the path.
    """

    _store: Store | None
    _file_id: tuple[int, int]  # device and inode of the open file
    _frames: dict[str, NDArray[Any]]  # all rows of the streams that are in memory
    _streamed: dict[str, int]  # streams that were read and are not in memory → bytes per frame
    _tracks: dict[tuple[int, int], Track | None]
    _whole: StoreSource | None = None  # the source that this one is a part of

    def __init__(
        self,
        path: Path | str,
        rows: NDArray[np.int64],
        memory_gb: float = 4.0,
        frame_interval: float | None = None,
        normalise_flow: bool = False,
        opened: Store | None = None,
    ) -> None:
        self.path, self.rows, self.memory_gb = Path(path).absolute(), np.unique(rows), memory_gb
        self.frame_interval, self.normalise_flow, self._opened = frame_interval, normalise_flow, opened
        self._frames_digest = "" if opened is None else opened.frames_digest
        self.close()

    @property
    def store(self) -> Store:
        """The open store."""
        if self._store is None:
            store, self._file_id = Store(self.path), self._id_at_path()  # it may have got streams since
            if self._frames_digest not in ("", store.frames_digest):
                store.close()
                if self._opened is None:
                    what = f"{self.path}: another store, with other frames, has replaced it meanwhile"
                    raise StoreError(what, hint="run the same command again")
                store = self._opened
            self._store, self._opened = store, None
        return self._store

    def _id_at_path(self) -> tuple[int, int]:
        stat = self.path.stat()
        return stat.st_dev, stat.st_ino

    def close(self) -> None:
        """Forget the file and all frames; the next read opens the path again."""
        self._store, self._file_id, self._frames, self._streamed, self._tracks = None, (-1, -1), {}, {}, {}

    def reopen_if_replaced(self) -> bool:
        """Close the file if another one lies at its path by now; return whether it does."""
        replaced = self._id_at_path() != self._file_id
        if replaced:
            self._opened = self._store
            self.close()
        return replaced

    def reopened(self) -> StoreSource:
        """The same source with a file of its own, for a forked process; frames in memory are shared."""
        source = StoreSource(self.path, self.rows, self.memory_gb, self.frame_interval, self.normalise_flow)
        source._frames, source._frames_digest = dict(self._frames), self._frames_digest
        return source

    def release_frames(self) -> None:
        """Forget the frames in memory; the next read fetches them again."""
        self._frames = {}

    def windows(self, stream: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read windows of a stream, rows (n, T) → (n, T, …) in the stored type; a StoreError if a frame is unreadable.

        If all `rows` of the stream fit into memory, they are read once and kept; else each call reads what it needs.
        """
        if self._whole is not None and stream in self._whole._frames:
            return self._whole.windows(stream, rows)
        info = self.store.streams[stream]
        entry = math.prod(info.shape) * np.dtype(info.dtype).itemsize
        if stream not in self._frames and len(self.rows) * entry <= self._free_bytes:
            self._frames[stream] = self._read(stream, self.rows)
        if stream in self._frames:
            return take_aligned(self._frames[stream], np.searchsorted(self.rows, rows))
        self._streamed[stream] = entry
        unique, inverse = np.unique(rows, return_inverse=True)
        return take_aligned(self._read(stream, unique), inverse.reshape(rows.shape))

    def frames(self, stream: str) -> NDArray[Any]:
        """All `rows` of a stream, which fit into memory: (rows, …), not to be changed."""
        if stream not in self._frames:
            return self.windows(stream, self.rows)
        return self._frames[stream]

    @property
    def _free_bytes(self) -> float:
        """What is left of the memory."""
        return self.memory_gb * 1e9 - sum(frames.nbytes for frames in self._frames.values())

    def part(self, rows: NDArray[np.int64]) -> StoreSource:
        """A source of some rows with the streams read so far in memory; it shares what this one holds."""
        part = StoreSource(self.path, rows, math.inf, self.frame_interval)
        part._store, part._file_id, part._tracks, part._whole = self.store, self._file_id, self._tracks, self
        part._frames = {stream: self._read(stream, part.rows) for stream in self._streamed}
        return part

    @property
    def fits_into_memory(self) -> bool:
        """Whether all streams that were read so far are in memory."""
        return not self._streamed

    @property
    def rows_per_part(self) -> int:
        """How many rows a part may have so that two parts fit into memory, with the streams read so far."""
        return int(self._free_bytes / 2 / max(1, sum(self._streamed.values())))

    def _read(self, stream: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        values = self.store.read(stream, rows)
        if stream != MOTION:
            return values
        values = scale_flow(values, self.store.frame_intervals[rows], self.frame_interval)
        if not self.normalise_flow:
            return values
        of = np.searchsorted(self.store.first, rows, side="right") - 1
        values = values.copy()
        for i in np.unique(of).tolist():
            values[of == i] = normalise_flow(values[of == i], self.store.sequences[i])
        return values

    def reads_as_stored(self, stream: str) -> bool:
        """Whether entries of a stream are read as they are in the store."""
        if stream != MOTION:
            return True
        ratios = 1.0 if self.frame_interval is None else self.store.frame_intervals[self.rows] / self.frame_interval
        return not self.normalise_flow and bool((np.abs(ratios - 1) <= SAME_INTERVAL).all())

    def add_rows(self, rows: NDArray[np.int64]) -> None:
        """Add rows that windows will need."""
        if not np.isin(rows, self.rows).all():
            self.rows, self._frames, self._streamed = np.union1d(self.rows, rows), {}, {}

    def track(self, sequence: int, label: int) -> Track | None:
        """Return the track of the vehicle that a label describes; None if there is none."""
        if (sequence, label) not in self._tracks:
            self._tracks[sequence, label] = self.store.track(sequence, label)
        return self._tracks[sequence, label]

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = self.path, self.rows, self.memory_gb, self.frame_interval, self.normalise_flow
        return StoreSource, arguments, {"_frames_digest": self._frames_digest}


class StoreExamples:
    """Windows of a store's frames, each with a label: the X that heads take in `fit` and `predict`.

    It is indexed like an array of n examples. Features are read only when a head asks for them; slices share frames.

    >>> X, y, groups = load_examples("tests/data/format1.h5", splits=("train", "validation"))
    >>> X
    StoreExamples(3 windows of 8 frames in format1.h5)
    >>> X[groups != 1].window("appearance")  # frames, height, width and channels of one example
    (8, 3, 5, 7)
    >>> X[:2].stream("appearance").shape
    (2, 8, 3, 5, 7)
    """

    def __init__(self, source: StoreSource, examples: Examples) -> None:
        self.source, self.examples = source, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> StoreExamples:
        if isinstance(index, tuple):  # scikit-learn asks for X[indices, ...]
            index = index[0]
        if isinstance(index, int | np.integer):
            raise TypeError(
                f"one index selects no examples. Try: X[{index}:{index + 1}], a mask or an array of indices"
            )
        return StoreExamples(self.source, self.examples[index])

    def __repr__(self) -> str:
        return f"StoreExamples({len(self)} windows of {self.examples.rows.shape[1]} frames in {self.source.path.name})"

    @property
    def shape(self) -> tuple[int]:
        """(n,): there is no feature axis."""
        return (len(self),)

    @property
    def groups(self) -> NDArray[np.int64]:
        """(n,) index of each example's sequence."""
        return self.examples.sequence

    @property
    def times(self) -> Floats:
        """(n, T) seconds of each frame from the window's last one: at most 0, or at least 0 in a reversed window."""
        times = self.source.store.frame_times[self.examples.rows]
        return np.asarray(times - times[:, -1:])

    def _info(self, stream: str) -> StreamInfo:
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
        """Return the shape of one example of a stream: (T, h, w, c) of maps, (T, F) of vectors."""
        return (self.examples.rows.shape[1], *self._info(stream).shape)

    def stream(self, name: str, rows: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Read a stream's windows (n, T, …) in the stored type, or other `rows` (n, m) that are among the source's.

        Raises:
            ConfigError: the store has no such stream.
            StoreError: a frame cannot be read.
        """
        self._info(name)
        return self.source.windows(name, self.examples.rows if rows is None else rows)

    def augmented(self, options: TrainConfig) -> tuple[StoreExamples, NDArray[np.int64], Floats]:
        """Add what `[train] reverse`, `shift` and `strides` make of these windows.

        Returns m examples, (m,) the index of the window that each was made from, and (m, K) factors for its targets; a
        ConfigError if the effect on a target is unknown.
        """
        examples, store = self.examples, self.source.store
        first = store.first[examples.sequence]
        last = first + np.array([store.sequences[s].length for s in examples.sequence.tolist()], np.int64) - 1
        windows = augment_windows(examples.rows, first, last, examples.columns, options)
        self.source.add_rows(windows.rows)
        start = windows.rows[:, 0] - first[windows.origin]
        examples = replace(examples[windows.origin], rows=windows.rows, start=start)
        return StoreExamples(self.source, examples), windows.origin, windows.factor

    def in_memory(self) -> StoreExamples:
        """The same examples with their frames in memory, in the streams that were read of the source so far."""
        return StoreExamples(self.source.part(self.examples.rows), self.examples)

    def top(self) -> TopRecord | None:
        """Return the unfrozen layers above the stream `appearance`; None if there are none."""
        return self.source.store.top()

    def tracks(self) -> tuple[Floats, Floats]:
        """Return boxes (n, T, 4) of the labels' vehicles: left, top, right, bottom in full-size px, NaN where lost.

        And their confidence (n, T), 0 to 1, 0 where lost.
        """
        examples = self.examples
        frames = examples.rows - self.source.store.first[examples.sequence][:, None]
        return tracks_in_windows(map(self.source.track, examples.sequence.tolist(), examples.label.tolist()), frames)


class ArrayExamples:
    """A plain array as the X of a head: maps (n, T, h, w, c), vectors (n, T, F), or one vector per example (n, F).

    Each example counts as a sequence, and every stream is the array.

    >>> ArrayExamples(np.zeros((20, 1280))).window("appearance")
    (1, 1280)
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values[:, None] if values.ndim == 2 else values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> ArrayExamples:
        return ArrayExamples(self.values[index])

    @property
    def groups(self) -> NDArray[np.int64]:
        return np.arange(len(self))

    def window(self, stream: str) -> tuple[int, ...]:
        return tuple(self.values.shape[1:])

    def stream(self, name: str) -> NDArray[Any]:
        return self.values

    def top(self) -> TopRecord | None:
        return None


HeadInputs = StoreExamples | ArrayExamples  # what heads take as X


def as_head_inputs(X: Any) -> HeadInputs:
    """Wrap X in `ArrayExamples` if it is an array."""
    return X if isinstance(X, HeadInputs) else ArrayExamples(np.asarray(X))


def read_windows(X: StoreExamples, names: Sequence[str]) -> Any:
    """Read the windows (n, T, …) of a stream, or those of several in a dictionary."""
    windows = {name: X.stream(name) for name in names}
    return windows if len(names) > 1 else windows[names[0]]


def load_examples(
    store: Path | str, config: Config | None = None, splits: Sequence[str] = ("train",)
) -> tuple[StoreExamples, Floats, NDArray[np.int64]]:
    """Load the examples of a store for scikit-learn: X, y and groups.

    >>> X, y, groups = load_examples("tests/data/format1.h5", splits=("train", "validation"))
    >>> y.tolist(), groups.tolist()
    ([[3.0], [9.0], [12.0]], [1, 3, 4])

    Args:
        store: a complete store.
        config: `[data] target`, `[window]`, and how to split and how much memory to use (`[train]`).
        splits: which splits; only examples with a known target are returned.

    Returns:
        X: n examples, whose features are read when a head asks for them.
        y: (n, K) targets in their unit, m/s for velocities.
        groups: (n,) each example's sequence, for group-wise cross-validation: no windows of one sequence on both sides.

    Raises:
        StoreError: the store is incomplete.
        ConfigError: no such split, no label with the target, no window that fits, or no example to train on.
    """
    config, path = config or Config(), expand_user(store)
    opened = Store(path)  # it stays open for the source
    task = read_task(config, opened)
    known = dict.fromkeys([*SPLITS, *task.splits.tolist()])
    for split in np.setdiff1d(splits, list(known)):
        what = f"{path}: no such split{did_you_mean(split, known)}"
        raise ConfigError(what, expected=f"one of {', '.join(known)}", got=split)
    selected = task.examples[np.isin(task.splits, splits) & task.examples.known]
    normalised = config.head.normalises_flow
    memory, rows = config.train.memory_gb, task.examples.rows
    source = StoreSource(path, rows, memory, task.frame_interval, normalised, opened)
    X = StoreExamples(source, selected)
    return X, selected.targets, X.groups
