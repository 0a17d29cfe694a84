"""Which examples are trained on, which choose the epoch, and which are only predicted. Pure index arithmetic."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold

from features.errors import ConfigError
from features.windows import Examples

STORED_VALIDATION = "validation-store"  # the store's validation split where `validation_split` makes another one


def name_splits(examples: Examples, validation_split: float) -> NDArray[np.str_]:
    """(n,) each example's split in this run.

    With `validation_split` the last part of the training examples, unshuffled, is `validation`, and the store's own
    validation split becomes `validation-store`: it is predicted, but chooses nothing.

    Raises:
        ConfigError: no training example with a known target, or all of them in one sequence.
    """
    names = examples.split.astype("U32")
    train = np.flatnonzero((names == "train") & examples.known)
    if len(train) == 0:
        raise ConfigError(
            f"no example to train on: none in the train split has {', '.join(examples.columns)}",
            got=", ".join(f"{n} in {s}" for s, n in zip(*np.unique(names, return_counts=True), strict=True)),
            hint="give sequences the split train in the data set, then make features",
        )
    if validation_split > 0:
        at = split_at(examples.sequence[train], validation_split)
        names[names == "validation"] = STORED_VALIDATION
        names[train[at:]] = "validation"
    return names


def fold_splits(examples: Examples, folds: int, fold: int) -> NDArray[np.str_]:
    """(n,) each example's split in one fold of a cross-validation.

    The store's training and validation examples are divided by sequence into `folds` parts of nearly equal size; part
    `fold` is `validation`, the others are `train`. Test examples stay what they are.

    Raises:
        ConfigError: fewer than two folds, no such fold, or more folds than sequences with a known target.
    """
    names = examples.split.astype("U32")
    pool = np.isin(names, ("train", "validation"))
    labelled = np.flatnonzero(pool & examples.known)
    sequence = examples.sequence[labelled]
    most = len(np.unique(sequence))
    if not 2 <= folds <= most:
        raise ConfigError(
            "train.folds does not fit the data",
            expected=f"2 to {most}, the sequences with a known {', '.join(examples.columns)}"
            if most > 1
            else f"2 or more sequences with a known {', '.join(examples.columns)} in the train and validation splits",
            got=folds if most > 1 else most,
            hint="--train.folds N",
        )
    if not 0 <= fold < folds:
        raise ConfigError(
            "train.fold is none of the folds", expected=f"0 to {folds - 1}", got=fold, hint="--train.fold N"
        )
    parts = list(GroupKFold(folds).split(labelled, groups=sequence))
    names[pool] = "train"
    names[pool & np.isin(examples.sequence, sequence[parts[fold][1]])] = "validation"
    return names


def split_at(sequence: NDArray[np.int64], validation_split: float) -> int:
    """Where the held-out part begins: floor(n · (1 − validation_split)), as Keras' `fit` has it.

    Moved to the nearest border between sequences where it falls inside one, so that none stands on both sides.

    Args:
        sequence: (n,) each training example's sequence, in the order of training.

    Raises:
        ConfigError: one sequence cannot be split.
    """
    wanted = math.floor(len(sequence) * (1 - validation_split))
    borders = np.flatnonzero(np.diff(sequence)) + 1
    if len(borders) == 0:
        raise ConfigError(
            "train.validation_split cannot split one sequence: nothing of it may stand on both sides",
            hint="more sequences (a video: --data.segment FRAMES, then make features), or --train.validation_split 0",
        )
    return int(borders[np.abs(borders - wanted).argmin()])
