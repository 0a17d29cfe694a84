"""The store: reading what was written, damage, foreign files, and failed writes."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features._common.atomic import atomic_write
from features.errors import DataError, StoreError
from features.frame_files import consecutive_runs
from features.frame_ranges import full_range
from features.sequences import Camera, FrameSequence, Label, same_sequences
from features.shards import ShardWriter, shard_ranges
from features.store import Store
from features.store_tables import Header, StreamInfo, TopRecord
from features.store_writer import StoreContent, StreamContent, save_store
from features.tracks import Track
from tests.helpers import RECIPE, flip, jpeg, write_store

GOLDEN = Path(__file__).parents[1] / "data" / "format1.h5"


def clips(count: int = 5, length: int = 8) -> list[FrameSequence]:
    """Sequences whose labels have known and unknown values, and some a box and a position."""
    return [
        FrameSequence(
            f"Train/{i}",
            ("train", "validation", "test")[i % 3],
            length,
            20.0,
            (1280, 720),
            f"{i:064x}",
            (
                Label(39, {"vx": i / 3, "vy": math.nan}, (1.5, 2.5, 3.5, 4.5), (20.1, -0.3)),
                Label(7, {"ego_speed": 3.0 * i}),
            )
            if i
            else (),
        )
        for i in range(count)
    ]


def maps(frames: int, dtype: str = "float16") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(frames, 3, 5, 7)).astype(dtype)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 5 clips with a top."""
    top = TopRecord("{" + "x" * 100_000 + "}", [np.arange(6.0).reshape(2, 3), np.float32([1, 2])])
    return write_store(tmp_path / "s.h5", clips(), {"appearance": maps(40)}, top=top, trunk={"parameters": 7})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_is_read_as_written(dtype: str, tmp_path: Path) -> None:
    values = maps(40, dtype)
    with Store(write_store(tmp_path / "s.h5", clips(), {"appearance": values})) as store:
        rows = np.random.default_rng(1).integers(0, 40, 100)
        read = store.read("appearance", rows)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, values[rows])
        assert same_sequences(store.sequences, clips())
        np.testing.assert_array_equal(store.first, [0, 8, 16, 24, 32])
        assert store.recipe == RECIPE
        assert store.fingerprint == RECIPE.fingerprint
        assert [store.thumbnail(i) for i in (0, 39)] == [jpeg(0), jpeg(39)]
        assert store.top() is None


def test_times_of_unevenly_spaced_frames_are_read_as_written(tmp_path: Path) -> None:
    uneven = [
        replace(s, times=(0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.51)) if i in (1, 4) else s
        for i, s in enumerate(clips())
    ]
    with Store(write_store(tmp_path / "s.h5", uneven, {"appearance": maps(40)})) as store:
        assert same_sequences(store.sequences, uneven)
        np.testing.assert_array_equal(store.sequences[1].frame_times, uneven[1].times)
        np.testing.assert_allclose(store.sequences[0].frame_times, np.arange(8) / 20)


def test_a_store_without_any_label(tmp_path: Path) -> None:
    bare = [FrameSequence("a", "test", 8, 20.0, (4, 3), "d")]
    with Store(write_store(tmp_path / "s.h5", bare, {"appearance": maps(8)})) as store:
        assert same_sequences(store.sequences, bare)


def test_top_and_facts_about_the_trunk_are_read_as_written(path: Path) -> None:
    with Store(path) as store:
        top = store.top()
        assert top is not None
        assert len(top.architecture) == 100_002
        np.testing.assert_array_equal(top.weights[0], [[0, 1, 2], [3, 4, 5]])
        assert store.header.trunk["parameters"] == 7


def test_every_frame_is_a_checksummed_chunk(path: Path) -> None:
    with h5py.File(path) as f:
        data = f["frames/appearance"]
        assert data.chunks == (1, 3, 5, 7)
        assert data.fletcher32


@given(st.lists(st.integers(0, 20), max_size=30))
def test_consecutive_runs_join_to_the_rows(rows: list[int]) -> None:
    runs = consecutive_runs(np.array(rows, np.int64))
    assert [first + i for _, first, n in runs for i in range(n)] == rows
    assert [at for at, _, _ in runs] == list(np.cumsum([0, *[n for *_, n in runs]])[:-1])


def test_rows_of_a_window_are_one_run() -> None:
    rows = np.concatenate([np.arange(8) + 80, np.arange(8) + 16])
    assert consecutive_runs(rows) == [(0, 80, 8), (8, 16, 8)]


def test_a_damaged_frame_is_found_and_the_others_are_readable(path: Path) -> None:
    flip(path, "appearance", 11)
    with Store(path) as store:
        assert [(row, damaged) for row, damaged in store.check_frames() if damaged] == [(11, ["appearance"])]
        with pytest.raises(StoreError, match="framebank verify"):
            store.read("appearance", [10, 11])
        np.testing.assert_array_equal(store.read("appearance", [10, 12]), maps(40)[[10, 12]])
        ranges = [
            (r.frame_range.start, r.frame_range.stop, r.row)
            for r in store.stored_ranges("appearance", [11])
            if r.frame_range.sequence == "Train/1"
        ]
        assert ranges == [(0, 3, 8), (4, 8, 12)]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.999])
def test_a_truncated_store_is_refused(share: float, path: Path) -> None:
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreError, match=str(path)):
        Store(path)


@given(st.binary(max_size=64), st.floats(0, 1))
def test_changed_bytes_raise_a_store_error_or_nothing(junk: bytes, where: float) -> None:
    path = Path(tempfile.gettempdir()) / f"framebank-fuzz-{os.getpid()}.h5"
    data = bytearray(GOLDEN.read_bytes())
    at = int(where * len(data))
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    try:
        with Store(path) as store:
            list(store.check_frames())
    except StoreError:
        pass
    finally:
        path.unlink()


def test_a_later_format_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as f:
        f.attrs["version"] = 3
    with pytest.raises(StoreError, match=r"format 2 or earlier; got format 3\. Try: update"):
        Store(path)


def test_another_hdf5_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o.h5", "w") as f:
        f["x"] = 1
    with pytest.raises(StoreError, match="not a store"):
        Store(tmp_path / "o.h5")


def test_file_that_is_not_hdf5_needs_another_path_not_repair(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Read me")
    with pytest.raises(StoreError, match=r"not a store.*Try: --store FILE\.h5; or, if this was a store"):
        Store(tmp_path / "README.md")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_nothing_outside_the_file_is_read(kind: str, path: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    with h5py.File(path, "r+") as f:
        if kind == "external link":
            f["frames/other"] = h5py.ExternalLink("secret.h5", "/x")
        elif kind == "soft link":
            f["frames/other"] = h5py.SoftLink("/frames/appearance")
        elif kind == "external data":
            f.create_dataset("frames/other", (100,), "u1", external=[(str(tmp_path / "secret"), 0, 100)])
        else:
            virtual = h5py.VirtualLayout((4,), "u1")
            virtual[:] = h5py.VirtualSource("secret.h5", "x", (4,))
            f.create_virtual_dataset("frames/other", virtual)
    with pytest.raises(StoreError, match="outside"):
        Store(path)


def test_a_missing_store_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="framebank extract"):
        Store(tmp_path / "none.h5")


def test_a_failed_write_leaves_the_old_store_and_no_temporary_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="do not make up"):
        incomplete = StreamContent(StreamInfo((1,), "float16"), [[] for _ in clips()])
        save_store(path, StoreContent(Header(RECIPE), clips(), {"appearance": incomplete}), packed=True)
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["s.h5"]


def test_a_store_that_could_not_be_opened_is_not_written(path: Path) -> None:
    before = path.read_bytes()
    with Store(path) as store:
        content = StoreContent.of(store)
    labels = (Label(7, {"ego_speed": 1e308}),)
    content = replace(content, sequences=[replace(s, labels=labels) for s in content.sequences])
    with pytest.raises(
        DataError, match=r"s\.h5: the labels cannot be stored; expected numbers .* got 1e\+308 in row 0"
    ):
        save_store(path, content, packed=True)
    assert path.read_bytes() == before


def test_an_existing_file_is_never_opened_for_writing(path: Path) -> None:
    with pytest.raises(FileExistsError):
        ShardWriter(path, RECIPE, [], {})


def test_a_store_is_assembled_from_the_valid_ranges_of_shards_in_any_order(tmp_path: Path) -> None:
    sequences, values = clips(3), maps(24)
    info = StreamInfo((3, 5, 7), "float16")
    shards = {
        "a": ([full_range(sequences[1]), full_range(sequences[0])], [*range(8, 16), *range(8)], [1]),
        "b": ([full_range(sequences[2])], [*range(16, 24)], [0]),
    }
    for name, (ranges, rows, valid) in shards.items():
        with atomic_write(tmp_path / f"{name}.h5") as temporary:
            writer = ShardWriter(temporary, RECIPE, ranges, {"appearance": info})
            writer.write({"appearance": values[rows]}, [jpeg(r) for r in rows])
            writer.finish(valid)
    stored = [r for name in shards for r in shard_ranges(tmp_path / f"{name}.h5", RECIPE.fingerprint)]
    assert [r.frame_range.sequence for r in stored] == ["Train/0", "Train/2"]
    assert shard_ranges(tmp_path / "a.h5", "another fingerprint") == []
    complete = [sequences[0], sequences[2]]
    content = StreamContent(info, [[r] for r in stored])
    save_store(tmp_path / "s.h5", StoreContent(Header(RECIPE), complete, {"appearance": content}), packed=True)
    with Store(tmp_path / "s.h5") as store:
        np.testing.assert_array_equal(store.read("appearance", range(16)), values[[*range(8), *range(16, 24)]])
        assert store.thumbnail(8) == jpeg(16)


def golden_clips() -> list[FrameSequence]:
    """`clips` with a camera, a region and uneven times."""
    first, second, *others = clips()
    times = tuple(i * 0.05 + 0.001 * (i % 2) for i in range(8))
    camera = Camera(714.0, 710.0, 675.0, 376.0, 1.8, 340.0)
    return [replace(first, times=times), replace(second, camera=camera, region=(-10, 0, 600, 400)), *others]


def golden_tracks() -> dict[str, Track]:
    boxes = np.arange(32.0).reshape(8, 4)
    return {"b": Track(boxes, np.linspace(0, 1, 8)), "a": Track(boxes[::-1], np.ones(8))}


def test_the_golden_store_of_format_1_can_be_read() -> None:
    assert GOLDEN.stat().st_size < 200_000
    with Store(GOLDEN) as store:
        assert same_sequences(store.sequences, clips())
        np.testing.assert_array_equal(store.read("appearance", range(40)), maps(40))
        assert store.fingerprint == RECIPE.fingerprint
        top = store.top()
        assert top is not None and top.architecture == "{}"
        assert store.thumbnail(12) == jpeg(12)


@pytest.mark.parametrize("form", ["packed", "index"])
def test_the_golden_stores_of_format_2_can_be_read(form: str) -> None:
    path = GOLDEN.with_name(f"format2-{form}.h5")
    with Store(path) as store:
        assert store.size < 200_000 and store.is_packed == (form == "packed")
        clips = golden_clips()  # a store has a region for every sequence if one has it
        assert same_sequences(store.sequences, [replace(c, region=c.visible_region) for c in clips])
        np.testing.assert_array_equal(store.read("appearance", range(40)), maps(40))
        np.testing.assert_array_equal(store.read("motion", [7, 31]), maps(40)[[7, 31], :, 0, 0])
        np.testing.assert_array_equal(store.read("cells", [39, 1]), [[78, 79], [2, 3]])
        np.testing.assert_array_equal(store.basis("cells")["mean"], np.ones(3))
        assert store.header.trunk == {"parameters": 7} and store.fingerprint == RECIPE.fingerprint
        top = store.top()
        assert top is not None and top.architecture == "{}"
        np.testing.assert_array_equal(top.weights[0], [[0, 1, 2], [3, 4, 5]])
        assert top.weights[1].shape == () and top.weights[1] == 7
        tracks = store.tracks()
        assert tracks.keys() == golden_tracks().keys()
        np.testing.assert_array_equal(tracks["b"].boxes, golden_tracks()["b"].boxes)
        np.testing.assert_array_equal(tracks["a"].confidence, np.ones(8))
        assert store.thumbnail(12) == jpeg(12)
        assert all(not damaged for _, damaged in store.check_frames())
