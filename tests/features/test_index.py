"""A store as an index and its shards: the same to read as a packed one, and cheap to change."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from features.errors import StoreError
from features.frame_files import shard_folder
from features.sequences import FrameSequence, Label
from features.shard_folder import REPLACED, delete_replaced_shards, used_shards
from features.store import Store
from features.store_tables import StreamInfo
from features.store_writer import StoreContent, StreamContent, extend_store, pack_store, save_store, unpack_store
from tests.helpers import jpeg, write_store

CLIPS = [
    FrameSequence(f"Train/{i}", "train", 4 + i, 20.0, (64, 48), f"{i:064}", (Label(3, {"vx": float(i)}),))
    for i in range(6)
]
FRAMES = sum(c.length for c in CLIPS)
RNG = np.random.default_rng(0)
MAPS = {"appearance": RNG.normal(size=(FRAMES, 3, 4, 5)).astype(np.float16), "motion": RNG.normal(size=(FRAMES, 6))}
CELLS = StreamInfo((2,), "float32", {"source": "appearance"})


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_store(tmp_path / "s.h5", CLIPS, MAPS, packed=False)


def shards(path: Path) -> set[Path]:
    return set(shard_folder(path).glob("[!.]*"))


def assert_same(path: Path, maps: dict[str, NDArray[np.generic]]) -> None:
    rows = RNG.permutation(FRAMES)
    with Store(path) as store:
        assert set(store.streams) == set(maps)
        for name, values in maps.items():
            np.testing.assert_array_equal(store.read(name, rows), values[rows])
        assert [store.thumbnail(row) for row in range(FRAMES)] == [jpeg(row) for row in range(FRAMES)]
        assert all(not damaged for _, damaged in store.check_frames())
        assert list(store.sequences) == CLIPS


def test_packed_and_unpacked_stores_read_the_same(index: Path) -> None:
    assert_same(index, MAPS)
    pack_store(index)
    assert not shard_folder(index).exists()
    assert_same(index, MAPS)
    size = index.stat().st_size
    unpack_store(index)
    assert_same(index, MAPS)
    assert index.stat().st_size < size / 2
    assert [path.stat().st_size for path in shards(index)] == [size]


@pytest.mark.parametrize("shard_bytes", [1, 40, 1 << 20])
def test_a_derived_stream_is_written_alone(index: Path, shard_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.store_writer.SHARD_BYTES", shard_bytes)
    before = {path: path.read_bytes() for path in shards(index)}
    cells = RNG.normal(size=(FRAMES, 2)).astype(np.float32)
    extend_store(index, {"cells": StreamContent(CELLS, batches=np.split(cells, [1, 5, 5, 22]))})
    assert_same(index, MAPS | {"cells": cells})
    assert {path: path.read_bytes() for path in before} == before
    new = shards(index) - before.keys()
    frames = max(1, shard_bytes // 8)
    assert len(new) == {1: FRAMES, 5: sum(-(-c.length // 5) for c in CLIPS)}.get(frames, 1)


def test_too_few_computed_frames_leave_the_index_as_it_was(index: Path) -> None:
    before = index.read_bytes()
    with pytest.raises(RuntimeError, match="not computed"):
        extend_store(index, {"cells": StreamContent(CELLS, batches=[np.zeros((3, 2), np.float32)])})
    assert index.read_bytes() == before
    assert not list(shard_folder(index).glob(".*"))


def test_sequences_are_left_out_and_reordered_without_copying(index: Path) -> None:
    with Store(index) as store:
        content = StoreContent.of(store)
    chosen = [5, 0, 3]
    streams = {n: replace(s, ranges=[s.ranges[i] for i in chosen]) for n, s in content.streams.items()}
    before = shards(index)
    save_store(index, replace(content, sequences=[CLIPS[i] for i in chosen], streams=streams), packed=False)
    assert shards(index) == before
    starts = np.cumsum([0, *[c.length for c in CLIPS]])
    rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen])
    with Store(index) as store:
        np.testing.assert_array_equal(store.read("appearance", range(store.frames)), MAPS["appearance"][rows])
        assert [store.thumbnail(i) for i in range(store.frames)] == [jpeg(row) for row in rows.tolist()]


def test_a_reader_keeps_the_shards_of_its_index_until_it_closes(index: Path) -> None:
    old = {"cells": np.zeros((FRAMES, 2), np.float32)}
    extend_store(index, {"cells": StreamContent(CELLS, batches=[old["cells"]])})
    with Store(index) as reader:
        new = replace(CELLS, origin={"source": "motion"})
        for value in (1, 2):  # the second writer finds what the first one replaced
            extend_store(index, {"cells": StreamContent(new, batches=[old["cells"] + value])})
        np.testing.assert_array_equal(reader.read("cells", range(FRAMES)), old["cells"])
        assert len(list(shard_folder(index).glob(f"{REPLACED}*"))) == 2
        held = used_shards(index)
        assert {path.name for path in shards(index)} == held
    delete_replaced_shards(index)
    assert not list(shard_folder(index).glob(f"{REPLACED}*"))
    assert used_shards(index) < held
    assert {path.name for path in shards(index)} == used_shards(index)
    assert_same(index, MAPS | {"cells": old["cells"] + 2})


def test_a_writer_killed_before_the_new_index_leaves_the_old_one(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("features.store_writer.write_runs", killed)
        with pytest.raises(KeyboardInterrupt):
            extend_store(index, {"cells": StreamContent(CELLS, batches=[np.zeros((FRAMES, 2), np.float32)])})
    assert_same(index, MAPS)
    delete_replaced_shards(index)
    assert not list(shard_folder(index).glob(".*"))
    assert_same(index, MAPS)


def test_a_missing_and_a_truncated_shard_are_named(index: Path) -> None:
    [shard] = shards(index)
    os.truncate(shard, shard.stat().st_size - 1)
    with Store(index) as store, pytest.raises(StoreError, match=rf"{shard.name}: damaged.*expected [\d,]+ bytes"):
        store.read("appearance", [0])
    shard.unlink()
    with Store(index) as store:
        with pytest.raises(StoreError, match=r"this shard of s\.h5 is missing.*copy the folder s\.h5\.shards too"):
            store.read("appearance", [0])
        assert [damaged for _, damaged in store.check_frames()] == [["appearance", "motion", "thumbnails"]] * FRAMES


@pytest.mark.parametrize("name", ["../s.h5", "/etc/x.h5", "a/b.h5", "..\\s.h5", "x.txt"])
def test_shards_outside_the_folder_are_refused(name: str, index: Path) -> None:
    with h5py.File(index, "r+") as f:
        del f["shards/name"]
        f.create_dataset("shards/name", data=np.array([name.encode()], h5py.string_dtype("utf-8", 20)))
    with pytest.raises(StoreError, match="outside the store's folder"):
        Store(index)


def test_many_shards_are_read_with_few_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.frame_files.MAX_OPEN_SHARDS", 2)
    monkeypatch.setattr("features.store_writer.SHARD_BYTES", 1)
    path = write_store(tmp_path / "s.h5", CLIPS, {"appearance": MAPS["appearance"]}, packed=False)
    cells = RNG.normal(size=(FRAMES, 2)).astype(np.float32)
    extend_store(path, {"cells": StreamContent(CELLS, batches=[cells])})
    rows = RNG.permutation(FRAMES)
    with Store(path) as store:
        np.testing.assert_array_equal(store.read("cells", rows), cells[rows])
        assert len(store.files._opened) == 2


def test_a_packed_store_grows_into_an_index(tmp_path: Path) -> None:
    path = write_store(tmp_path / "s.h5", CLIPS, MAPS)
    packed = path.read_bytes()
    cells = RNG.normal(size=(FRAMES, 2)).astype(np.float32)
    with Store(path) as store:
        content = StoreContent.of(store)
        streams = {**content.streams, "cells": StreamContent(CELLS, batches=[cells])}
        save_store(path, replace(content, streams=streams), packed=False)
    assert_same(path, MAPS | {"cells": cells})
    assert packed in [shard.read_bytes() for shard in shards(path)]


def test_a_partial_stream_is_completed_and_a_packed_store_has_none(index: Path) -> None:
    cells = RNG.normal(size=(FRAMES, 2)).astype(np.float32)
    extend_store(index, {"cells": StreamContent(CELLS, batches=[cells])})
    with Store(index) as store:
        content = StoreContent.of(store)
    lacking = [1, 2, 5]
    ranges = [[] if i in lacking else parts for i, parts in enumerate(content.streams["cells"].ranges)]
    partial = StreamContent(CELLS, ranges)
    save_store(index, replace(content, streams={**content.streams, "cells": partial}), packed=False)
    assert_same(index, MAPS)
    with Store(index) as store:
        assert store.partial_streams == {"cells": CELLS}
        content = StoreContent.of(store)
    starts = np.cumsum([0, *[c.length for c in CLIPS]])
    before = shards(index)
    batches = [cells[starts[i] : starts[i + 1]] for i in lacking]
    extend_store(index, {"cells": replace(content.streams["cells"], batches=batches)})
    assert len(shards(index) - before) == 1
    assert_same(index, MAPS | {"cells": cells})
    save_store(index, content, packed=True)
    assert_same(index, MAPS)
