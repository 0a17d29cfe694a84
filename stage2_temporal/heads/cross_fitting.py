"""Errors on sequences that no fit knew, from fits of the same head to the other sequences.

The validation split alone often has few sequences: with 20, the coverage of intervals of 90 % varies by 8 % (standard
deviation) from split to split. Cross-conformal prediction (V. Vovk, "Cross-conformal predictors", 2015) divides all
sequences to train and to validate on into folds, and a head that was fitted to the others predicts each fold. Here the
centre of an interval is the run's own head, which is fitted to about as many sequences. R. Barber et al., "Predictive
inference with the jackknife+" (2021), discuss such intervals, and bound the coverage of those round the folds' heads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from features._common.console import logger
from features._common.types import Floats
from features.config import TrainConfig
from features.errors import FramebankError
from stage2_temporal.data.examples import StoreExamples
from stage2_temporal.data.task import Task
from stage2_temporal.evaluation.intervals import sequences_needed
from stage2_temporal.heads.base import Head

FOLDS = 5  # a fold's head is fitted to 80 % of the sequences, about as many as the run's own
ENOUGH_SEQUENCES = 200  # validation sequences, whose errors alone tell as much
FEW_VALIDATION_SEQUENCES = 40  # with fewer, coverage varies by 5 % and more


def interval_folds(head: Head, task: Task, settings: TrainConfig) -> int:
    """The number of folds; 0 if the errors on the validation examples are to do."""
    groups = task.examples.sequence
    validation, pool = (len(np.unique(groups[rows])) for rows in (task.known("validation"), pooled_rows(task)))
    if settings.interval_folds != "auto":
        return min(settings.interval_folds, pool) if settings.interval_folds > 1 else 0
    if pool < sequences_needed(settings.interval_level) or validation >= ENOUGH_SEQUENCES:
        return 0
    if len(pooled_rows(task)) <= head.refit_examples:
        return FOLDS
    if sequences_needed(settings.interval_level) <= validation < FEW_VALIDATION_SEQUENCES:
        logger.info(
            f"intervals come from {validation} validation sequences, so that their coverage is uncertain. "
            f"Try: --train.interval_folds {FOLDS}, which trains {FOLDS} times more"
        )
    return 0


def pooled_rows(task: Task) -> NDArray[np.int64]:
    """The training and validation examples with known targets."""
    return np.sort(np.concatenate([task.known("train"), task.known("validation")]))


def predict_left_out(
    head: Head, X: StoreExamples, task: Task, folds: int, predict: Callable[[Head, StoreExamples], Floats]
) -> tuple[NDArray[np.int64], Floats] | None:
    """Predict all training and validation examples, fold by fold, with `predict`; return their rows and the outputs.

    If validation examples chose the epoch of the run's own head, each fold chooses that of its head. None if a head
    cannot be fitted, or after Ctrl-C.
    """
    rows, targets = pooled_rows(task), task.examples.targets
    _, group = np.unique(X.groups[rows], return_inverse=True)
    fold = np.random.default_rng(0).permutation(group.max() + 1)[group] % folds
    parts = [(rows[fold != k], rows[fold == k]) for k in range(folds)]
    outputs = []
    try:
        with _without_warnings():
            for fitted, left_out in parts:
                validation = (X[left_out], targets[left_out]) if len(task.known("validation")) else None
                fold_head = clone(head).set_params(validation_split=0.0)
                fold_head.fit(X[fitted], targets[fitted], validation=validation)
                if fold_head.outcome_.interrupted:
                    raise KeyboardInterrupt
                outputs.append(predict(fold_head, X[left_out]))
    except (FramebankError, ValueError, KeyboardInterrupt) as e:  # such as too few labels for a camera's geometry
        reason = (
            "stopped by Ctrl-C" if isinstance(e, KeyboardInterrupt) else f"part of the examples cannot be fitted: {e}"
        )
        logger.info(f"intervals come from the validation examples alone: {reason}")
        return None
    return np.concatenate([left_out for _, left_out in parts]), np.concatenate(outputs)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Do not repeat the warnings of the run's own head in every fold."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
