"""Repair: what the images, the config and the weights give back equals what was there; nothing sound is taken out."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.config import Config
from features.errors import BadInputs, StoreError
from features.sequences import same_sequences
from features.store import Store
from features.verification import TOLERATED, find_damage
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import ExtractionResult, extract
from stage2_temporal.data.derived_streams import derive_streams, parse_stream_name
from tests.extraction_helpers import extraction_config, store_content
from tests.helpers import write_clips


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(build_trunk(config_of(Path("unused"))), 8)


def config_of(data: Path, packed_gb: float = 2.0) -> Config:
    config = extraction_config(data, packed_gb=packed_gb, shard=20)
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"top": True})})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "clips", {"Train": 2, "Validation": 2, "Test": 2})


@pytest.fixture(scope="module")
def sound(data: Path, tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> dict[str, Path]:
    """A store of each form, with a top, tracks and a derived stream without a basis."""
    stores = {}
    for form, packed_gb in (("packed", 2.0), ("index", 0.0)):
        path = tmp_path_factory.mktemp(form) / "s.h5"
        config = config_of(data, packed_gb)
        extract(config, path, scan(config.data), engine=engine)
        derive_streams(path, [parse_stream_name("grid2x2")])
        stores[form] = path
    return stores


@pytest.fixture(params=["packed", "index"])
def store(request: pytest.FixtureRequest, sound: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(sound[request.param].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "s.h5"


@pytest.fixture
def repair(data: Path, engine: Engine) -> Callable[..., list[ExtractionResult]]:
    def repair(path: Path, catalogue: Catalogue | None = None) -> list[ExtractionResult]:
        config, results = config_of(data, 2.0), []
        while damage := find_damage(path):
            assert len(results) < 2, damage.lines
            results.append(extract(config, path, catalogue or scan(config.data), damage=damage, engine=engine))
            with Store(path, TOLERATED) as store:
                names = sorted({*results[-1].dropped, *store.partial_streams})
            derive_streams(path, [parse_stream_name(name) for name in names])
        return results

    return repair


def chunk_of(path: Path, name: str, row: int = 0) -> tuple[int, int]:
    """Where the chunk with a row of a dataset is in a file."""
    with h5py.File(path) as f:
        data = f[name]
        info = data.id.get_chunk_info_by_coord((row // data.chunks[0] * data.chunks[0], *[0] * (data.ndim - 1)))
    return info.byte_offset, info.size


def spoil(path: Path, name: str, row: int = 0, count: int = 3) -> None:
    """Change some bytes of the chunk with a row of a dataset."""
    first, size = chunk_of(path, name, row)
    raw = bytearray(path.read_bytes())
    rng = random.Random(name)
    for at in rng.sample(range(first, first + size), min(count, size)):
        raw[at] ^= rng.randrange(1, 256)
    path.write_bytes(raw)


def file_with(path: Path, stream: str) -> Path:
    """The store's first file with frames of a stream."""
    with h5py.File(path) as f:
        if "frames" in f:
            return path
    with Store(path) as store:
        return store.files.paths[int(store.files.files_of(stream)[0])]


def assert_restored(path: Path, sound: Path) -> None:
    assert not find_damage(path)
    with Store(path) as a, Store(sound) as b:
        assert same_sequences(a.sequences, b.sequences)
        assert a.header == b.header
        assert a.streams == b.streams
        assert a.is_packed == b.is_packed
        for name in b.streams:
            np.testing.assert_array_equal(a.read(name, range(a.frames)), b.read(name, range(b.frames)))
        assert [a.thumbnail(i) for i in range(a.frames)] == [b.thumbnail(i) for i in range(b.frames)]
        tops = a.top(), b.top()
        assert tops[0] is not None and tops[1] is not None
        assert tops[0].architecture == tops[1].architecture
        for one, other in zip(tops[0].weights, tops[1].weights, strict=True):
            np.testing.assert_array_equal(one, other)
        tracks = a.tracks(), b.tracks()
        assert list(tracks[0]) == list(tracks[1])
        for key, track in tracks[0].items():
            np.testing.assert_array_equal(track.boxes, tracks[1][key].boxes)
            np.testing.assert_array_equal(track.confidence, tracks[1][key].confidence)
    if Store(path).is_packed:
        assert store_content(path) == store_content(sound)


TABLES = ["labels/targets", "tracks/box", "top/weights/1", "sequences/fps", "header"]
MORE_TABLES = [
    "labels/sequence", "labels/box", "tracks/key", "top/architecture",
    "sequences/id", "sequences/digest", "sequences/length", "sequences/first",
]  # fmt: skip


@pytest.mark.parametrize("table", [*TABLES, *(pytest.param(name, marks=pytest.mark.soak) for name in MORE_TABLES)])
def test_a_damaged_table_is_restored(
    table: str, store: Path, sound: dict[str, Path], repair: Callable[..., list[ExtractionResult]]
) -> None:
    spoil(store, table)
    assert find_damage(store).parts
    results = repair(store)
    with Store(store) as opened:
        assert_restored(store, sound["packed" if opened.is_packed else "index"])
        if table.split("/")[0] in ("labels", "tracks", "top"):
            assert sum(r.extracted for r in results) == 0


@pytest.mark.parametrize("part", ["appearance", "motion", "grid2x2"])
@pytest.mark.parametrize("row", [pytest.param(0, marks=pytest.mark.soak), 11, pytest.param(47, marks=pytest.mark.soak)])
def test_damaged_frames_are_restored(
    part: str, row: int, store: Path, sound: dict[str, Path], repair: Callable[..., list[ExtractionResult]]
) -> None:
    with Store(store) as opened:
        form = "packed" if opened.is_packed else "index"
        [(_, path, file_row, _)] = opened.files.places(part, row, 1)
    spoil(path, f"frames/{part}", file_row)
    assert find_damage(store).rows == {row: [part]}
    repair(store)
    assert_restored(store, sound[form])


@pytest.mark.parametrize("streams", [("appearance", "motion"), ("motion", "appearance")])
@pytest.mark.parametrize("row", [pytest.param(7, marks=pytest.mark.soak), 10, pytest.param(15, marks=pytest.mark.soak)])
def test_streams_damaged_in_neighbouring_frames_are_both_restored(
    streams: tuple[str, str],
    row: int,
    store: Path,
    sound: dict[str, Path],
    repair: Callable[..., list[ExtractionResult]],
) -> None:
    with Store(store) as opened:
        form = "packed" if opened.is_packed else "index"
        places = [next(iter(opened.files.places(name, row + i, 1))) for i, name in enumerate(streams)]
    for name, (_, path, file_row, _) in zip(streams, places, strict=True):
        spoil(path, f"frames/{name}", file_row)
    assert find_damage(store).rows == {row + i: [name] for i, name in enumerate(streams)}
    [result] = repair(store)
    assert not result.missing
    assert_restored(store, sound[form])


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
def test_several_damaged_parts_are_all_named_and_restored(
    seed: int, store: Path, sound: dict[str, Path], repair: Callable[..., list[ExtractionResult]]
) -> None:
    """Tables, frames and thumbnails at once; a damaged table that hides frames and weights is restored before them."""
    rng = random.Random(seed)
    tables = rng.sample(["labels/targets", "tracks/box", "top/weights/1", "labels/frame", "tracks/confidence"], 2)
    hiding = rng.sample(["header", "sequences/id", "sequences/fps"], seed % 2)
    with Store(store) as opened:
        form = "packed" if opened.is_packed else "index"
        rows = {row: rng.choice(["appearance", "motion", "grid2x2"]) for row in rng.sample(range(48), 3)}
        places = {row: next(iter(opened.files.places(name, row, 1))) for row, name in rows.items()}
    for row, (_, path, file_row, _) in places.items():
        spoil(path, f"frames/{rows[row]}", file_row)
    spoil(file_with(store, "appearance"), "thumbnails/data")
    for name in (*tables, *hiding):
        spoil(store, name)
    damage = find_damage(store)
    named = {name.split("/")[0] for name in (*tables, *hiding)}
    assert damage.parts.keys() == (named - {"top"} if hiding else named)
    if not hiding:
        assert all(name in damage.rows[row] for row, name in rows.items())
    assert not any(result.missing for result in repair(store))
    assert_restored(store, sound[form])


@pytest.mark.parametrize("name", ["thumbnails/data", "thumbnails/offset"])
def test_damaged_thumbnails_are_restored(
    name: str, store: Path, sound: dict[str, Path], repair: Callable[..., list[ExtractionResult]]
) -> None:
    with Store(store) as opened:
        form = "packed" if opened.is_packed else "index"
    spoil(file_with(store, "appearance"), name)
    assert find_damage(store)
    repair(store)
    assert_restored(store, sound[form])


@pytest.mark.parametrize("name", ["runs/appearance/shard_row", "shards/size", "shards/name"])
def test_an_index_that_does_not_know_its_shards_is_restored(
    name: str, sound: dict[str, Path], tmp_path: Path, repair: Callable[..., list[ExtractionResult]]
) -> None:
    shutil.copytree(sound["index"].parent, tmp_path, dirs_exist_ok=True)
    spoil(tmp_path / "s.h5", name)
    [result] = repair(tmp_path / "s.h5")
    assert result.extracted == result.flows == 0
    assert_restored(tmp_path / "s.h5", sound["index"])


@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_an_unusable_shard_is_named_once_and_restored(
    kind: str, sound: dict[str, Path], tmp_path: Path, repair: Callable[..., list[ExtractionResult]]
) -> None:
    shutil.copytree(sound["index"].parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "s.h5"
    with Store(path) as store:
        shard = file_with(path, "motion")
        held = int((store.files.files_of("motion") == store.files.files_of("motion")[0]).sum())
    if kind == "missing":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size // 2)
    lines = find_damage(path).lines
    assert len(lines) == 2 and shard.name in lines[0] and f"({held} frames of motion)" in lines[0], lines
    repair(path)
    assert_restored(path, sound["index"])


def test_shards_under_each_others_names_are_found_and_restored(
    sound: dict[str, Path], tmp_path: Path, repair: Callable[..., list[ExtractionResult]]
) -> None:
    shutil.copytree(sound["index"].parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "s.h5"
    with Store(path) as store:
        one, other = (store.files.paths[i] for i in dict.fromkeys(store.files.files_of("appearance").tolist()[::30]))
    content = [file.read_bytes() for file in (other, one)]
    for file, data in zip((one, other), content, strict=True):
        file.write_bytes(data)
    with h5py.File(path, "r+", libver=("v110", "v110")) as f:  # as if both were equally large
        names = [name.decode() for name in f["shards/name"][:]]
        for file in (one, other):
            f["shards/size"][names.index(file.name)] = file.stat().st_size
    what = "another shard under this one's name; expected Train/1 frame 0; got Validation/"
    with Store(path) as store, pytest.raises(StoreError, match=what):
        store.read("appearance", range(1))
    assert f"{one.name}: appearance: another shard" in "".join(find_damage(path).lines)
    repair(path)
    assert_restored(path, sound["index"])


def test_a_file_whose_root_is_damaged_is_restored(
    store: Path, sound: dict[str, Path], repair: Callable[..., list[ExtractionResult]]
) -> None:
    with Store(store) as opened:
        form = "packed" if opened.is_packed else "index"
    raw = bytearray(store.read_bytes())
    raw[60:70] = b"damaged..."
    store.write_bytes(raw)
    assert "file" in find_damage(store).parts
    results = repair(store)
    assert sum(r.extracted for r in results) == (48 if form == "packed" else 0)
    with Store(store) as a, Store(sound[form]) as b:
        assert same_sequences(a.sequences, b.sequences)
        for name in set(b.streams) - {"grid2x2"}:
            np.testing.assert_array_equal(a.read(name, range(48)), b.read(name, range(48)))


def test_no_sound_sequence_is_taken_out(
    store: Path, data: Path, sound: dict[str, Path], repair: Callable[..., list[ExtractionResult]]
) -> None:
    spoil(store, "top/weights/1")
    catalogue = scan(config_of(data).data)
    fewer = replace(catalogue, clips=catalogue.clips[:3], faults=("a damaged image",))
    with pytest.raises(BadInputs, match="a damaged image"):
        repair(store, fewer)
    assert not find_damage(store)
    with Store(store) as a, Store(sound["packed"]) as b:
        assert sorted(s.id for s in a.sequences) == sorted(s.id for s in b.sequences)
        assert a.frames == b.frames and len(a.tracks()) == len(b.tracks())
