"""Windows at other times: the same scene backwards, a little earlier, or quicker, with the targets that then hold.

Frames are stored once, so that a window at another time is index arithmetic and costs no extraction.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.config import TrainConfig
from features.errors import ConfigError

# what each target is multiplied by in a window that runs backwards. A car's own speed would have to become negative,
# which no label of a forward drive ever is
BACKWARDS = {"vx": -1.0, "vy": -1.0}
SPEEDS = ("vx", "vy", "ego_speed")  # n times as large where frames lie n times as far apart
STEADY = ("vx", "vy", "ego_speed")  # taken as the same all through a clip of a second or two
WHERE = ("x", "y")  # as they are, however quickly the scene came there


@dataclass(frozen=True)
class AugmentedWindows:
    """Windows made of others.

    Attributes:
        rows: (m, T) rows of the store's frame axis, in the order the head sees them.
        of: (m,) which example each was made of.
        factor: (m, K) what its targets are multiplied by.
    """

    rows: NDArray[np.int64]
    of: NDArray[np.int64]
    factor: NDArray[np.float64]


def augment_windows(
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    columns: tuple[str, ...],
    options: TrainConfig,
) -> AugmentedWindows:
    """All that `[train] reverse`, `shift` and `strides` make of some windows, themselves first.

    Args:
        rows: (n, T) the windows, in time order, of one stride.
        first, last: (n,) rows of each window's sequence's first and last frame: no window leaves it.
        columns: the K targets.
        options: the section [train].

    Raises:
        ConfigError: a target of which it is not known what then becomes of it.
    """
    stride = int(rows[0, 1] - rows[0, 0]) if rows.shape[1] > 1 else 1
    _check(columns, options)
    strides = dict.fromkeys((stride, *options.strides)) if rows.shape[1] > 1 else {stride: None}
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    for wide, shift in itertools.product(strides, range(options.shift + 1)):
        ends = rows[:, -1] - shift
        moved = ends[:, None] - wide * np.arange(rows.shape[1] - 1, -1, -1)
        of = np.flatnonzero((moved[:, 0] >= first) & (moved[:, -1] <= last))
        factor = np.array([wide / stride if c in SPEEDS else 1.0 for c in columns])
        parts.append((moved[of], of, np.tile(factor, (len(of), 1))))
    if options.reverse:
        turned = np.array([BACKWARDS[c] for c in columns])
        parts += [(moved[:, ::-1], of, factor * turned) for moved, of, factor in parts]
    together = (np.concatenate(column) for column in zip(*parts, strict=True))
    return AugmentedWindows(*together)


def augments_time(options: TrainConfig) -> bool:
    """Whether the settings ask for any of it."""
    return bool(options.reverse or options.shift or options.strides)


def _check(columns: tuple[str, ...], options: TrainConfig) -> None:
    rules: list[tuple[bool, str, tuple[str, ...]]] = [
        (options.reverse, "reverse", tuple(BACKWARDS)),
        (options.shift > 0, "shift", STEADY),
        (bool(options.strides), "strides", SPEEDS + WHERE),
    ]
    for asked, name, known in rules:
        unknown = [c for c in columns if c not in known]
        if asked and unknown:
            off = {"reverse": "False", "shift": "0"}.get(name, "(nothing)")
            raise ConfigError(
                f"train.{name}: what becomes of {', '.join(unknown)} then is not known",
                expected=f"targets among {', '.join(known)}",
                got=", ".join(columns),
                hint=f"--train.{name} {off}",
            )
