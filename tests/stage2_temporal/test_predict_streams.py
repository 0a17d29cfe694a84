"""Heads on flow, on maps and flow, and on a vehicle's track beside these: from images what the store gave, all once."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Image
from features.config import DataConfig, read_config
from features.sequences import FrameSequence
from stage1_extract import optical_flow
from stage1_extract.__main__ import main as stage1
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue, Clip, FrameSource
from stage1_extract.frame_loader import resize_frame
from stage1_extract.sample import render_sample_set
from stage2_temporal import predict as module
from stage2_temporal.__main__ import main
from stage2_temporal.fused.export import export_model, servable
from stage2_temporal.heads.graph import model_inputs
from stage2_temporal.sliding import sliding_window, vehicle_prediction
from stage2_temporal.sliding.frame_stream import FrameStream
from stage2_temporal.sliding.sliding_window import load_run_models, sliding_windows
from stage2_temporal.sliding.vehicle_prediction import predict_vehicles

CONFIG = """
[data]
layout = "competition"
path = "data"
target = "ego_speed"
also = ["velocity"]
fps = 10.0
[frames]
width = 64
height = 36
[backbone]
name = "MobileNet"
weights = "random"
arguments = { alpha = 0.25 }
unfreeze = 3
[extract]
batch = 8
dtype = "float32"
motion = true
[window]
length = 4
[head]
name = "fusion"
units = 4
dense = 0
[train]
epochs = 1
"""
RUNS = {
    "flow": ["--data.target", "ego_speed", "--head.streams", "motion"],
    "solved": ["--data.target", "ego_speed", "--head.streams", "motion", "--head.name", "ridge"],
    "both": ["--data.target", "ego_speed", "--head.streams", "appearance", "motion"],
    "vehicle": ["--data.target", "velocity", "--head.streams", "appearance", "motion"],
}
LENGTH = 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips, a store with maps, flow and tracks, and a run of each kind of head."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        render_sample_set(Path("data"), seed=3, train=8, validation=0, test=2, workers=1, progress=False)
        Path("task.toml").write_text(CONFIG)
        assert stage1(["extract", "--config", "task.toml", "--store", "s.h5"]) == 0
        for name, asked in RUNS.items():
            assert main(["train", "--config", "task.toml", "--store", "s.h5", "--run", name, *asked]) == 0
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside the runs."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "data", "s.h5"):
        (tmp_path / name).symlink_to(home / name)
    return tmp_path


class Counted:
    """A clip's frames, counted as they are read, and how often it was gone back."""

    def __init__(self, source: FrameSource) -> None:
        self.source, self.parallel = source, source.parallel
        self.read_of: Counter[int] = Counter()

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        self.read_of.update(range(start, stop))
        return self.source.read(start, stop, min_size)


class Reel:
    """Frames in memory, to be read in order."""

    parallel = False

    def __init__(self, frames: list[Image]) -> None:
        self.frames = frames

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        return (frame.copy() for frame in self.frames[start:stop])


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A 1 for each flow that is computed."""
    made, pool = [], optical_flow.pool_flow

    def counted(flow: NDArray[np.float32], strip: NDArray[np.uint8]) -> NDArray[np.float32]:
        made.append(1)
        return pool(flow, strip)

    monkeypatch.setattr("stage1_extract.optical_flow.pool_flow", counted)
    return made


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """The sources of a predicted data set's clips."""
    made: list[Counted] = []

    def counted(data: DataConfig) -> Catalogue:
        found = scan(data)
        made.extend(Counted(clip.source) for clip in found.clips)
        return replace(found, clips=tuple(replace(c, source=s) for c, s in zip(found.clips, made, strict=True)))

    monkeypatch.setattr(module, "scan", counted)
    return made


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def there_and_back() -> list[Image]:
    """15 frames of a test clip, forwards and then backwards."""
    frames = [np.asarray(cv2.imread(f"data/Test/Test/1/imgs/{i:03d}.jpg"), np.uint8) for i in range(1, 9)]
    return [*frames, *frames[-2::-1]]


def write_video(path: Path, frames: list[Image]) -> list[Image]:
    """Write a video; its frames as they are decoded."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return read_video(path)


def read_video(path: Path) -> list[Image]:
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (image := capture.read()[1]) is not None:
        frames.append(np.asarray(image, np.uint8))
    return frames


def entries_of(frames: list[Image]) -> NDArray[np.float16]:
    cv2.setNumThreads(1)
    return optical_flow.flow_entries([optical_flow.flow_strip(frame) for frame in frames], starts_sequence=True)


@pytest.mark.parametrize("name", ["flow", "solved", "vehicle"])
def test_a_data_set_as_evaluation_has_it_each_frame_once(
    name: str, here: Path, sources: list[Counted], flows: list[int]
) -> None:
    assert main(["predict", "--run", name, "--output", "p.csv"]) == 0
    assert len(sources) == 10
    first = 0 if name == "vehicle" else 3  # a vehicle is followed through the clip; flow starts a frame before
    for source in sources:
        assert source.read_of == Counter(range(first, 8))
    assert len(flows) == 10 * (7 - first)
    got, expected = rows_of(here / "p.csv"), rows_of(here / "runs" / name / "predictions.csv")
    assert len(got) == len(expected) >= 10 and list(got[0]) == list(expected[0])
    for a, b in zip(got, expected, strict=True):
        for column, value in a.items():
            if "_pred" in column:
                assert float(value) == pytest.approx(float(b[column]), abs=1e-4), column
            else:
                assert value == b[column]
    predicted = [float(r[c]) for r in got for c in r if c.endswith("_pred")]
    assert np.std(predicted) > 1e-2


@pytest.mark.parametrize("name", ["flow", "both"])
def test_a_video_and_its_overlay(name: str, here: Path, flows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    frames = write_video(here / "drive.avi", there_and_back())
    if name == "flow":
        target = "stage2_temporal.sliding.sliding_window.build_trunk"
        monkeypatch.setattr(target, lambda _: pytest.fail("a backbone was built for nothing"))
    assert main(["predict", "--run", name, "--input", "drive.avi", "--output", "d.csv", "--overlay", "d.mp4"]) == 0
    assert len(flows) == len(frames) - 1
    rows = rows_of(here / "d.csv")
    assert [int(r["frame"]) for r in rows] == list(range(LENGTH - 1, 15))
    parts, at = load_run_models(here / "runs" / name), np.arange(15 - LENGTH + 1)[:, None] + np.arange(LENGTH)
    seen: dict[str, Any] = {"motion": entries_of(frames).astype(np.float32)[at]}
    if parts.trunk is not None:
        small = np.stack([resize_frame(frame, parts.config.frames) for frame in frames])
        seen["appearance"] = np.asarray(parts.trunk.model.predict(small, verbose=0))[at]
    expected = parts.stage_two.predict(model_inputs(seen), verbose=0)
    np.testing.assert_allclose([[float(r["ego_speed"])] for r in rows], expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-2
    assert len(read_video(here / "d.mp4")) == 15


def test_a_folder_of_frames(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The clip as the data set has it: the last window's value is the run's own. At another rate, flow is named."""
    asked = ["predict", "--run", "flow", "--input", "data/Test/Test/1/imgs", "--output", "f.csv"]
    assert main([*asked, "--fps", "20"]) == 0
    assert "flow between frames 0.1 s apart, these are 0.05 s apart: give 10 frames" in capsys.readouterr().err
    assert main(asked) == 0
    assert "apart" not in capsys.readouterr().err
    trained = next(r for r in rows_of(here / "runs/flow/predictions.csv") if r["sequence"] == "Test/1")
    assert float(rows_of(here / "f.csv")[-1]["ego_speed"]) == pytest.approx(float(trained["ego_speed_pred"]), abs=1e-4)


@pytest.mark.parametrize("count", [LENGTH, 32, 100])
def test_what_is_held_of_the_flow_is_a_window_and_a_step(count: int, home: Path) -> None:
    at = np.arange(count - LENGTH + 1)[:, None] + np.arange(LENGTH)
    parts = load_run_models(home / "runs/flow")
    made = sliding_window.SlidingWindow(parts, at)
    flow = np.random.default_rng(0).normal(size=(count, *optical_flow.FLOW_INFO.shape)).astype(np.float16)
    got = np.concatenate(list(made.run({"motion": flow[i : i + made.step]} for i in range(0, count, made.step))))
    np.testing.assert_allclose(got, parts.stage_two.predict(flow[at], verbose=0), rtol=0, atol=1e-4)
    assert made.engine is None and {len(held) for held in made.buffers.values()} == {LENGTH - 1 + made.step}


@pytest.mark.parametrize("needed", [[0, 2, 4], [0], [3, 4, 9, 14], [0, 1, 13], list(range(15))])
def test_frames_with_gaps_between_them_are_read_once_and_in_order(needed: list[int], here: Path) -> None:
    frames = there_and_back()
    source = Counted(Reel(frames))
    clip = Clip(FrameSequence("drive", "test", 15, 10.0, (1280, 720), ""), source)
    config = read_config(Path("runs/both/config.toml"))
    stream = FrameStream([clip], np.array(needed), config, ["appearance", "motion"])
    found = list(stream.batches(2))
    assert all(len(v) <= 2 for batch in found for v in batch.values())
    np.testing.assert_array_equal(np.concatenate([b["motion"] for b in found]), entries_of(frames)[needed])
    pixels = [resize_frame(frames[i], config.frames) for i in needed]
    np.testing.assert_array_equal(np.concatenate([b["appearance"] for b in found]), pixels)
    assert set(source.read_of.values()) == {1}
    assert list(source.read_of) == sorted(source.read_of)


def test_a_vehicle_along_a_video_as_the_data_set_has_it(here: Path, flows: list[int]) -> None:
    """Its window ends with the clip: one value, the run's own. Each frame is read once, for track, flow and trunk."""
    parts = load_run_models(here / "runs/vehicle")
    clip = next(c for c in scan(parts.config.data).clips if c.sequence.id == "Test/1")
    note = json.loads((here / "data/Test/Test/1/annotation.json").read_text())[0]["bbox"]
    box = (note["left"], note["top"], note["right"], note["bottom"])
    source = Counted(clip.source)
    counted = replace(clip, source=source)
    seen = list(predict_vehicles(parts, counted, {7: {"a": box}}, sliding_windows(counted, parts.config), parts.config))
    assert source.read_of == Counter(range(8)) and len(flows) == 7
    assert [len(sights) for _, sights in seen] == [0] * 7 + [1]
    trained = next(r for r in rows_of(here / "runs/vehicle/predictions.csv") if r["sequence"] == "Test/1")
    expected = [float(trained["vx_pred"]), float(trained["vy_pred"])]
    assert seen[7][1][0].values == pytest.approx(expected, abs=1e-4)


def test_a_vehicles_video_across_ranges_with_its_overlay(here: Path, flows: list[int]) -> None:
    frames = write_video(here / "drive.avi", there_and_back())
    note = json.loads((here / "data/Test/Test/1/annotation.json").read_text())[0]["bbox"]
    line = ",".join(str(note[side]) for side in ("left", "top", "right", "bottom"))
    (here / "b.csv").write_text(f"frame,left,top,right,bottom\n7,{line}\n")
    asked = ["predict", "--run", "vehicle", "--input", "drive.avi", "--boxes", "b.csv", "--output", "v.csv"]
    assert main([*asked, "--overlay", "v.mp4"]) == 0
    assert len(flows) == len(frames) - 1
    rows = rows_of(here / "v.csv")
    assert [int(r["frame"]) for r in rows] == list(range(7, 15))
    assert len(read_video(here / "v.mp4")) == 15
    flow, made = entries_of(frames), vehicle_prediction.OnlineFlow()
    np.testing.assert_array_equal(np.concatenate([made(frames[:8]), made(frames[8:])]), flow)


def test_a_vehicle_needs_its_box_and_own_speed_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--run", "vehicle", "--input", "data/Test/Test/1/imgs"]) == 2
    assert "fusion answers for a vehicle in a box" in capsys.readouterr().err
    assert main(["predict", "--run", "flow", "--input", "data/Test/Test/1/imgs", "--boxes", "b.csv"]) == 2
    assert "fusion asks for no box" in capsys.readouterr().err


def test_fused_it_takes_frames_and_the_others_by_name(here: Path) -> None:
    assert main(["fuse", "--run", "vehicle"]) == 0
    fused = keras.models.load_model(here / "runs/vehicle/fused.keras", safe_mode=True)
    assert {tensor.name for tensor in fused.inputs} == {"frames", "motion", "geometry"}
    assert next(t for t in fused.inputs if t.name == "frames").shape == (None, LENGTH, 36, 64, 3)
    assert json.loads((here / "runs/vehicle/fused.json").read_text())["output"]["relative"] <= 1e-4
    rng = np.random.default_rng(0)
    given = {t.name: rng.integers(0, 9, (2, *t.shape[1:])).astype(t.dtype) for t in fused.inputs}
    _, difference = export_model(servable(fused, ("vx", "vy")), here / "export", "saved_model", given)
    assert difference <= 1e-4


def test_what_cannot_be_fused_or_fine_tuned(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fuse", "finetune"):
        assert main([command, "--run", "flow"]) == 2
        assert "fusion sees optical flow and no frames" in capsys.readouterr().err
    for name in ("both", "vehicle"):
        assert main(["finetune", "--run", name]) == 2
        assert "fine-tuning trains on frames, and fusion sees more than these" in capsys.readouterr().err


FORMATS = {"saved_model": "model", "onnx": "model.onnx", "litert": "model.tflite"}
ALL = list(FORMATS)


@pytest.mark.parametrize(
    ("name", "asked"),
    [("flow", ["onnx"]), *(pytest.param(n, ALL, marks=pytest.mark.soak) for n in RUNS)],
)
def test_exported_by_the_names_of_the_inputs(name: str, asked: list[str], here: Path) -> None:
    formats = [part for each in asked for part in ("--format", each)]
    assert main(["export", "--run", name, *formats]) == 0
    assert {FORMATS[each] for each in asked} <= {p.name for p in (here / "runs" / name / "export").iterdir()}
