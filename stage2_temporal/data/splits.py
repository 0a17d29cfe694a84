"""Splits: which examples a run trains on, which it validates on, and which it only predicts."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from features.errors import ConfigError
from features.windows import Examples

STORED_VALIDATION = "validation-store"  # the store's validation split, if `validation_split` makes another one


def name_splits(examples: Examples, validation_split: float) -> NDArray[np.str_]:
    """Return each example's split in a run, (n,); a ConfigError if there is nothing to train on or to validate on.

    With a `validation_split` above 0, that share at the end of the training examples, unshuffled, is `validation`. The
    store's own validation split is then named `validation-store`; it is predicted, but does not select the epoch.
    """
    names = examples.split.astype("U32")
    train = np.flatnonzero((names == "train") & examples.known)
    if len(train) == 0:
        raise ConfigError(
            f"no example to train on: none in the train split has {', '.join(examples.columns)}",
            got=", ".join(f"{n} in {s}" for s, n in zip(*np.unique(names, return_counts=True), strict=True)),
            hint="assign some sequences to the train split of the data set, then run framebank extract",
        )
    if validation_split > 0:
        border = split_at(examples.sequence[train], validation_split)
        names[names == "validation"] = STORED_VALIDATION
        names[train[border:]] = "validation"
    return names


def fold_splits(examples: Examples, folds: int, fold: int) -> NDArray[np.str_]:
    """Return each example's split in one fold of a cross-validation, (n,); a ConfigError if there is no such fold.

    The store's training and validation examples are divided by sequence into `folds` parts of nearly equal size; part
    `fold` is `validation`, the others are `train`. The test split is unchanged.
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
        raise ConfigError("train.fold is out of range", expected=f"0 to {folds - 1}", got=fold, hint="--train.fold N")
    from sklearn.model_selection import GroupKFold  # 0.8 s, which only folds need

    parts = list(GroupKFold(folds).split(labelled, groups=sequence))
    names[pool] = "train"
    names[pool & np.isin(examples.sequence, sequence[parts[fold][1]])] = "validation"
    return names


def split_at(sequence: NDArray[np.int64], validation_split: float) -> int:
    """Return the index of the first validation example: floor(n · (1 − validation_split)), as in Keras' `fit`.

    If it falls inside a sequence (n,), it is moved to the nearest border, so that no sequence is on both sides; a
    ConfigError if there is only one sequence.
    """
    border = math.floor(len(sequence) * (1 - validation_split))
    borders = np.flatnonzero(np.diff(sequence)) + 1
    if len(borders) == 0:
        raise ConfigError(
            "train.validation_split cannot split a single sequence, since its windows must all be on one side",
            hint="--data.segment FRAMES to cut a video into several, then framebank extract; "
            "or --train.validation_split 0",
        )
    return int(borders[np.abs(borders - border).argmin()])
