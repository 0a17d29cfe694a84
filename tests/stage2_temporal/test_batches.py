"""Batches: the right numbers, in the right order, and each row read as rarely as possible."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import keras
import numpy as np
import pytest

from features.config import TrainConfig
from features.sequences import FrameSequence, Label
from features.store import Store
from stage2_temporal.data.batches import Batches, FrameReader
from stage2_temporal.training.loop import fit_model, predict_batches
from tests.helpers import write_store

MAPS = np.random.default_rng(0).normal(size=(40, 2, 3, 4)).astype(np.float16)
ROWS = np.arange(33)[:, None] + np.arange(8)  # overlapping windows
SIZE = MAPS.nbytes / 1e9


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    sequences = [FrameSequence("a", "train", 40, 10.0, (64, 36), "d", (Label(7, {"ego_speed": 1.0}),))]
    with Store(write_store(tmp_path_factory.mktemp("s") / "s.h5", sequences, {"appearance": MAPS})) as opened:
        yield opened


@pytest.mark.parametrize(("memory", "in_memory"), [(1.001 * SIZE, True), (0.999 * SIZE, False)])
def test_windows_keep_the_stored_type_and_stay_in_memory_if_they_fit(
    store: Store, memory: float, in_memory: bool
) -> None:
    reader = FrameReader(store, ROWS, memory)
    assert reader.in_memory == in_memory
    windows = reader.windows(ROWS[[5, 0, 5]])
    assert windows.dtype == np.float16
    np.testing.assert_array_equal(windows, MAPS[ROWS[[5, 0, 5]]])


def test_rows_in_memory_are_read_once_and_others_once_per_batch(store: Store) -> None:
    for memory, rows_read in ((1.0, 40), (1e-9, 11)):  # windows 0 to 3 of 8 frames: rows 0 to 10
        reader = FrameReader(store, ROWS, memory)
        Batches(reader.windows, ROWS, None, 4)[0]
        assert reader.rows_read == rows_read


def test_each_epoch_has_every_example_once_in_an_order_set_by_the_seed(store: Store) -> None:
    targets = np.arange(33.0)[:, None]

    def two_epochs(seed: int | None) -> list[list[float]]:
        batches = Batches(FrameReader(store, ROWS, 1.0).windows, ROWS, targets, 8, seed=seed)
        orders = []
        for _ in range(2):
            batches.on_epoch_begin()
            contents = [batches[i] for i in range(len(batches))]
            for windows, values in contents:
                np.testing.assert_array_equal(windows, MAPS[ROWS[values[:, 0].astype(int)]])
            orders.append(np.concatenate([values for _, values in contents])[:, 0].tolist())
        return orders

    first, second = two_epochs(1)
    assert sorted(first) == sorted(second) == list(range(33))
    assert first != second
    assert two_epochs(1) == [first, second]
    assert two_epochs(2) != [first, second]
    assert two_epochs(None) == [list(range(33))] * 2


@pytest.mark.parametrize(("memory", "rows_read"), [(1.0, 40), (1e-9, 3 * 40 + 2 * 8)])
def test_training_reads_rows_once_or_once_per_epoch_and_then_releases_them(
    store: Store, memory: float, rows_read: int
) -> None:
    """Keras reads two batches beforehand, for their shapes. A sweep's worker trains many runs in one process."""
    rows, targets = np.arange(40).reshape(5, 8), np.zeros((5, 1))
    reader = FrameReader(store, rows, memory)
    windows = keras.Input((8, 2, 3, 4))
    model = keras.Model(windows, keras.layers.Dense(1)(keras.layers.Flatten()(windows)))
    batches = Batches(reader.windows, rows, targets, 1, seed=0)
    fit_model(model, batches, None, TrainConfig(epochs=3))
    assert reader.rows_read == rows_read
    predict_batches(model, Batches(reader.windows, rows, None, 5))
    released = weakref.ref(reader)
    del reader, batches
    gc.collect()
    assert released() is None
