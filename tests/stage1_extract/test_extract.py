"""Extraction: incremental, resumable to the same bytes, with damaged files named. Real JPEGs, backbone and HDF5."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from features.errors import BadInputs, DataError, StoreError
from features.shards import ShardWriter
from features.store import Store
from stage1_extract import extract as extract_module
from stage1_extract import frame_loader
from stage1_extract.__main__ import main
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import ExtractionResult, extract
from tests.extraction_helpers import CONFIG, extraction_config, store_content
from tests.helpers import ROOT, flip, picture, write_clips


@pytest.fixture
def run(clips: Path, tmp_path: Path, engine: Engine) -> Callable[..., ExtractionResult]:
    """Extract `clips` into a store under `tmp_path`."""

    def run(store: str = "s.h5", **extract_settings: object) -> ExtractionResult:
        config = extraction_config(clips, **extract_settings)
        return extract(config, tmp_path / store, scan(config.data), engine=engine)

    return run


def test_a_second_run_extracts_nothing(
    run: Callable[..., ExtractionResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run().extracted == 80
    before = (tmp_path / "s.h5").stat()
    written = (before.st_ino, before.st_size, before.st_mtime_ns)
    monkeypatch.setattr("stage1_extract.backbone.trunk.build_trunk", lambda _: pytest.fail("a network was loaded"))
    assert run().extracted == 0
    after = (tmp_path / "s.h5").stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == written
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["data", "s.h5"]


def test_maps_and_labels_match_the_files(run: Callable[..., ExtractionResult], tmp_path: Path, engine: Engine) -> None:
    run()
    with Store(tmp_path / "s.h5") as store:
        assert store.complete
        assert [s.id for s in store.sequences] == [
            *(f"Train/{i}" for i in range(1, 7)), "Validation/1", "Validation/2", "Test/1", "Test/2",
        ]  # fmt: skip
        clip = store.sequences[2]
        assert [dict(label.targets) for label in clip.labels] == [{"vx": 1.5, "vy": -0.3}, {"ego_speed": 8.0}]
        config = extraction_config(tmp_path / "data")
        source = scan(config.data).clips[2].source
        frames = np.stack([frame_loader.resize_frame(image, config.frames) for image in source.read(0, 8)])
        np.testing.assert_array_equal(store.read("appearance", range(16, 24)), engine(frames)["appearance"])
        assert store.thumbnail(16) == frame_loader.encode_thumbnail(frames[0], "rgb")


def test_only_what_is_new_or_changed_is_extracted(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    run()
    write_clips(tmp_path / "more", {"Train": 8})
    shutil.move(tmp_path / "more/Train/Train/8", clips / "Train/Train/8")
    shutil.copy(clips / "Train/Train/1/imgs/001.jpg", clips / "Train/Train/5/imgs/004.jpg")
    shutil.rmtree(clips / "Train/Train/2")
    assert run().extracted == 16
    run("fresh.h5")
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_changed_labels_cost_no_extraction(run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path) -> None:
    run()
    (clips / "Train/Train/1/annotation.json").write_text(json.dumps([{"velocity": [9.0, 1.0]}]))
    assert run().extracted == 0
    with Store(tmp_path / "s.h5") as store:
        assert dict(store.sequences[0].labels[0].targets) == {"vx": 9.0, "vy": 1.0}


def test_another_recipe_is_refused_and_both_values_are_named(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    run()
    before = (tmp_path / "s.h5").read_bytes()
    config = extraction_config(clips, dtype="float32")
    with pytest.raises(StoreError, match=r"dtype: float16, not float32.*--store"):
        extract(config, tmp_path / "s.h5", scan(config.data))
    assert (tmp_path / "s.h5").read_bytes() == before


def stream_names(shard: Path) -> list[str]:
    with h5py.File(shard) as f:
        return list(f["frames"])


def test_an_interruption_loses_no_finished_shard(
    run: Callable[..., ExtractionResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("fresh.h5")
    writes, write = [], ShardWriter.write

    def interrupted_write(self: ShardWriter, maps: dict[str, np.ndarray], thumbnails: list[bytes]) -> None:
        writes.append(len(thumbnails))
        if len(writes) == 16:
            raise KeyboardInterrupt
        write(self, maps, thumbnails)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "write", interrupted_write)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (tmp_path / "s.h5").exists()
    assert len(list((tmp_path / "s.h5.shards").iterdir())) == 2 * 3  # a shard a stream
    assert run().extracted == 80 - 3 * 16
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_verify_names_the_damaged_frame_and_repair_extracts_only_it(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = tmp_path / "c.toml", tmp_path / "s.h5"
    config.write_text(CONFIG.format(data=clips))
    options = ["--config", str(config), "--store", str(store)]
    assert main(["extract", *options]) == 0
    before = store_content(store)
    flip(store, "appearance", 19)
    assert main(["verify", *options]) == 2
    assert "Train/3 frame 3: appearance damaged" in capsys.readouterr().err
    passes, call = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, f: passes.append(len(f)) or call(self, f))
    assert main(["repair", *options]) == 0
    assert passes == [1]
    assert main(["verify", *options]) == 0
    assert store_content(store) == before


def test_a_clip_that_cannot_be_decoded_is_left_out_and_named(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    good = (clips / "Train/Train/4/imgs/005.jpg").read_bytes()
    table = good.index(b"\xff\xc4") + 5  # the Huffman table; headers and end stay valid
    (clips / "Train/Train/4/imgs/005.jpg").write_bytes(good[:table] + b"\xff" * 16 + good[table + 16 :])
    with pytest.raises(BadInputs, match=r"Train/Train/4/imgs/005\.jpg"):
        run()
    with Store(tmp_path / "s.h5") as store:
        assert not store.complete
        assert list(store.missing) == ["Train/4"]
        assert len(store.sequences) == 9
    assert run(skip_damaged=True).frames == 72
    with Store(tmp_path / "s.h5") as store:
        assert store.complete
    (clips / "Train/Train/4/imgs/005.jpg").write_bytes(good)
    assert run().extracted == 8
    run("fresh.h5")
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_errors_found_without_decoding_stop_the_extraction_before_any_work(
    run: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    (clips / "Train/Train/1/imgs/003.jpg").unlink()
    (clips / "Train/Train/2/annotation.json").write_text("{")
    with pytest.raises(BadInputs) as error:
        run()
    assert (
        "Train/1" in str(error.value) and "Train/2" in str(error.value) and "--extract.skip_damaged" in str(error.value)
    )
    assert not (tmp_path / "s.h5").exists()
    assert run(skip_damaged=True).frames == 64


def test_overflow_of_half_precision_is_refused(clips: Path, tmp_path: Path) -> None:
    config = extraction_config(clips)
    trunk = build_trunk(config.model_copy(update={"backbone": config.backbone.model_copy(update={"cut": "conv1_bn"})}))
    trunk.backbone.model.set_weights([w * 1e5 for w in trunk.backbone.model.get_weights()])
    with pytest.raises(DataError, match=r"--extract\.dtype float32"):
        extract(config, tmp_path / "s.h5", scan(config.data), engine=Engine(trunk, 8))


def test_a_second_writer_learns_who_holds_the_lock(run: Callable[..., ExtractionResult], tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with extract_module.exclusive_write_lock(tmp_path / "s.h5"):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(10)
        with pytest.raises(StoreError, match=rf"process {os.getpid()} on .* since"):
            run()
    finally:
        leave.set()
        holder.join()
    assert run().extracted == 80


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_little_disk_space_is_refused_before_any_work(clips: Path, small_disk: Path, engine: Engine) -> None:
    config = extraction_config(clips)
    with pytest.raises(DataError, match="not enough disk space"):
        extract(config, small_disk / "s.h5", scan(config.data), engine=engine)


def test_a_disk_that_fills_up_ends_with_status_2_and_keeps_finished_shards(
    clips: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extract_module, "_check_disk_space", lambda *a: None)
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.format(data=clips))
    assert main(["extract", "--config", str(config), "--store", str(small_disk / "s.h5")]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not (small_disk / "s.h5").exists()
    files = sorted(p.name for p in (small_disk / "s.h5.shards").iterdir())
    assert files and not [name for name in files if name.endswith(".tmp")]


def test_a_read_only_folder_ends_with_status_2(
    clips: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.format(data=clips))
    assert main(["extract", "--config", str(config), "--store", str(small_disk / "s.h5")]) == 2
    assert "read-only" in capsys.readouterr().err


def kill_at_random(clips: Path, tmp_path: Path, kills: int) -> None:
    """Kill the command with SIGKILL at random moments, `kills` times, then let it finish."""
    config, store = tmp_path / "c.toml", tmp_path / "s.h5"
    config.write_text(CONFIG.format(data=clips))
    command = [sys.executable, "-m", "stage1_extract", "extract", "--config", str(config)]
    start = time.monotonic()
    subprocess.run([*command, "--store", str(tmp_path / "fresh.h5")], cwd=ROOT, check=True, capture_output=True)
    duration = time.monotonic() - start
    rng, killed = random.Random(kills), 0
    while killed < kills:
        start = time.monotonic()
        process = subprocess.Popen(
            [*command, "--store", str(store)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.5, 1.0) * duration)  # during the first half Python and TensorFlow start
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        if store.exists():
            with Store(store) as s:  # whatever is under the final name is complete
                assert not [row for row, damaged in s.check_frames() if damaged]
            if process.returncode == 0 and killed < kills:
                store.unlink()
                duration = min(duration, time.monotonic() - start)  # the machine may be less busy now
    subprocess.run([*command, "--store", str(store)], cwd=ROOT, check=True, capture_output=True)
    assert store_content(store) == store_content(tmp_path / "fresh.h5")
    assert not list(tmp_path.glob(".s.h5.*")) and not (tmp_path / "s.h5.shards").exists()


@pytest.mark.soak
def test_an_extraction_killed_at_a_random_moment_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    kill_at_random(write_clips(tmp_path / "data", {"Train": 40}), tmp_path, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_an_extraction_killed_twenty_times_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    kill_at_random(write_clips(tmp_path / "data", {"Train": 300}), tmp_path, 20)


def test_info_describes_the_store(
    run: Callable[..., ExtractionResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert main(["info", "--store", str(tmp_path / "s.h5")]) == 0
    shown = capsys.readouterr().out
    for words in ("MobileNet", "UNTRAINED", "conv_pw_3_relu", "x32 float16", "train", "ego_speed", "20 fps"):
        assert words in shown, words


def test_frames_are_resized_by_cv2() -> None:
    image = picture(3, (100, 70))
    for name, flag in (("cubic", cv2.INTER_CUBIC), ("area", cv2.INTER_AREA)):
        frames = extraction_config(Path("x")).frames.model_copy(update={"interpolation": name, "colour": "bgr"})
        np.testing.assert_array_equal(
            frame_loader.resize_frame(image, frames), cv2.resize(image, (32, 32), interpolation=flag)
        )


def test_a_truncated_shard_is_extracted_again(
    run: Callable[..., ExtractionResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("fresh.h5")
    with monkeypatch.context() as patched:
        patched.setattr(extract_module, "save_store", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run()
    shards = sorted((tmp_path / "s.h5.shards").iterdir())
    truncated = [path for path in shards if stream_names(path) == ["appearance"]][:2]
    for path in truncated:
        os.truncate(path, 1000)
    assert run().extracted == 32
    assert capsys.readouterr().err.count("will be extracted again") == 2
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_a_file_that_changes_after_the_scan_is_refused(clips: Path, tmp_path: Path, engine: Engine) -> None:
    config = extraction_config(clips)
    catalogue = scan(config.data)
    shutil.copy(clips / "Train/Train/1/imgs/001.jpg", clips / "Train/Train/5/imgs/004.jpg")
    with pytest.raises(BadInputs, match=r"Train/5/imgs/004\.jpg: changed since"):
        extract(config, tmp_path / "s.h5", catalogue, engine=engine)
    assert extract(config, tmp_path / "s.h5", scan(config.data), engine=engine).extracted == 8


def test_skipped_errors_are_reported_every_time(clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (clips / "Train/Train/1/imgs/003.jpg").unlink()
    (tmp_path / "c.toml").write_text(CONFIG.format(data=clips))
    options = ["--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]
    for _ in range(2):
        assert main(["extract", *options, "--extract.skip-damaged", "true"]) == 0
        assert "kipped 1" in capfd.readouterr().err
    assert main(["info", *options]) == 0
    assert "imgs: no frame 3" in capfd.readouterr().out


def test_a_link_to_a_store_stays_a_link(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(data=clips))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s.h5").symlink_to(tmp_path / "elsewhere" / "s.h5")
    assert main(["extract", "--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]) == 0
    assert (tmp_path / "s.h5").is_symlink() and (tmp_path / "elsewhere" / "s.h5").is_file()


def test_extraction_loads_what_takes_long_to_load_only_if_it_is_used() -> None:
    code = "import sys, stage1_extract.extract, stage1_extract.datasets; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"tensorflow", "sklearn", "scipy", "av"} & set(output.split())
