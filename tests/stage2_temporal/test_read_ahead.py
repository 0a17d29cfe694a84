"""Examples that do not fit into memory: read in long runs, one part ahead, in an order that memory does not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.config import Config
from features.errors import StoreError
from features.frame_files import consecutive_runs
from features.sequences import FrameSequence, Label
from features.store import Store
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.read_ahead import SHUFFLE_BLOCK, SHUFFLE_BUFFER, plan_parts, shuffled_order
from tests.helpers import flip, write_store

LENGTH, FRAMES, BATCH = 8, 10_000, 32
SHAPE = (1, 2, 3)
MAPS = np.random.default_rng(0).normal(size=(FRAMES, *SHAPE)).astype(np.float16)
SIZE = MAPS.nbytes / 1e9
EXAMPLES = FRAMES - LENGTH + 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with a label on each frame: neighbouring windows share all frames but one."""
    labels = tuple(Label(i, {"ego_speed": float(i)}) for i in range(FRAMES))
    video = FrameSequence("a", "train", FRAMES, 10.0, (64, 36), "d", labels)
    return write_store(tmp_path_factory.mktemp("s") / "s.h5", [video], {"appearance": MAPS})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of each read from a store."""
    reads: list[Any] = []
    read = Store.read

    def recorded(store: Store, stream: str, rows: Any) -> Any:
        reads.append(rows)
        return read(store, stream, rows)

    monkeypatch.setattr(Store, "read", recorded)
    return reads


def batches(path: Path, memory_gb: float, seed: int | None = 0) -> Batches:
    config = Config.model_validate({"window": {"length": LENGTH}, "train": {"memory_gb": memory_gb}})
    X, y, _ = load_examples(path, config.with_target("ego_speed"))
    return Batches(lambda examples: examples.stream("appearance"), X, y, BATCH, seed)


def epoch(batches: Batches) -> tuple[Any, Any]:
    """The windows and targets of an epoch, in order."""
    batches.on_epoch_begin()
    windows, targets = zip(*(batches[i] for i in range(len(batches))), strict=True)
    return np.concatenate(windows), np.concatenate(targets)[:, 0].astype(int)


def test_order_of_few_examples_is_any_permutation() -> None:
    order = shuffled_order(SHUFFLE_BUFFER, 3, 1)
    np.testing.assert_array_equal(order, np.random.default_rng((3, 1)).permutation(SHUFFLE_BUFFER))


def test_order_of_many_examples_mixes_whole_blocks_of_neighbours() -> None:
    count = 3 * SHUFFLE_BUFFER + 100
    first, second = (shuffled_order(count, 0, epoch) for epoch in (0, 1))
    for order in (first, second):
        assert sorted(order) == list(range(count))
        buffers = [np.sort(order[i : i + SHUFFLE_BUFFER]) for i in range(0, count, SHUFFLE_BUFFER)]
        assert all(len(consecutive_runs(buffer)) <= SHUFFLE_BUFFER // SHUFFLE_BLOCK + 2 for buffer in buffers)
        assert np.abs(np.diff(order)).mean() > count / 10  # neighbours in a batch are far apart
    assert set(first[:SHUFFLE_BUFFER]) != set(second[:SHUFFLE_BUFFER])
    np.testing.assert_array_equal(first, shuffled_order(count, 0, 0))
    assert (first != shuffled_order(count, 1, 0)).any()


def test_parts_hold_as_many_rows_as_fit() -> None:
    rows = np.arange(1000)[:, None] + np.arange(LENGTH)
    rows = rows[shuffled_order(1000, 0, 0)]
    parts = plan_parts(rows, BATCH, max_rows=600)
    assert [stop for _, stop in parts][:-1] == [start for start, _ in parts][1:]
    assert parts[0][0] == 0 and parts[-1][1] == -(-1000 // BATCH)
    sizes = [len(np.unique(rows[start * BATCH : stop * BATCH])) for start, stop in parts]
    assert 200 < max(sizes) <= 600
    assert len(plan_parts(rows, BATCH, max_rows=10)) == -(-1000 // BATCH)  # at least a batch each


@pytest.mark.parametrize("seed", [0, None])
def test_batches_are_the_same_whatever_the_memory(path: Path, seed: int | None) -> None:
    orders = []
    for memory in (2 * SIZE, 0.9 * SIZE, 0.1 * SIZE, 1e-9):
        some = batches(path, memory, seed)
        for _ in range(2):
            windows, targets = epoch(some)
            np.testing.assert_array_equal(windows, MAPS[targets[:, None] + np.arange(1 - LENGTH, 1)])
            orders.append(targets.tolist())
        some.close()
    assert orders[::2] == [orders[0]] * 4 and orders[1::2] == [orders[1]] * 4
    assert sorted(orders[0]) == list(range(LENGTH - 1, FRAMES))


def test_epoch_reads_each_row_about_once_in_long_runs(path: Path, reads: list[Any]) -> None:
    some = batches(path, 0.999 * SIZE)  # half of it holds the rows of one shuffle buffer
    epoch(some)
    _probe, *parts = reads  # some examples, to see what is read
    assert sum(map(len, parts)) < 1.25 * FRAMES
    assert sum(len(consecutive_runs(rows)) for rows in parts) <= 1.1 * EXAMPLES / SHUFFLE_BLOCK
    some.close()


def test_two_parts_at_most_are_in_memory(path: Path, reads: list[Any]) -> None:
    some = batches(path, 0.2 * SIZE)
    epoch(some)
    assert max(map(len, reads)) <= 0.1 * FRAMES
    some.close()


def test_passes_in_order_read_each_row_once(path: Path, reads: list[Any]) -> None:
    config = Config.model_validate({"window": {"length": LENGTH}, "train": {"memory_gb": 0.2 * SIZE}})
    X, _, _ = load_examples(path, config.with_target("ego_speed"))
    predicting = Batches(lambda examples: examples.stream("appearance"), X, None, BATCH)
    assert sum(len(windows) for windows in predicting.inputs()) == EXAMPLES
    assert sum(map(len, reads)) < 1.1 * FRAMES


def test_unreadable_frame_is_the_error_of_its_batch(tmp_path: Path) -> None:
    labels = tuple(Label(i, {"ego_speed": float(i)}) for i in range(500))
    video = FrameSequence("a", "train", 500, 10.0, (64, 36), "d", labels)
    damaged = write_store(tmp_path / "s.h5", [video], {"appearance": MAPS[:500]})
    flip(damaged, "appearance", 400)
    some = batches(damaged, 100 * MAPS[0].nbytes / 1e9, seed=None)
    some.on_epoch_begin()
    with pytest.raises(StoreError):
        for i in range(len(some)):
            some[i]
    assert i * BATCH < 400 and isinstance(some.fault, StoreError)
    some.close()
