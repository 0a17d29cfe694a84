"""Windows: which frames a model sees for a label. Index arithmetic, nothing is copied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import ConfigError
from features.sequences import FrameSequence, Label


@dataclass(frozen=True)
class Examples:
    """Windows with their labels, one row an example.

    Attributes:
        rows: (n, T) rows of the store's frame axis, in time order.
        targets: (n, K) target values, NaN unknown.
        split: (n,) `train`, `validation` or `test`.
        sequence: (n,) index into the store's sequences.
        label: (n,) index into that sequence's labels.
        frame: (n,) the frame the label holds for, 0-based within the sequence.
        start: (n,) the window's first frame, 0-based within the sequence.
        position: (n, 2) x (forward), y (right) in metres, NaN unknown.
        box: (n, 4) left, top, right, bottom in full-resolution pixels, NaN unknown.
        columns: names of the K targets.
        dropped: labels whose window does not fit into their sequence.
    """

    rows: NDArray[np.int64]
    targets: NDArray[np.float64]
    split: NDArray[np.str_]
    sequence: NDArray[np.int64]
    label: NDArray[np.int64]
    frame: NDArray[np.int64]
    start: NDArray[np.int64]
    position: NDArray[np.float64]
    box: NDArray[np.float64]
    columns: tuple[str, ...]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Examples:
        """The examples that a mask, a slice or an array of indices chooses."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in chosen.items():
            if isinstance(value, np.ndarray):
                chosen[name] = value[index]
        return Examples(**chosen)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) whether every target has a value."""
        return np.asarray(np.isfinite(self.targets).all(axis=1))


def window_offsets(length: int, stride: int, end: int) -> NDArray[np.int64]:
    """(length,) a window's frames relative to the label's frame; the last one is `end`."""
    return end - stride * np.arange(length - 1, -1, -1, dtype=np.int64)


def target_value(label: Label, column: str) -> float:
    """A label's value for a target column; `x` and `y` are its position. NaN where unknown."""
    if column in ("x", "y") and column not in label.targets:
        return label.position["xy".index(column)] if label.position else math.nan
    return label.targets.get(column, math.nan)


def labels_with_targets(sequence: FrameSequence, columns: tuple[str, ...]) -> list[int]:
    """Which of a sequence's labels are about `columns`: those that know them, else those that name them."""
    values = [[target_value(label, c) for c in columns] for label in sequence.labels]
    known = [i for i, row in enumerate(values) if all(math.isfinite(v) for v in row)]
    return known or [i for i, label in enumerate(sequence.labels) if all(_names(label, c) for c in columns)]


def _names(label: Label, column: str) -> bool:
    """Whether a label is about a column, known or not; a position is any vehicle's."""
    return column in label.targets or (column in ("x", "y") and (label.box is not None or "vx" in label.targets))


def make_examples(
    sequences: Sequence[FrameSequence],
    first: NDArray[np.int64],
    columns: tuple[str, ...],
    *,
    length: int,
    stride: int = 1,
    end: int = 0,
) -> Examples:
    """Every label about `columns` with the window that belongs to it, in the store's order.

    A window that would reach outside its sequence is dropped and counted. A sequence of which no label knows the
    target (a test clip) gives examples with NaN targets, to predict.

    Args:
        sequences: a store's sequences.
        first: (S,) row of each sequence's first frame.
        columns: the target columns.
        length, stride, end: the window.

    Raises:
        ConfigError: no label has the columns, or no window fits.
    """
    relative = window_offsets(length, stride, end)
    kept: list[tuple[int, int, FrameSequence]] = []
    dropped = 0
    for s, sequence in enumerate(sequences):
        for i in labels_with_targets(sequence, columns):
            window = sequence.labels[i].frame + relative
            if window[0] >= 0 and window[-1] < sequence.length:
                kept.append((s, i, sequence))
            else:
                dropped += 1
    if not kept:
        raise _nothing(sequences, columns, dropped, relative)
    labels = [sequence.labels[i] for _, i, sequence in kept]
    frame = np.array([label.frame for label in labels], np.int64)
    owner = np.array([s for s, _, _ in kept], np.int64)
    nan2, nan4 = (math.nan,) * 2, (math.nan,) * 4
    return Examples(
        rows=np.asarray(first, np.int64)[owner][:, None] + frame[:, None] + relative,
        targets=np.array([[target_value(label, c) for c in columns] for label in labels], np.float64),
        split=np.array([sequence.split for _, _, sequence in kept]),
        sequence=owner,
        label=np.array([i for _, i, _ in kept], np.int64),
        frame=frame,
        start=frame + relative[0],
        position=np.array([label.position or nan2 for label in labels], np.float64),
        box=np.array([label.box or nan4 for label in labels], np.float64),
        columns=columns,
        dropped=dropped,
    )


def _nothing(
    sequences: Sequence[FrameSequence], columns: tuple[str, ...], dropped: int, relative: NDArray[np.int64]
) -> ConfigError:
    wanted = ", ".join(columns)
    if not dropped:
        there = sorted({c for s in sequences for label in s.labels for c in label.targets})
        has_position = any(label.position for s in sequences for label in s.labels)
        names = [*there, *(["x", "y"] if has_position else [])]
        return ConfigError(
            f"no label has the target {wanted}",
            expected=f"one of {', '.join(names) or '(the store has no labels)'}",
            got=wanted,
            hint="--data.target COLUMN",
        )
    shortest = min(s.length for s in sequences)
    return ConfigError(
        f"no window fits: all {dropped} labels of {wanted} would need frames outside their sequence",
        expected=f"frames {relative[0]:+d} to {relative[-1]:+d} from the label's frame",
        got=f"sequences from {shortest} frames on",
        hint="--window.length, --window.stride or --window.end",
    )
