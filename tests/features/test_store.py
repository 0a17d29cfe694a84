"""The store: what goes in comes out, damage is found, strangers' files are refused, nothing half-written stands."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features._common.atomic import atomic_write
from features.errors import StoreError
from features.frame_ranges import covering_ranges, full_range
from features.sequences import FrameSequence, Label, same_sequences
from features.store import Header, Store, StreamInfo, TopRecord, consecutive_runs
from features.store_writer import ShardWriter, StreamContent, assemble_store, shard_ranges
from tests.helpers import RECIPE, flip, jpeg, write_store

GOLDEN = Path(__file__).parents[1] / "data" / "format1.h5"


def clips(count: int = 5, length: int = 8) -> list[FrameSequence]:
    """Sequences with all kinds of labels: known, unknown, with and without box."""
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
def made(tmp_path: Path) -> tuple[Path, np.ndarray]:
    values = maps(40)
    top = TopRecord("{" + "x" * 100_000 + "}", [np.arange(6.0).reshape(2, 3), np.float32([1, 2])])
    return write_store(tmp_path / "s.h5", clips(), {"appearance": values}, top=top, trunk={"parameters": 7}), values


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(dtype: str, tmp_path: Path) -> None:
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


def test_a_store_without_any_label(tmp_path: Path) -> None:
    bare = [FrameSequence("a", "test", 8, 20.0, (4, 3), "d")]
    with Store(write_store(tmp_path / "s.h5", bare, {"appearance": maps(8)})) as store:
        assert same_sequences(store.sequences, bare)


def test_top_and_trunk_come_back(made: tuple[Path, np.ndarray]) -> None:
    with Store(made[0]) as store:
        top = store.top()
        assert top is not None
        assert len(top.architecture) == 100_002
        np.testing.assert_array_equal(top.weights[0], [[0, 1, 2], [3, 4, 5]])
        assert store.header.trunk["parameters"] == 7


def test_every_frame_is_a_checksummed_chunk(made: tuple[Path, np.ndarray]) -> None:
    with h5py.File(made[0]) as f:
        data = f["frames/appearance"]
        assert data.chunks == (1, 3, 5, 7)
        assert data.fletcher32


@given(st.lists(st.integers(0, 20), max_size=30))
def test_runs_are_the_rows_again(rows: list[int]) -> None:
    found = consecutive_runs(np.array(rows, np.int64))
    assert [at + i for _, at, n in found for i in range(n)] == rows
    assert [place for place, _, _ in found] == list(np.cumsum([0, *[n for *_, n in found]])[:-1])


def test_windows_are_read_in_one_piece_each() -> None:
    rows = np.concatenate([np.arange(8) + 80, np.arange(8) + 16])
    assert consecutive_runs(rows) == [(0, 80, 8), (8, 16, 8)]


def test_a_damaged_frame_is_found_and_the_others_still_read(made: tuple[Path, np.ndarray]) -> None:
    path, values = made
    flip(path, "appearance", 11)
    with Store(path) as store:
        assert [(row, faults) for row, faults in store.damaged() if faults] == [(11, ["appearance"])]
        with pytest.raises(StoreError, match="verify"):
            store.read("appearance", [10, 11])
        np.testing.assert_array_equal(store.read("appearance", [10, 12]), values[[10, 12]])
        held = [
            (h.frame_range.start, h.frame_range.stop, h.row)
            for h in store.held([11])
            if h.frame_range.sequence == "Train/1"
        ]
        assert held == [(0, 3, 8), (4, 8, 12)]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_store_is_refused(share: float, made: tuple[Path, np.ndarray]) -> None:
    path = made[0]
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreError, match=str(path)):
        Store(path)


@given(st.binary(max_size=64), st.floats(0, 1))
def test_bytes_changed_anywhere_never_crash(junk: bytes, where: float) -> None:
    path = Path(tempfile.gettempdir()) / f"framebank-fuzz-{os.getpid()}.h5"
    data = bytearray(GOLDEN.read_bytes())
    at = int(where * len(data))
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    try:
        with Store(path) as store:
            list(store.damaged())
    except StoreError:
        pass
    finally:
        path.unlink()


def test_a_later_format_is_refused(made: tuple[Path, np.ndarray]) -> None:
    with h5py.File(made[0], "r+") as f:
        f.attrs["version"] = 2
    with pytest.raises(StoreError, match=r"format 1 or earlier; got format 2\. Try: update"):
        Store(made[0])


def test_another_hdf5_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "o.h5", "w") as f:
        f["x"] = 1
    with pytest.raises(StoreError, match="not a store"):
        Store(tmp_path / "o.h5")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_nothing_outside_the_file_is_read(kind: str, made: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret" * 100)
    with h5py.File(made[0], "r+") as f:
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
        Store(made[0])


def test_missing_store_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="make features"):
        Store(tmp_path / "none.h5")


def test_a_failed_write_leaves_the_old_store_and_no_litter(made: tuple[Path, np.ndarray]) -> None:
    path, before = made[0], made[0].read_bytes()
    with pytest.raises(RuntimeError, match="do not make up"):
        assemble_store(
            path,
            Header(RECIPE),
            clips(),
            {"appearance": StreamContent(StreamInfo((1,), "float16"), [[] for _ in clips()])},
            None,
        )
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["s.h5"]


def test_an_existing_file_is_never_opened_for_writing(made: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(FileExistsError):
        ShardWriter(made[0], RECIPE, [], {})


def test_assembly_keeps_unsound_pieces_out_and_order_free(tmp_path: Path) -> None:
    """Pieces of one sequence from two shards and the older store, some rows of a shard not sound."""
    wanted, values = clips(3), maps(24)
    info = {"appearance": StreamInfo((3, 5, 7), "float16")}
    first, second = [full_range(wanted[1]), full_range(wanted[0])], [full_range(wanted[2])]
    for name, pieces, rows, sound in (("a", first, [*range(8, 16), *range(8)], [1]), ("b", second, range(16, 24), [0])):
        with atomic_write(tmp_path / f"{name}.h5") as temporary:
            writer = ShardWriter(temporary, RECIPE, pieces, info)
            writer.write({"appearance": values[list(rows)]}, [jpeg(r) for r in rows])
            writer.close(sound)
    held = [h for name in "ab" for h in shard_ranges(tmp_path / f"{name}.h5", RECIPE.fingerprint)]
    assert [h.frame_range.sequence for h in held] == ["Train/0", "Train/2"]
    assert shard_ranges(tmp_path / "a.h5", "another fingerprint") == []
    chosen = [wanted[0], wanted[2]]
    parts = [covering_ranges(full_range(s), [h for h in held if h.frame_range.sequence == s.id]) for s in chosen]
    assemble_store(
        tmp_path / "s.h5", Header(RECIPE), chosen, {"appearance": StreamContent(info["appearance"], parts)}, None
    )
    with Store(tmp_path / "s.h5") as store:
        np.testing.assert_array_equal(store.read("appearance", range(16)), values[[*range(8), *range(16, 24)]])
        assert store.thumbnail(8) == jpeg(16)


def test_the_golden_store_of_format_1_opens_for_ever() -> None:
    assert GOLDEN.stat().st_size < 200_000
    with Store(GOLDEN) as store:
        assert same_sequences(store.sequences, clips())
        np.testing.assert_array_equal(store.read("appearance", range(40)), maps(40))
        assert store.fingerprint == RECIPE.fingerprint
        top = store.top()
        assert top is not None and top.architecture == "{}"
        assert store.thumbnail(12) == jpeg(12)
