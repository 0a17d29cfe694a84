"""Windows: the frames a model sees for each label, as index arithmetic; no features are copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from features.streams import NAMED_TARGETS
from features.strict_model import did_you_mean

MISPLACED = 0.1  # intervals: largest distance of a window's frame from the time at which it should have been taken


@dataclass(frozen=True)
class Examples:
    """Windows with their labels, one row per example."""

    rows: NDArray[np.int64]  # (n, T) rows of the store's frame axis, in time order
    targets: Floats  # (n, K) target values, NaN if unknown
    split: NDArray[np.str_]  # (n,) `train`, `validation` or `test`
    sequence: NDArray[np.int64]  # (n,) index into the store's sequences
    label: NDArray[np.int64]  # (n,) index into that sequence's labels
    frame: NDArray[np.int64]  # (n,) the frame the label describes, 0-based within the sequence
    start: NDArray[np.int64]  # (n,) the window's first frame, 0-based within the sequence
    position: Floats  # (n, 2) x (forward), y (right) in m, NaN if unknown
    box: Floats  # (n, 4) left, top, right, bottom in full-resolution px, NaN if unknown
    columns: tuple[str, ...]  # names of the K targets
    dropped: int = 0  # labels left out because their window does not fit into the sequence

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Examples:
        """Select examples by a mask, a slice or an array of indices."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Examples(**{name: v[index] if isinstance(v, np.ndarray) else v for name, v in values.items()})

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) whether all targets of an example are known."""
        return np.asarray(np.isfinite(self.targets).all(axis=1))


def window_offsets(length: int, stride: int, end: int) -> NDArray[np.int64]:
    """Return the window's frames relative to the label's, (length,), `stride` apart; the last one is `end`.
    >>> window_offsets(length=4, stride=2, end=0).tolist()
    [-6, -4, -2, 0]
    """
    return end - stride * np.arange(length - 1, -1, -1, dtype=np.int64)


class WindowFrames(NamedTuple):
    """The frames of windows, counted from 0 in their sequence."""

    rows: NDArray[np.int64]  # (n, T) in time order
    fits: NDArray[np.bool_]  # (n,) whether the window lies within the sequence
    misplaced: NDArray[np.bool_]  # (n,) whether frames are not where they should be


def window_frames(
    sequence: FrameSequence,
    last: NDArray[np.int64],
    *,
    length: int,
    stride: int = 1,
    interval: float | None = None,
    slowest: float | None = None,
) -> WindowFrames:
    """Find the frames of the windows that end at frames `last` (n,).

    Args:
        length: frames per window.
        stride: take every stride-th frame.
        interval: take the frames nearest to times this many seconds apart instead.
        slowest: for heads that take frames at any rate: the longest time in seconds between neighbouring frames of the
            sequence. None: each frame must be within `MISPLACED` intervals of where it should be, which it is not
            where frames are missing.
    """
    steps = np.arange(length - 1, -1, -1)
    inside = (last >= 0) & (last < sequence.length)
    if interval is None and sequence.times is None:
        rows = last[:, None] - stride * steps
        return WindowFrames(rows, inside & (rows[:, 0] >= 0), np.zeros(len(last), bool))
    times, frame_intervals = sequence.frame_times, sequence.frame_intervals
    interval = interval or stride * float(np.median(frame_intervals))
    ideal_times: Floats = times[np.clip(last, 0, sequence.length - 1), None] - interval * steps
    middles = (times[1:] + times[:-1]) / 2
    rows = np.searchsorted(middles, ideal_times)  # the nearest frame
    fits = inside & (ideal_times[:, 0] >= times[0] - MISPLACED * interval)
    if slowest is not None:
        return WindowFrames(rows, fits, np.asarray((frame_intervals[rows] > slowest).any(axis=1)))
    # rounded timestamps and rates must not decide
    misplaced = np.abs(times[rows] - ideal_times).max(axis=1) > (MISPLACED + 1e-6) * interval
    return WindowFrames(rows, fits, np.asarray(misplaced))


def slowest_interval(frame_interval: float | None) -> float:
    """The longest time between frames at which optical flow is as reliable as in training at `frame_interval` s."""
    return math.inf if frame_interval is None else (1 + MISPLACED) * frame_interval


def target_value(label: Label, column: str) -> float:
    """Return a label's value for a target column, NaN if unknown; `x` and `y` are its position."""
    if column in ("x", "y") and column not in label.targets:
        return label.position["xy".index(column)] if label.position else math.nan
    return label.targets.get(column, math.nan)


def labels_with_targets(sequence: FrameSequence, columns: tuple[str, ...]) -> list[int]:
    """Return the indices of labels with values for all `columns`; if there are none, of those that have the columns."""

    def has(label: Label, column: str) -> bool:  # even if its value is unknown; every vehicle has a position
        return column in label.targets or (column in ("x", "y") and (label.box is not None or "vx" in label.targets))

    labels = list(enumerate(sequence.labels))
    known = [i for i, label in labels if all(math.isfinite(target_value(label, c)) for c in columns)]
    return known or [i for i, label in labels if all(has(label, c) for c in columns)]


def make_examples(
    sequences: Sequence[FrameSequence],
    first: NDArray[np.int64],
    columns: tuple[str, ...],
    *,
    length: int,
    stride: int = 1,
    end: int = 0,
    interval: float | None = None,
    slowest: float | None = None,
) -> Examples:
    """Pair every label that has `columns` with its window, in the store's order; a ConfigError if there is none.

    Windows that reach outside their sequence, or over a gap in it, are dropped and counted. If no label of a sequence
    knows the target (as in a test clip), its examples have NaN targets, for prediction.

    Args:
        first: (S,) the store row of each sequence's first frame.
        length, stride, interval, slowest: see `window_frames`.
        end: a window's last frame relative to the label's.

    Raises:
        ConfigError: there is no example, or none in a sequence because of its frame rate.
    """
    pairs, windows = [], []
    dropped = 0
    for s, sequence in enumerate(sequences):
        labels = labels_with_targets(sequence, columns)
        last = np.array([sequence.labels[i].frame for i in labels], np.int64) + end
        rows, fits, misplaced = window_frames(
            sequence, last, length=length, stride=stride, interval=interval, slowest=slowest
        )
        if interval is not None and fits.any() and misplaced[fits].all():
            raise other_rate_error(sequence.id, sequence, interval, slowest, "--window.interval with another value")
        usable = fits & ~misplaced
        dropped += int((~usable).sum())
        pairs += [(s, labels[i]) for i in np.flatnonzero(usable)]
        windows.append(rows[usable] + first[s])
    if not pairs:
        raise _no_examples_error(sequences, columns, dropped, window_offsets(length, stride, end))
    chosen = [sequences[s].labels[i] for s, i in pairs]
    sequence_index, label_index = np.array(pairs, np.int64).T
    all_rows = np.concatenate(windows)
    return Examples(
        rows=all_rows,
        targets=np.array([[target_value(label, c) for c in columns] for label in chosen], np.float64),
        split=np.array([sequences[s].split for s, _ in pairs]),
        sequence=sequence_index,
        label=label_index,
        frame=np.array([label.frame for label in chosen], np.int64),
        start=all_rows[:, 0] - np.asarray(first, np.int64)[sequence_index],
        position=np.array([label.position or (math.nan,) * 2 for label in chosen], np.float64),
        box=np.array([label.box or (math.nan,) * 4 for label in chosen], np.float64),
        columns=columns,
        dropped=dropped,
    )


def other_rate_error(
    name: object, sequence: FrameSequence, interval: float, slowest: float | None, hint: str
) -> ConfigError:
    """The error of a sequence without a single window, because of its frame rate; see `window_frames`."""
    if slowest is None:
        what = f"{name}: no frames {interval:.3g} s apart, as in training"
        expected = f"{1 / interval:.4g} frames per second, or a multiple of it"
    else:
        what = f"{name}: its frames are further apart than those of the training, so that optical flow may fail"
        expected = f"at least {(1 + MISPLACED) / slowest:.4g} frames per second"
    got = f"{sequence.fps:.4g} frames per second"
    return ConfigError(what, expected=expected, got=got, hint=f"footage of this rate, or {hint}")


def _no_examples_error(
    sequences: Sequence[FrameSequence], columns: tuple[str, ...], dropped: int, offsets: NDArray[np.int64]
) -> ConfigError:
    target = ", ".join(columns)
    if dropped:
        what = f"no window fits: for all {dropped} labels with {target} it reaches outside the sequence"
        expected = f"frames {offsets[0]:+d} to {offsets[-1]:+d} relative to the label's frame"
        got = f"sequences of {min(s.length for s in sequences)} frames and more"
        hint = "a smaller --window.length or --window.stride, or another --window.end"
        return ConfigError(what, expected=expected, got=got, hint=hint)
    names = sorted({c for s in sequences for label in s.labels for c in label.targets})
    if any(label.position for s in sequences for label in s.labels):
        names += ["x", "y"]
    names += [name for name, parts in NAMED_TARGETS.items() if set(parts) <= set(names)]
    what = f"no label has the target {target}{did_you_mean(target, names)}"
    expected = f"one of {', '.join(names) or '(the store has no labels)'}"
    return ConfigError(what, expected=expected, got=target, hint="--data.target COLUMN")
