"""How cross-validation divides examples into folds."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from features.windows import make_examples
from stage2_temporal.data.splits import fold_splits


def clips(counts: dict[str, int], labels: int = 1) -> list[FrameSequence]:
    return [
        FrameSequence(
            f"{split}/{i}", split, 8, 10.0, (64, 36), "", tuple(Label(7, {"v": float(i)}) for _ in range(labels))
        )
        for split, count in counts.items()
        for i in range(count)
    ]


@pytest.mark.parametrize("labels", [1, 3])
def test_folds_divide_training_and_validation_by_sequence(labels: int) -> None:
    sequences = clips({"train": 11, "validation": 4, "test": 5}, labels)
    examples = make_examples(sequences, np.arange(len(sequences)) * 8, ("v",), length=8)
    validated: list[int] = []
    for fold in range(4):
        names = fold_splits(examples, 4, fold)
        assert set(names[examples.split == "test"]) == {"test"}
        validation, train = set(examples.sequence[names == "validation"]), set(examples.sequence[names == "train"])
        assert not validation & train and len(validation | train) == 15
        assert len(validation) in (3, 4)
        validated += validation
    assert sorted(validated) == list(range(15))


def test_unlabelled_examples_go_to_training() -> None:
    sequences = clips({"train": 4})
    sequences.append(FrameSequence("train/x", "train", 8, 10.0, (64, 36), "", (Label(7, {"v": float("nan")}),)))
    examples = make_examples(sequences, np.arange(5) * 8, ("v",), length=8)
    names = [fold_splits(examples, 2, fold).tolist() for fold in range(2)]
    assert [n.count("validation") for n in names] == [2, 2]
    assert names[0][4] == names[1][4] == "train"


@pytest.mark.parametrize(("folds", "fold", "message"), [(1, 0, "2 to 4"), (5, 0, "2 to 4"), (2, 2, "0 to 1")])
def test_impossible_folds_are_refused(folds: int, fold: int, message: str) -> None:
    examples = make_examples(clips({"train": 4}), np.arange(4) * 8, ("v",), length=8)
    with pytest.raises(ConfigError, match=message):
        fold_splits(examples, folds, fold)
