"""Batches: the right numbers, in the right order, read as often as they must and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from features.store import Store
from features.windows import Examples, make_examples
from stage2_temporal.data.batches import Batches, FrameReader
from stage2_temporal.data.splits import STORED_VALIDATION, name_splits, split_at
from tests.helpers import write_store

MAPS = np.random.default_rng(0).normal(size=(40, 2, 3, 4)).astype(np.float16)
ROWS = np.arange(33)[:, None] + np.arange(8)  # overlapping windows


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    sequences = [FrameSequence("a", "train", 40, 10.0, (64, 36), "d", (Label(7, {"ego_speed": 1.0}),))]
    with Store(write_store(tmp_path / "s.h5", sequences, {"appearance": MAPS})) as opened:
        yield opened


@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_windows_are_the_stored_halves(store: Store, memory: float) -> None:
    reader = FrameReader(store, ROWS, memory)
    assert reader.held == (memory == 1.0)
    windows = reader.windows(ROWS[[5, 0, 5]])
    assert windows.dtype == np.float16
    np.testing.assert_array_equal(windows, MAPS[ROWS[[5, 0, 5]]])


def test_memory_counts_unique_rows(store: Store) -> None:
    size = 40 * 2 * 3 * 4 * 2
    assert FrameReader(store, ROWS, (size + 1) / 1e9).held
    assert not FrameReader(store, ROWS, (size - 1) / 1e9).held


def test_held_rows_are_read_once(store: Store) -> None:
    reader = FrameReader(store, ROWS, 1.0)
    batches = Batches(reader, ROWS, None, 4, seed=0)
    for _ in range(3):
        batches.on_epoch_begin()
        for i in range(len(batches)):
            batches[i]
    assert reader.reads == 40


def test_streamed_rows_are_read_once_a_batch(store: Store) -> None:
    reader = FrameReader(store, ROWS, 1e-9)
    assert reader.reads == 0
    Batches(reader, ROWS, None, 4)[0]  # windows 0 to 3 of 8 frames: rows 0 to 10
    assert reader.reads == 11


def test_each_epoch_has_every_example_once_in_an_order_of_its_own(store: Store) -> None:
    targets = np.arange(33.0)[:, None]

    def epochs(seed: int | None) -> list[list[float]]:
        batches = Batches(FrameReader(store, ROWS, 1.0), ROWS, targets, 8, seed=seed)
        orders = []
        for _ in range(2):
            batches.on_epoch_begin()
            got = [batches[i] for i in range(len(batches))]
            for windows, values in got:
                np.testing.assert_array_equal(windows, MAPS[ROWS[values[:, 0].astype(int)]])
            orders.append(np.concatenate([v for _, v in got])[:, 0].tolist())
        return orders

    first, second = epochs(1)
    assert sorted(first) == sorted(second) == list(range(33))
    assert first != second
    assert epochs(1) == [first, second]
    assert epochs(2) != [first, second]
    assert epochs(None) == [list(range(33))] * 2


@pytest.mark.parametrize(("n", "v"), [(10, 0.2), (456, 0.2), (7, 0.3), (11, 0.15)])
def test_split_is_keras(n: int, v: float) -> None:
    """One example a sequence: the border is where Keras' own splitting puts it."""
    from keras.src.trainers.data_adapters.array_slicing import train_validation_split

    (train,), (validation,) = train_validation_split((np.arange(n),), validation_split=v)
    at = split_at(np.arange(n), v)
    assert np.arange(n)[:at].tolist() == np.asarray(train).tolist()
    assert np.arange(n)[at:].tolist() == np.asarray(validation).tolist()


def test_split_never_cuts_a_sequence() -> None:
    owner = np.repeat([0, 1, 2, 3], [5, 3, 6, 2])
    for v in np.linspace(0.05, 0.95, 19):
        at = split_at(owner, v)
        assert set(owner[:at]).isdisjoint(owner[at:])
        assert 0 < at < len(owner)
    assert split_at(owner, 0.5) == 8  # the border itself
    with pytest.raises(ConfigError, match="one sequence"):
        split_at(np.zeros(9, np.int64), 0.2)


def _examples(splits: list[str], targets: list[float]) -> Examples:
    sequences = [
        FrameSequence(str(i), split, 8, 10.0, (64, 36), "d", (Label(7, {"ego_speed": target}),))
        for i, (split, target) in enumerate(zip(splits, targets, strict=True))
    ]
    return make_examples(sequences, np.arange(len(splits)) * 8, ("ego_speed",), length=8)


def test_names_of_splits() -> None:
    nan = float("nan")
    found = _examples(["train"] * 5 + ["validation", "test"], [1, 2, nan, 4, 5, 6, 7])
    assert name_splits(found, 0).tolist() == [*["train"] * 5, "validation", "test"]
    held_out = name_splits(found, 0.25).tolist()  # of the four known ones the last
    assert held_out == [*["train"] * 4, "validation", STORED_VALIDATION, "test"]


def test_nothing_to_train_on() -> None:
    with pytest.raises(ConfigError, match="no example to train on"):
        name_splits(_examples(["validation", "test"], [1, 2]), 0)
