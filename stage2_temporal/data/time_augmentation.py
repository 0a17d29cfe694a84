"""Windows at other times, for training: the scene backwards, a little earlier, or faster, with adjusted targets.

Frames are stored once per sequence, so a window at another time is index arithmetic and needs no extraction.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.config import TrainConfig
from features.errors import ConfigError

# The factor for each target in a reversed window. A car's own_strides speed would become negative, which no label of a
# forward drive is.
REVERSED = {"vx": -1.0, "vy": -1.0}
VELOCITY_TARGETS = ("vx", "vy", "ego_speed")  # n times as large if frames are n times as far apart
POSITION_TARGETS = ("x", "y")  # the same however fast the scene moves


class AugmentedWindows(NamedTuple):
    """Windows made from others."""

    rows: NDArray[np.int64]  # (m, T) rows of the store's frame axis, in the order the head sees them
    origin: NDArray[np.int64]  # (m,) index of the window that each was made from
    factor: NDArray[np.float64]  # (m, K) factors for its targets


def augment_windows(
    rows: NDArray[np.int64],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    columns: tuple[str, ...],
    options: TrainConfig,
) -> AugmentedWindows:
    """Make all windows that `[train] reverse`, `shift` and `strides` ask for, after the windows themselves.

    Windows whose frames are unevenly spaced are only reversed. Where strides differ, because frame rates do, the
    smallest is the one that `strides` are relative to.

    Args:
        rows: (n, T) the windows' rows of the store's frame axis, in time order.
        first, last: (n,) rows of the first and last frame of each window's sequence; no window leaves it.
        columns: names of the K targets; a ConfigError if the effect on one is unknown.
    """
    _check_targets(columns, options)
    steps = np.diff(rows, axis=1)
    even = (steps == steps[:, :1]).all(axis=1)
    own_strides = steps[:, 0] if rows.shape[1] > 1 else np.ones(len(rows), np.int64)
    stride = int(own_strides.min())
    strides = dict.fromkeys((stride, *options.strides)) if rows.shape[1] > 1 else {stride: None}
    parts = [AugmentedWindows(rows, np.arange(len(rows)), np.ones((len(rows), len(columns))))]
    for new_stride, shift in itertools.product(strides, range(options.shift + 1)):
        if (new_stride, shift) == (stride, 0):
            continue
        new = own_strides * new_stride // stride
        ends = rows[:, -1] - shift
        moved = ends[:, None] - new[:, None] * np.arange(rows.shape[1] - 1, -1, -1)
        usable = even & (own_strides * new_stride % stride == 0)
        origin = np.flatnonzero(usable & (moved[:, 0] >= first) & (moved[:, -1] <= last))
        factor = np.array([new_stride / stride if c in VELOCITY_TARGETS else 1.0 for c in columns])
        parts.append(AugmentedWindows(moved[origin], origin, np.tile(factor, (len(origin), 1))))
    if options.reverse:
        signs = np.array([REVERSED[c] for c in columns])
        parts += [AugmentedWindows(moved[:, ::-1], origin, factor * signs) for moved, origin, factor in parts]
    return AugmentedWindows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _check_targets(columns: tuple[str, ...], options: TrainConfig) -> None:
    rules: list[tuple[str, tuple[str, ...], str]] = [
        ("reverse", tuple(REVERSED), "False"),
        ("shift", VELOCITY_TARGETS, "0"),  # they are assumed constant over a clip of a second or two
        ("strides", VELOCITY_TARGETS + POSITION_TARGETS, "(nothing)"),
    ]
    for name, supported, off in rules:
        unsupported = [c for c in columns if c not in supported]
        if getattr(options, name) and unsupported:
            raise ConfigError(
                f"train.{name}: its effect on {', '.join(unsupported)} is unknown",
                expected=f"targets among {', '.join(supported)}",
                got=", ".join(columns),
                hint=f"--train.{name} {off}",
            )
