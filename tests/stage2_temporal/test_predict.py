"""Prediction from real videos, folders and data sets with a real run: the clip model's values, a pass a frame."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Image
from features.config import Config
from features.errors import DataError
from stage1_extract.__main__ import main as stage1
from stage1_extract.datasets.video_metadata import check_constant_size, header_frame_rate
from stage1_extract.frame_loader import resize_frame
from stage2_temporal import predict as module
from stage2_temporal.__main__ import main
from stage2_temporal.fused.fuse import build_fused_model
from stage2_temporal.predict import predict
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow, load_run_models, sliding_windows
from tests.helpers import picture, write_clips

LENGTH, STRIDE, BATCH = 3, 2, 8
SPAN = (LENGTH - 1) * STRIDE + 1
FRAMES = 21
CONFIG = f"""
[data]
layout = "competition"
path = "data"
target = "velocity"
fps = 12.0
[frames]
width = 64
height = 48
[extract]
batch = {BATCH}
dtype = "float32"
[window]
length = {LENGTH}
stride = {STRIDE}
[head]
units = 8
dense = 4
difference = true
[train]
epochs = 1
batch = 4
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a data set, a store and the run `tiny`: EfficientNet-Lite0 with its packaged weights."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_clips(folder / "data", {"Train": 6, "Validation": 2, "Test": 11})
        (folder / "task.toml").write_text(CONFIG)
        assert stage1(["extract", "--config", "task.toml", "--store", "s.h5"]) == 0
        assert main(["train", "--config", "task.toml", "--store", "s.h5", "--run", "tiny"]) == 0
    return folder


@pytest.fixture(scope="module")
def parts(home: Path) -> RunModels:
    return load_run_models(home / "runs" / "tiny")


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(home / "runs")
    (tmp_path / "data").symlink_to(home / "data")
    return tmp_path


def images(count: int = FRAMES, size: tuple[int, int] = (160, 120)) -> list[Image]:
    """A picture that drifts and darkens."""
    wide = picture(7, (size[0] + 8 * count, size[1]))
    return [(wide[:, 8 * i : 8 * i + size[0]] * (1 - 0.5 * i / count)).astype(np.uint8) for i in range(count)]


def write_video(path: Path, frames: list[Image], code: str = "MJPG", fps: float = 12.0) -> Path:
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), fps, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def read_video(path: Path) -> list[Image]:
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (image := capture.read()[1]) is not None:
        frames.append(np.asarray(image, np.uint8))
    return frames


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def by_clip_model(parts: RunModels, frames: list[Image], stride: int = STRIDE) -> NDArray[np.float32]:
    """The fused model's answer for every window, each on its own."""
    fused = build_fused_model(parts.trunk.model, parts.stage_two)
    small = np.stack([resize_frame(image, parts.config.frames) for image in frames])
    span = (LENGTH - 1) * stride + 1
    return np.concatenate(
        [fused.predict(small[None, i : i + span : stride], verbose=0) for i in range(len(frames) - span + 1)]
    )


def close(got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert expected.std() > 1e-2  # the windows do differ
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_a_video_by_the_clip_models_values(here: Path, parts: RunModels) -> None:
    video = write_video(here / "drive.avi", images())
    written = predict(here / "runs" / "tiny", video, here / "out" / "drive.csv")
    rows = rows_of(here / "out" / "drive.csv")
    assert written.files == (here / "out" / "drive.csv",) and written.windows == len(rows) == FRAMES - SPAN + 1
    assert list(rows[0]) == ["time", "frame", "vx", "vy"]
    assert [int(r["frame"]) for r in rows] == list(range(SPAN - 1, FRAMES))
    assert float(rows[0]["time"]) == pytest.approx((SPAN - 1) / 12, abs=1e-6)
    close(np.array([[r["vx"], r["vy"]] for r in rows], np.float32), by_clip_model(parts, read_video(video)))
    assert [p.name for p in (here / "out").iterdir()] == ["drive.csv"]


def test_a_folder_of_frames_in_the_order_of_their_numbers(here: Path, parts: RunModels) -> None:
    (here / "frames").mkdir()
    for i, image in enumerate(images()):  # f1, f2, … f10: not the order of the alphabet
        assert cv2.imwrite(str(here / "frames" / f"f{i + 1}.png"), image)
    (here / "frames" / "notes.txt").write_text("not a frame")
    arguments = ["predict", "--run", "tiny", "--input", "frames", "--stride", "1", "--fps", "4"]
    assert main(arguments) == 0
    rows = rows_of(here / "runs" / "tiny" / "predicted" / "frames.csv")
    close(np.array([[r["vx"], r["vy"]] for r in rows], np.float32), by_clip_model(parts, images(), stride=1))
    assert (int(rows[0]["frame"]), float(rows[0]["time"])) == (LENGTH - 1, (LENGTH - 1) / 4)
    assert len(rows) == FRAMES - LENGTH + 1


@pytest.mark.parametrize("count", [SPAN, BATCH, BATCH + 1, 5 * BATCH + 3])
def test_each_frame_goes_through_the_trunk_once_and_memory_stays_flat(parts: RunModels, count: int) -> None:
    frames = np.stack([resize_frame(image, parts.config.frames) for image in images(count)])
    first = np.arange(count - SPAN + 1)[:, None]
    # beside the fused model in the engine that computes it; the engines' own difference is tested with them
    extract = parts.config.extract.model_copy(update={"engine": "tensorflow"})
    parts = replace(parts, config=parts.config.model_copy(update={"extract": extract}))
    slider = SlidingWindow(parts, first + STRIDE * np.arange(LENGTH))
    got = np.concatenate(list(slider.run({"appearance": frames[i : i + BATCH]} for i in range(0, count, BATCH))))
    assert slider.engine is not None and slider.engine.passes == math.ceil(count / BATCH)
    assert {len(held) for held in slider.buffers.values()} == {SPAN - 1 + BATCH}  # whatever the count
    fused = build_fused_model(parts.trunk.model, parts.stage_two)
    np.testing.assert_allclose(got, fused.predict(frames[slider.rows], verbose=0), rtol=0, atol=1e-4)


def test_the_whole_command_passes_each_frame_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[SlidingWindow] = []

    class Seen(SlidingWindow):
        def __init__(self, parts: RunModels, rows: NDArray[np.int64]) -> None:
            super().__init__(parts, rows)
            made.append(self)

    monkeypatch.setattr(module, "SlidingWindow", Seen)
    write_video(here / "drive.avi", images(), fps=24)
    assert main(["predict", "--run", "tiny", "--input", "drive.avi", "--output", "d.csv", "--overlay", "d.mp4"]) == 0
    assert [s.engine.passes for s in made] == [math.ceil(FRAMES / BATCH)]
    said = capsys.readouterr()
    assert said.out == f"{FRAMES - SPAN + 1} windows: d.csv, d.mp4\n"
    assert "trained on frames 0.167 s apart, these are 0.0833 s apart; --stride 4 comes nearest" in said.err


def test_a_data_set_as_evaluation_has_it(here: Path) -> None:
    run = here / "runs" / "tiny"
    assert main(["predict", "--run", "tiny", "--output", "out/p.csv"]) == 0
    got, expected = rows_of(here / "out" / "p.csv"), rows_of(run / "predictions.csv")
    assert len(got) == len(expected) == 19 and list(got[0]) == list(expected[0])
    for a, b in zip(got, expected, strict=True):
        for name, value in a.items():
            assert (float(value) == pytest.approx(float(b[name]), abs=1e-4)) if "_pred" in name else value == b[name]
    ours, theirs = rows_of(here / "out" / "submission.csv"), rows_of(run / "submission.csv")
    assert [r["ID"] for r in ours] == [r["ID"] for r in theirs] == [str(i) for i in range(1, 12)]
    for a, b in zip(ours, theirs, strict=True):
        assert float(a["speed"]) == pytest.approx(float(b["speed"]), abs=1e-4)
    assert sorted(p.name for p in (here / "out").iterdir()) == ["p.csv", "submission.csv"]


def test_a_data_sets_damaged_clip_is_left_out_and_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(here / "data", here / "mine")
    file = here / "mine" / "Test" / "Test" / "2" / "imgs" / "008.jpg"
    data = bytearray(file.read_bytes())
    at = data.index(b"\xff\xc4")  # Huffman tables: only decoding shows what is wrong with them
    data[at + 4 : at + 40] = b"\xff" * 36
    file.write_bytes(data)
    assert main(["predict", "--run", "tiny", "--input", "mine", "--output", "p.csv"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "mine/Test/Test/2/imgs/008.jpg" in said and "Try: " in said
    names = {r["sequence"] for r in rows_of(here / "p.csv")}
    assert "Test/2" not in names and len(names) == 18
    assert [r["ID"] for r in rows_of(here / "submission.csv")] == ["1", *map(str, range(3, 12))]


def test_sequences_without_labels_are_predicted_too(here: Path, parts: RunModels) -> None:
    """A manifest of bare frames: a value for every frame behind which a window fits."""
    write_clips(here / "bare", {"Test": 1}, frames=SPAN + 2)
    frames = sorted((here / "bare" / "Test" / "Test" / "1" / "imgs").iterdir())
    lines = [f"{p},a,{i},test,\n" for i, p in enumerate(frames)]
    (here / "bare.csv").write_text("path,sequence,frame,split,vx\n" + "".join(lines))
    run = here / "other"
    shutil.copytree(here / "runs" / "tiny", run)
    (run / "config.toml").write_text((run / "config.toml").read_text().replace('"competition"', '"manifest"'))
    predict(run, here / "bare.csv", here / "p.csv")
    rows = rows_of(here / "p.csv")
    assert [int(r["frame"]) for r in rows] == [SPAN - 1, SPAN, SPAN + 1]
    read = [np.asarray(cv2.imread(str(p)), np.uint8) for p in frames]
    close(np.array([[r["vx_pred"], r["vy_pred"]] for r in rows], np.float32), by_clip_model(parts, read))


def test_the_overlay(here: Path) -> None:
    frames = images(30, (320, 240))
    video = write_video(here / "drive.mp4", frames, "mp4v", fps=15)
    predict(here / "runs" / "tiny", video, here / "d.csv", here / "o.mp4")
    capture = cv2.VideoCapture(str(here / "o.mp4"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FPS) == 15
    before, after = read_video(video), read_video(here / "o.mp4")
    assert len(after) == 30 and {f.shape for f in after} == {(240, 320, 3)}
    change = [np.abs(a.astype(int) - b) for a, b in zip(after, before, strict=True)]
    for i, part in enumerate(change):
        assert part[10:60, 10:60].mean() > 20, i  # the panel
        assert part[150:].mean() < 6, i  # the road below is as it was, but for coding it again
    assert sorted(p.name for p in here.iterdir() if p.name not in ("runs", "data")) == ["d.csv", "drive.mp4", "o.mp4"]


def test_an_overlay_of_odd_size(here: Path) -> None:
    (here / "frames").mkdir()
    for i, image in enumerate(images(6, (161, 121))):
        cv2.imwrite(str(here / "frames" / f"{i:03d}.jpg"), image)
    predict(here / "runs" / "tiny", here / "frames", here / "d.csv", here / "o.mp4")
    after = read_video(here / "o.mp4")
    assert len(after) == 6 and after[0].shape == (120, 160, 3)


def two_sizes(path: Path, code: str) -> Path:
    """Two streams end to end, the second of another size: 6 frames each."""
    one, two = (write_video(path.with_name(f"{n}{path.suffix}"), images(6, (n, 96)), code) for n in (128, 160))
    path.write_bytes(one.read_bytes() + two.read_bytes())
    one.unlink()
    two.unlink()
    return path


@pytest.mark.parametrize(("name", "code"), [("a.ts", "mp4v"), ("a.ts", "mpg2"), ("a.avi", "MJPG")])
def test_a_change_of_size_shows_in_the_packets(tmp_path: Path, name: str, code: str) -> None:
    path = two_sizes(tmp_path / name, code)
    assert {f.shape for f in read_video(path)} == {(96, 128, 3)}  # cv2 hides it
    with pytest.raises(DataError, match=r"its frame size changes at frame 6; expected 128x96 throughout; got 160x96"):
        check_constant_size(path)
    check_constant_size(write_video(tmp_path / f"b{path.suffix}", images(), code))


def test_only_a_rate_that_a_header_gives_is_one(tmp_path: Path) -> None:
    assert header_frame_rate(write_video(tmp_path / "a.mp4", images(), "mp4v", 29.97)) == pytest.approx(29.97)
    bare = tmp_path / "a.mjpeg"
    bare.write_bytes(b"".join(bytes(cv2.imencode(".jpg", image)[1]) for image in images()))
    assert header_frame_rate(bare) is None


def rateless(path: Path) -> Path:
    """An MP4 that says each frame lasts 0 s."""
    data = bytearray(write_video(path, images(), "mp4v").read_bytes())
    at = data.index(b"stts") + 16
    data[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    return path


@pytest.fixture
def inputs(here: Path) -> Path:
    """Everything that can be wrong with an input."""
    (here / "corrupt.mp4").write_bytes(b"no video" * 200)
    whole = write_video(here / "good.mp4", images(), "mp4v")
    (here / "half.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_video(here / "three.avi", images(3))
    two_sizes(here / "grows.ts", "mp4v")
    rateless(here / "rateless.mp4")
    (here / "empty").mkdir()
    for folder, sizes in (("mixed", [(64, 48)] * 6 + [(80, 48)]), ("short", [(64, 48)] * 4), ("torn", [(64, 48)] * 6)):
        (here / folder).mkdir()
        for i, size in enumerate(sizes):
            cv2.imwrite(str(here / folder / f"{i}.jpg"), picture(i, size))
    torn = here / "torn" / "3.jpg"
    torn.write_bytes(torn.read_bytes()[:-200])
    return here


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--input corrupt.mp4", "corrupt.mp4: not a video cv2 can open"),
        ("--input half.mp4", "half.mp4: not a video cv2 can open"),
        ("--input three.avi", "three.avi: shorter than one window (3 frames, stride 2); expected at least 5 frames"),
        ("--input grows.ts", "grows.ts: its frame size changes at frame 6; expected 128x96 throughout; got 160x96"),
        ("--input rateless.mp4", "rateless.mp4: no frame rate can be read from it"),
        ("--input empty", "empty: no frames; expected files ending in .jpeg, .jpg, .png"),
        ("--input mixed", "mixed/6.jpg: frame of another size; expected 64x48 as the sequence's others; got 80x48"),
        ("--input short", "short: shorter than one window"),
        ("--input torn", "torn/3.jpg: truncated JPEG"),
        ("--input nowhere.mp4", "nowhere.mp4: no such video or folder"),
        ("--input nowhere.csv", "nowhere.csv"),
        ("--input good.mp4 --stride 0", "--stride must be positive; got 0"),
        ("--input good.mp4 --stride 11", "shorter than one window (3 frames, stride 11); expected at least 23 frames"),
        ("--input good.mp4 --fps -1", "--fps must be positive; got -1.0"),
        ("--input good.mp4 --output corrupt.mp4/o.csv", "corrupt.mp4/o.csv: cannot be written"),
        ("--input good.mp4 --output empty", "empty: a folder, not written to"),
        ("--input good.mp4 --overlay corrupt.mp4/o.mp4", "corrupt.mp4/o.mp4: cannot be written"),
        ("--input good.mp4 --overlay good.mp4", "good.mp4: the input itself"),
        ("--overlay o.mp4", "--overlay draws on one video or one folder of frames"),
        ("--input good.mp4 --frobnicate", "unknown flags; got --frobnicate"),
        ("--run nothing", "runs/nothing is no run"),
    ],
)
def test_what_the_user_can_mend(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: str, says: str
) -> None:
    monkeypatch.setattr(module, "load_run_models", lambda run: pytest.fail("a network was loaded for nothing"))
    before = sorted(inputs.rglob("*"))
    asked = arguments.split()
    run = [] if "--run" in asked else ["--run", "tiny"]
    output = [] if "--output" in asked else ["--output", "new.csv"]
    assert main(["predict", *run, *output, *asked]) == 2
    said = "\n".join(x for x in capfd.readouterr().err.splitlines() if not x.startswith(("[", "OpenCV")))
    assert says in said and "Try: " in said
    assert len(said.splitlines()) == 1, said
    assert sorted(inputs.rglob("*")) == before


def test_with_a_rate_given_the_rateless_video_is_predicted(here: Path) -> None:
    rateless(here / "rateless.mp4")
    assert main(["predict", "--run", "tiny", "--input", "rateless.mp4", "--output", "r.csv", "--fps", "10"]) == 0
    assert [r["time"] for r in rows_of(here / "r.csv")][:2] == ["0.400000", "0.500000"]


def test_a_video_that_ends_early_leaves_the_old_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only decoding shows comes after the scan: nothing half-written, and nothing lost."""
    video = write_video(here / "drive.avi", images())
    (here / "d.csv").write_text("before")
    (here / "o.mp4").write_bytes(b"before")
    begun = module.sliding_windows

    def shrunk(clip: object, config: Config) -> NDArray[np.int64]:
        rows = begun(clip, config)  # type: ignore[arg-type]
        write_video(video, images(10))
        return rows

    monkeypatch.setattr(module, "sliding_windows", shrunk)
    assert main(["predict", "--run", "tiny", "--input", "drive.avi", "--output", "d.csv", "--overlay", "o.mp4"]) == 2
    assert ((here / "d.csv").read_text(), (here / "o.mp4").read_bytes()) == ("before", b"before")
    assert sorted(p.name for p in here.iterdir()) == ["d.csv", "data", "drive.avi", "o.mp4", "runs"]


def test_a_backbone_that_is_not_the_runs_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = here / "other"
    shutil.copytree(here / "runs" / "tiny", run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('weights = "imagenet"', 'weights = "random"'))
    write_video(here / "drive.avi", images())
    assert main(["predict", "--run", str(run), "--input", "drive.avi", "--output", "d.csv"]) == 2
    assert "the backbone its config builds is not the one it was trained on" in capsys.readouterr().err
    assert not (here / "d.csv").exists()


def test_windows_are_all_there_are(parts: RunModels, here: Path) -> None:
    from stage1_extract.datasets.single_video import read_single_clip

    clip = read_single_clip(write_video(here / "drive.avi", images()), parts.config.data, None)
    rows = sliding_windows(replace(clip, sequence=replace(clip.sequence, length=SPAN + 1)), parts.config)
    assert rows.tolist() == [[0, 2, 4], [1, 3, 5]]
