"""Batches: the right numbers, in the right order, and each row read as rarely as possible."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from features.config import TrainConfig
from features.sequences import FrameSequence, Label
from features.store import Store
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import StoreSource
from stage2_temporal.training.loop import fit_model, predict_batches
from tests.helpers import write_store

MAPS = np.random.default_rng(0).normal(size=(40, 2, 3, 4)).astype(np.float16)
ROWS = np.arange(33)[:, None] + np.arange(8)  # overlapping windows
SIZE = MAPS.nbytes / 1e9


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sequences = [FrameSequence("a", "train", 40, 10.0, (64, 36), "d", (Label(7, {"ego_speed": 1.0}),))]
    return write_store(tmp_path_factory.mktemp("s") / "s.h5", sequences, {"appearance": MAPS})


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every row that is read from a store."""
    rows_read: list[int] = []
    read = Store.read

    def recorded(store: Store, stream: str, rows: Any) -> Any:
        rows_read.extend(rows)
        return read(store, stream, rows)

    monkeypatch.setattr(Store, "read", recorded)
    return rows_read


def reader(path: Path, rows: Any = ROWS, memory_gb: float = 1.0) -> Callable[[Any], Any]:
    return partial(StoreSource(path, rows, memory_gb).windows, "appearance")


@pytest.mark.parametrize(("memory", "count"), [(1.001 * SIZE, 40), (0.999 * SIZE, 2 * 11)])
def test_rows_are_read_once_if_they_fit_into_memory_and_else_once_per_batch(
    path: Path, rows_read: list[int], memory: float, count: int
) -> None:
    batches = Batches(reader(path, memory_gb=memory), ROWS, None, 4)
    for _ in range(2):
        (windows,) = batches[0]  # 4 windows of 8 frames: rows 0 to 10
        assert windows.dtype == np.float16
        np.testing.assert_array_equal(windows, MAPS[ROWS[:4]])
    assert len(rows_read) == count


def test_each_epoch_has_every_example_once_in_an_order_set_by_the_seed(path: Path) -> None:
    targets = np.arange(33.0)[:, None]

    def two_epochs(seed: int | None) -> list[list[float]]:
        batches = Batches(reader(path), ROWS, targets, 8, seed=seed)
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


@pytest.mark.parametrize(("memory", "count"), [(1.0, 40), (1e-9, 3 * 40 + 2 * 8)])
def test_training_reads_rows_once_or_once_per_epoch_and_then_releases_them(
    path: Path, rows_read: list[int], memory: float, count: int
) -> None:
    """Keras reads two batches beforehand, for their shapes. A sweep's worker trains many runs in one process."""
    rows, targets = np.arange(40).reshape(5, 8), np.zeros((5, 1))
    source = StoreSource(path, rows, memory)
    read = partial(source.windows, "appearance")
    windows = keras.Input((8, 2, 3, 4))
    model = keras.Model(windows, keras.layers.Dense(1)(keras.layers.Flatten()(windows)))
    batches = Batches(read, rows, targets, 1, seed=0)
    fit_model(model, batches, None, TrainConfig(epochs=3))
    assert len(rows_read) == count
    predict_batches(model, Batches(read, rows, None, 5))
    released = weakref.ref(source)
    del source, read, batches
    gc.collect()
    assert released() is None
