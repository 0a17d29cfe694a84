"""Splits: which examples a run trains on and validates on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from features.windows import Examples, make_examples
from stage2_temporal.data.splits import STORED_VALIDATION, name_splits, split_at


def examples(splits: list[str], targets: list[float]) -> Examples:
    """One sequence per split and target."""
    sequences = [
        FrameSequence(str(i), split, 8, 10.0, (64, 36), "d", (Label(7, {"ego_speed": target}),))
        for i, (split, target) in enumerate(zip(splits, targets, strict=True))
    ]
    return make_examples(sequences, np.arange(len(splits)) * 8, ("ego_speed",), length=8)


@pytest.mark.parametrize(("count", "share"), [(10, 0.2), (456, 0.2), (7, 0.3), (11, 0.15)])
def test_validation_split_is_where_keras_puts_it(count: int, share: float) -> None:
    from keras.src.trainers.data_adapters.array_slicing import train_validation_split

    (train,), _ = train_validation_split((np.arange(count),), validation_split=share)
    assert split_at(np.arange(count), share) == len(train)  # one example per sequence


def test_validation_split_never_cuts_a_sequence() -> None:
    sequence = np.repeat([0, 1, 2, 3], [5, 3, 6, 2])
    for share in np.linspace(0.05, 0.95, 19):
        border = split_at(sequence, share)
        assert set(sequence[:border]).isdisjoint(sequence[border:])
        assert 0 < border < len(sequence)
    assert split_at(sequence, 0.5) == 8  # already at a border
    with pytest.raises(ConfigError, match="one sequence"):
        split_at(np.zeros(9, np.int64), 0.2)


def test_validation_split_renames_the_stored_validation_split() -> None:
    task = examples(["train"] * 5 + ["validation", "test"], [1, 2, math.nan, 4, 5, 6, 7])
    assert name_splits(task, 0).tolist() == [*["train"] * 5, "validation", "test"]
    # the last of the four with a known target
    assert name_splits(task, 0.25).tolist() == [*["train"] * 4, "validation", STORED_VALIDATION, "test"]


def test_no_training_example_is_refused() -> None:
    with pytest.raises(ConfigError, match="no example to train on"):
        name_splits(examples(["validation", "test"], [1, 2]), 0)
