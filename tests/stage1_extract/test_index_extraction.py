"""Extraction into a store of shards: the same content as a packed one, and each change writes only what is new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from features.frame_files import shard_folder
from features.sequences import same_sequences
from features.store import Store
from framebank.cli import main
from stage1_extract.datasets import scan
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import ExtractionResult, extract
from stage2_temporal.data.derived_streams import derive_streams, parse_stream_name
from tests.extraction_helpers import CONFIG, extraction_config
from tests.helpers import flip, write_clips


@pytest.fixture
def run(clips: Path, tmp_path: Path, engine: Engine) -> Callable[..., ExtractionResult]:
    """Extract `clips` into an index under `tmp_path`."""

    def run(store: str = "s.h5", packed_gb: float = 0.0, **extract_settings: object) -> ExtractionResult:
        config = extraction_config(clips, packed_gb=packed_gb, **extract_settings)
        return extract(config, tmp_path / store, scan(config.data), engine=engine)

    return run


def shards(path: Path) -> dict[Path, tuple[int, int]]:
    """Each shard with its inode and time of modification, which show whether it was written again."""
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in shard_folder(path).glob("[!.]*")}


def assert_equal(path: Path, other: Path) -> None:
    with Store(path) as a, Store(other) as b:
        assert same_sequences(a.sequences, b.sequences)
        assert a.streams == b.streams
        for name in a.streams:
            np.testing.assert_array_equal(a.read(name, range(a.frames)), b.read(name, range(b.frames)))
            for key, values in a.basis(name).items():
                np.testing.assert_array_equal(values, b.basis(name)[key])
        assert [a.thumbnail(i) for i in range(a.frames)] == [b.thumbnail(i) for i in range(b.frames)]
        tracks = b.tracks()
        assert a.tracks().keys() == tracks.keys()
        for key, track in a.tracks().items():
            np.testing.assert_array_equal(track.boxes, tracks[key].boxes)
        assert (a.recipe, a.complete, a.missing) == (b.recipe, b.complete, b.missing)


def test_an_index_has_the_content_of_a_packed_store(run: Callable[..., ExtractionResult], tmp_path: Path) -> None:
    assert run("packed.h5", packed_gb=1.0).extracted == 80
    assert run().extracted == 80
    assert not shard_folder(tmp_path / "packed.h5").exists()
    assert len(shards(tmp_path / "s.h5")) == 2 * 5  # 80 frames in groups of 16, two streams
    assert_equal(tmp_path / "s.h5", tmp_path / "packed.h5")
    index = (tmp_path / "s.h5").stat()
    assert run().extracted == 0
    assert (tmp_path / "s.h5").stat().st_mtime_ns == index.st_mtime_ns


def test_new_clips_other_labels_and_a_larger_limit_copy_no_frame(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    run()
    before = shards(tmp_path / "s.h5")
    write_clips(clips / "more", {"Train": 1})
    shutil.move(clips / "more/Train/Train/1", clips / "Train/Train/3.5")
    assert run().extracted == 8
    after = shards(tmp_path / "s.h5")
    assert before.items() < after.items() and len(after) == len(before) + 2
    for annotation in clips.rglob("annotation.json"):
        annotation.write_text(annotation.read_text().replace('"velocity": [', '"velocity": [1'))
    assert run(packed_gb=1.0).extracted == 0
    assert shards(tmp_path / "s.h5") == after
    run("fresh.h5")
    assert_equal(tmp_path / "s.h5", tmp_path / "fresh.h5")


def test_a_packed_store_that_outgrows_the_limit_becomes_a_shard(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    run(packed_gb=1.0)
    packed = (tmp_path / "s.h5").stat()
    shutil.copytree(clips / "Train/Train/1", clips / "Train/Train/7")
    assert run().extracted == 8
    assert (packed.st_ino, packed.st_mtime_ns) in shards(tmp_path / "s.h5").values()
    run("fresh.h5")
    assert_equal(tmp_path / "s.h5", tmp_path / "fresh.h5")


def test_frames_of_deleted_clips_go_once_all_of_a_shard_is_unused(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    run()
    for i in (1, 2, 3):
        shutil.rmtree(clips / f"Train/Train/{i}")
    before = shards(tmp_path / "s.h5")
    assert run().extracted == 0
    after = shards(tmp_path / "s.h5")
    assert after.items() < before.items() and len(after) == len(before) - 2  # the shards of clips 1 and 2
    run("fresh.h5")
    assert_equal(tmp_path / "s.h5", tmp_path / "fresh.h5")


@pytest.mark.parametrize("stream", ["grid2x2", "change1x2lag2", "pca3", "motion.pooled"])
def test_a_derived_stream_is_computed_for_new_clips_alone(
    stream: str, run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, derived = tmp_path / "s.h5", parse_stream_name(stream)
    run()
    assert derive_streams(store, [derived]) == [stream]
    shutil.copytree(clips / "Test/Test/1", clips / "Test/Test/1.5")
    shutil.copytree(clips / "Validation/Validation/2", clips / "Validation/Validation/2.5")
    assert run().notes == []
    with Store(store) as opened:
        assert stream not in opened.streams and stream in opened.partial_streams
    read, rows = Store.read, []
    monkeypatch.setattr(Store, "read", lambda self, name, r: rows.extend(r) or read(self, name, r))
    before = shards(store)
    assert derive_streams(store, [derived]) == [stream]
    assert len(rows) == 16
    assert before.items() < shards(store).items() and len(shards(store)) == len(before) + 1
    monkeypatch.undo()
    run("fresh.h5")
    derive_streams(tmp_path / "fresh.h5", [derived])
    assert_equal(store, tmp_path / "fresh.h5")


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["flipped", "missing", "truncated", "not HDF5"])
def test_repair_mends_a_damaged_shard(
    kind: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store, fresh = tmp_path / "c.toml", tmp_path / "s.h5", tmp_path / "fresh.h5"
    config.write_text(CONFIG.format(data=clips))
    options = ["--config", str(config), "--extract.packed_gb", "0", "--store"]
    assert main(["extract", *options, str(fresh)]) == main(["extract", *options, str(store)]) == 0
    with Store(store) as opened:
        _, shard, row, _ = next(opened.files.places("appearance", 19, 1))
    if kind == "flipped":
        flip(shard, "appearance", row)
    elif kind == "missing":
        shard.unlink()
    elif kind == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        shard.write_bytes(b"x" * shard.stat().st_size)
    capsys.readouterr()
    assert main(["verify", "--store", str(store)]) == 2
    shown = capsys.readouterr().err
    if kind == "flipped":
        assert "Train/3 frame 3: appearance" in shown
    else:  # named once, not with each of its frames
        assert shown.count(shard.name) == 1 and "frames of appearance)" in shown and "Train/3 frame 3" not in shown
    passes, call = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, f: passes.append(len(f)) or call(self, f))
    assert main(["repair", *options, str(store)]) == 0
    assert sum(passes) == (1 if kind == "flipped" else 16)
    assert main(["verify", "--store", str(store)]) == 0
    assert_equal(store, fresh)


def test_pack_and_unpack_say_what_they_made(
    run: Callable[..., ExtractionResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    run("fresh.h5")
    path = tmp_path / "s.h5"
    assert main(["info", "--store", str(path)]) == 0
    assert " in 10 shards and an index  complete" in capsys.readouterr().out
    assert main(["pack", "--store", str(path)]) == 0
    assert "s.h5: a single file of" in capsys.readouterr().out
    assert not shard_folder(path).exists()
    assert_equal(path, tmp_path / "fresh.h5")
    assert main(["unpack", "--store", str(path)]) == 0
    assert "s.h5: an index; the frames are in" in capsys.readouterr().out
    assert_equal(path, tmp_path / "fresh.h5")
    with h5py.File(path) as f:
        assert "frames" not in f
