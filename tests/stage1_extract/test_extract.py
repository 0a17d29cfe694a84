"""Extraction: incremental, resumable to the byte, honest about damage. Real JPEGs, a real backbone, real HDF5."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from features.errors import BadInputs, DataError, StoreError
from features.store import Store
from stage1_extract import extract as module
from stage1_extract import frame_loader
from stage1_extract.__main__ import main
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import ExtractionResult, extract
from tests.extraction_helpers import CONFIG, extraction_config, store_content
from tests.helpers import ROOT, flip, picture, write_clips


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(build_trunk(extraction_config()), 8)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    return write_clips(tmp_path / "data")


@pytest.fixture
def bring_up(clips: Path, tmp_path: Path, engine: Engine) -> Callable[..., ExtractionResult]:
    def run(
        store: str = "s.h5", damaged_rows: dict[int, list[str]] | None = None, **extract_settings: object
    ) -> ExtractionResult:
        config = extraction_config(clips, **extract_settings)
        return extract(config, tmp_path / store, scan(config.data), damaged_rows=damaged_rows, engine=engine)

    return run


def test_a_second_run_extracts_nothing(
    bring_up: Callable[..., ExtractionResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bring_up().extracted == 80
    before = (tmp_path / "s.h5").stat()
    written = (before.st_ino, before.st_size, before.st_mtime_ns)
    monkeypatch.setattr(module, "build_trunk", lambda _: pytest.fail("a network was loaded for nothing"))
    assert bring_up().extracted == 0
    after = (tmp_path / "s.h5").stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == written
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["data", "s.h5"]


def test_maps_and_labels_are_those_of_the_files(
    bring_up: Callable[..., ExtractionResult], tmp_path: Path, engine: Engine
) -> None:
    bring_up()
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
        np.testing.assert_array_equal(store.read("appearance", range(16, 24)), engine(frames))
        assert store.thumbnail(16) == frame_loader.encode_thumbnail(frames[0], "rgb")


def test_only_what_is_new_or_changed_is_extracted(
    bring_up: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    bring_up()
    write_clips(tmp_path / "more", {"Train": 8})
    shutil.move(tmp_path / "more/Train/Train/8", clips / "Train/Train/8")
    shutil.copy(clips / "Train/Train/1/imgs/001.jpg", clips / "Train/Train/5/imgs/004.jpg")
    shutil.rmtree(clips / "Train/Train/2")
    assert bring_up().extracted == 16
    bring_up("fresh.h5")
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_changed_labels_cost_no_extraction(
    bring_up: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    bring_up()
    (clips / "Train/Train/1/annotation.json").write_text(json.dumps([{"velocity": [9.0, 1.0]}]))
    assert bring_up().extracted == 0
    with Store(tmp_path / "s.h5") as store:
        assert dict(store.sequences[0].labels[0].targets) == {"vx": 9.0, "vy": 1.0}


def test_every_frame_is_decoded_and_passed_once(
    bring_up: Callable[..., ExtractionResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, passes = [], []
    resize, call = frame_loader.resize_frame, Engine.submit
    monkeypatch.setattr("stage1_extract.frame_loader.resize_frame", lambda *a: decoded.append(1) or resize(*a))
    monkeypatch.setattr(Engine, "submit", lambda self, frames: passes.append(len(frames)) or call(self, frames))
    bring_up(shard=80)
    assert (len(decoded), passes) == (80, [8] * 10)


def test_another_recipe_is_refused_with_both_values(
    bring_up: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    bring_up()
    before = (tmp_path / "s.h5").read_bytes()
    config = extraction_config(clips, dtype="float32")
    with pytest.raises(StoreError, match=r"dtype: float16, not float32.*--store"):
        extract(config, tmp_path / "s.h5", scan(config.data))
    assert (tmp_path / "s.h5").read_bytes() == before


def test_a_failure_between_shards_loses_none(
    bring_up: Callable[..., ExtractionResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_up("fresh.h5")
    passes, call = [], Engine.submit

    def run(self: Engine, frames: np.ndarray) -> Future[np.ndarray]:
        passes.append(len(frames))
        if len(passes) == 8:
            raise KeyboardInterrupt
        return call(self, frames)

    monkeypatch.setattr(Engine, "submit", run)
    with pytest.raises(KeyboardInterrupt):
        bring_up()
    assert not (tmp_path / "s.h5").exists()
    done = len(list((tmp_path / "s.h5.parts").iterdir()))
    assert done == 3
    assert bring_up().extracted == 80 - 16 * done
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_verify_names_and_repair_mends_only_the_damaged_frame(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = tmp_path / "c.toml", tmp_path / "s.h5"
    config.write_text(CONFIG.format(data=clips))
    where = ["--config", str(config), "--store", str(store)]
    assert main(["extract", *where]) == 0
    before = store_content(store)
    flip(store, "appearance", 19)
    assert main(["verify", *where]) == 2
    assert "Train/3 frame 3: appearance damaged" in capsys.readouterr().err
    passes, call = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, f: passes.append(len(f)) or call(self, f))
    assert main(["repair", *where]) == 0
    assert passes == [1]
    assert main(["verify", *where]) == 0
    assert store_content(store) == before


def test_what_only_decoding_shows_leaves_its_clip_out(
    bring_up: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    good = (clips / "Train/Train/4/imgs/005.jpg").read_bytes()
    table = good.index(b"\xff\xc4") + 5  # headers and end are well, but the Huffman table is bogus
    (clips / "Train/Train/4/imgs/005.jpg").write_bytes(good[:table] + b"\xff" * 16 + good[table + 16 :])
    with pytest.raises(BadInputs, match=r"Train/Train/4/imgs/005\.jpg"):
        bring_up()
    with Store(tmp_path / "s.h5") as store:
        assert not store.complete
        assert list(store.missing) == ["Train/4"]
        assert len(store.sequences) == 9
    assert bring_up(skip_damaged=True).frames == 72
    with Store(tmp_path / "s.h5") as store:
        assert store.complete
    (clips / "Train/Train/4/imgs/005.jpg").write_bytes(good)
    assert bring_up().extracted == 8
    bring_up("fresh.h5")
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_faults_that_can_be_seen_stop_before_any_work(
    bring_up: Callable[..., ExtractionResult], clips: Path, tmp_path: Path
) -> None:
    (clips / "Train/Train/1/imgs/003.jpg").unlink()
    (clips / "Train/Train/2/annotation.json").write_text("{")
    with pytest.raises(BadInputs) as error:
        bring_up()
    assert (
        "Train/1" in str(error.value) and "Train/2" in str(error.value) and "--extract.skip_damaged" in str(error.value)
    )
    assert not (tmp_path / "s.h5").exists()
    assert bring_up(skip_damaged=True).frames == 64


def test_half_precision_that_overflows_is_said(clips: Path, tmp_path: Path) -> None:
    config = extraction_config(clips)
    made = build_trunk(config.model_copy(update={"backbone": config.backbone.model_copy(update={"cut": "conv1_bn"})}))
    weights = made.backbone.model.get_weights()
    made.backbone.model.set_weights([w * 1e5 for w in weights])
    with pytest.raises(DataError, match=r"--extract\.dtype float32"):
        extract(config, tmp_path / "s.h5", scan(config.data), engine=Engine(made, 8))


def test_a_second_writer_is_told_who_holds_the_lock(bring_up: Callable[..., ExtractionResult], tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with module.exclusive_write_lock(tmp_path / "s.h5"):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(10)
        with pytest.raises(StoreError, match=rf"process {os.getpid()} on .* since"):
            bring_up()
    finally:
        leave.set()
        holder.join()
    assert bring_up().extracted == 80


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


def test_a_disk_too_small_is_said_before_the_work(clips: Path, small_disk: Path, engine: Engine) -> None:
    config = extraction_config(clips)
    with pytest.raises(DataError, match="not enough disk space"):
        extract(config, small_disk / "s.h5", scan(config.data), engine=engine)


def test_a_disk_that_fills_up_keeps_finished_shards(
    clips: Path, small_disk: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_check_disk_space", lambda *a: None)
    config = extraction_config(clips)
    with pytest.raises(OSError) as error:
        extract(config, small_disk / "s.h5", scan(config.data), engine=engine)
    assert error.value.errno == errno.ENOSPC
    assert not (small_disk / "s.h5").exists()
    left = sorted(p.name for p in (small_disk / "s.h5.parts").iterdir())
    assert left and not [name for name in left if name.endswith(".tmp")]


def test_a_full_disk_ends_with_a_line_and_status_2(
    clips: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_check_disk_space", lambda *a: None)
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.format(data=clips))
    assert main(["extract", "--config", str(config), "--store", str(small_disk / "s.h5")]) == 2
    assert "disk is full" in capsys.readouterr().err


def test_a_read_only_folder_ends_with_a_line_and_status_2(
    clips: Path, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.format(data=clips))
    assert main(["extract", "--config", str(config), "--store", str(small_disk / "s.h5")]) == 2
    assert "read-only" in capsys.readouterr().err


def kill_at_random(clips: Path, tmp_path: Path, times: int) -> None:
    """kill -9 the command at random moments until `times` kills have hit, then let it finish."""
    config, store = tmp_path / "c.toml", tmp_path / "s.h5"
    config.write_text(CONFIG.format(data=clips))
    command = [sys.executable, "-m", "stage1_extract", "extract", "--config", str(config)]
    subprocess.run([*command, "--store", str(tmp_path / "fresh.h5")], cwd=ROOT, check=True, capture_output=True)
    begun = time.monotonic()
    subprocess.run([*command, "--store", str(tmp_path / "timed.h5")], cwd=ROOT, check=True, capture_output=True)
    span = time.monotonic() - begun
    rng, hits = random.Random(times), 0
    while hits < times:
        begun = time.monotonic()
        process = subprocess.Popen(
            [*command, "--store", str(store)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.5, 1.0) * span)  # the first half is Python and TensorFlow starting
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            hits += 1
        if store.exists():
            with Store(store) as s:  # whatever stands under the final name is whole
                assert not [row for row, faults in s.check_frames() if faults]
            if process.returncode == 0 and hits < times:
                store.unlink()
                span = min(span, time.monotonic() - begun)  # else an hour on a machine that has grown less busy
    subprocess.run([*command, "--store", str(store)], cwd=ROOT, check=True, capture_output=True)
    assert store_content(store) == store_content(tmp_path / "fresh.h5")
    assert not list(tmp_path.glob(".s.h5.*")) and not (tmp_path / "s.h5.parts").exists()


def test_killed_at_random_moments_the_result_is_the_same(tmp_path: Path) -> None:
    kill_at_random(write_clips(tmp_path / "data", {"Train": 60}), tmp_path, 2)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_moments_the_result_is_the_same(tmp_path: Path) -> None:
    kill_at_random(write_clips(tmp_path / "data", {"Train": 300}), tmp_path, 20)


def test_info_says_what_a_person_wants_to_know(
    bring_up: Callable[..., ExtractionResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_up()
    assert main(["info", "--store", str(tmp_path / "s.h5")]) == 0
    shown = capsys.readouterr().out
    for words in ("MobileNet", "UNTRAINED", "conv_pw_3_relu", "x32 float16", "train", "ego_speed", "20 fps"):
        assert words in shown, words


def test_odd_pictures_are_resized_as_cv2_does() -> None:
    import cv2

    image = picture(3, (100, 70))
    for name, flag in (("cubic", cv2.INTER_CUBIC), ("area", cv2.INTER_AREA)):
        frames = extraction_config(Path("x")).frames.model_copy(update={"interpolation": name, "colour": "bgr"})
        np.testing.assert_array_equal(
            frame_loader.resize_frame(image, frames), cv2.resize(image, (32, 32), interpolation=flag)
        )


def test_a_damaged_shard_is_extracted_anew(
    bring_up: Callable[..., ExtractionResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bring_up("fresh.h5")
    with monkeypatch.context() as patched:
        patched.setattr(module, "assemble_store", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bring_up()
    truncated, flipped, *_ = sorted((tmp_path / "s.h5.parts").iterdir())
    os.truncate(truncated, 1000)
    flip(flipped, "appearance", 3)
    assert bring_up().extracted == 32
    assert capsys.readouterr().err.count("will be extracted again") == 2
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_a_file_that_changes_after_the_scan_is_not_taken_for_the_scanned_one(
    clips: Path, tmp_path: Path, engine: Engine
) -> None:
    config = extraction_config(clips)
    catalogue = scan(config.data)
    shutil.copy(clips / "Train/Train/1/imgs/001.jpg", clips / "Train/Train/5/imgs/004.jpg")
    with pytest.raises(BadInputs, match=r"Train/5/imgs/004\.jpg: changed since"):
        extract(config, tmp_path / "s.h5", catalogue, engine=engine)
    assert extract(config, tmp_path / "s.h5", scan(config.data), engine=engine).extracted == 8


def test_what_was_skipped_is_said_each_time(clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (clips / "Train/Train/1/imgs/003.jpg").unlink()
    (tmp_path / "c.toml").write_text(CONFIG.format(data=clips))
    where = ["--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]
    for _ in range(2):
        assert main(["extract", *where, "--extract.skip-damaged", "true"]) == 0
        assert "1 faults were left out" in capfd.readouterr().err
    assert main(["info", *where]) == 0
    assert "imgs/003.jpg" in capfd.readouterr().out


def test_a_link_to_a_store_stays_a_link(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(data=clips))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s.h5").symlink_to(tmp_path / "elsewhere" / "s.h5")
    assert main(["extract", "--config", str(tmp_path / "c.toml"), "--store", str(tmp_path / "s.h5")]) == 0
    assert (tmp_path / "s.h5").is_symlink() and (tmp_path / "elsewhere" / "s.h5").is_file()
