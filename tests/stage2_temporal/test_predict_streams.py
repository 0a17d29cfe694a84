"""Heads on optical flow, on maps and flow, and on a vehicle's track too: images give what the store gave, read once."""

from __future__ import annotations

import json
import shutil
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
from features.config import Config, DataConfig, read_run_config
from features.errors import ConfigError
from features.sequences import FrameSequence
from features.store import Store
from stage1_extract import optical_flow
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue, Clip, FrameSource
from stage1_extract.extract import extract
from stage1_extract.frame_loader import resize_frame
from stage1_extract.sample import render_sample_set
from stage2_temporal import predict as predict_module
from stage2_temporal.data.task import read_task
from stage2_temporal.finetune.finetune import finetune
from stage2_temporal.fused.export import export_model, export_run, servable
from stage2_temporal.fused.fuse import fuse_run
from stage2_temporal.predict import predict
from stage2_temporal.sliding.frame_stream import FrameStream
from stage2_temporal.sliding.sliding_window import SlidingWindow, StreamBatch, load_run_models, sliding_windows
from stage2_temporal.sliding.vehicle_prediction import predict_vehicles
from stage2_temporal.train import train
from stage2_temporal.training.keras_models import model_inputs
from tests.image_runs import image_config, read_rows, read_video, write_video

LENGTH = 4
FUSION = {"name": "fusion", "units": 4, "dense": 0}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow": ("ego_speed", FUSION | {"streams": ["motion"]}),
    "ridge": ("ego_speed", {"name": "ridge", "streams": ["motion"]}),
    "road": ("ego_speed", {"name": "ridge", "streams": ["ground_flow"]}),
    "both": ("ego_speed", FUSION | {"streams": ["appearance", "motion"]}),
    "vehicle": ("velocity", FUSION | {"streams": ["appearance", "motion"]}),
}


def run_config(data: Path, name: str) -> Config:
    target, head = RUNS[name]
    return image_config(
        data,
        data={"fps": 10.0, "target": target},
        frames={"height": 36},
        extract={"batch": 8, "motion": True, "ground_flow": True},
        window={"length": LENGTH},
        head=head,
        train={"epochs": 1, "batch": 22},
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips in `data`, a store `s.h5` with maps, flow and tracks, and a run of each kind of head in `runs`."""
    folder = tmp_path_factory.mktemp("home")
    render_sample_set(folder / "data", seed=3, train=4, validation=0, test=2, workers=1)
    configs = {name: run_config(folder / "data", name) for name in RUNS}
    extract(configs["vehicle"], folder / "s.h5", scan(configs["vehicle"].data))
    with Store(folder / "s.h5") as store:
        for name, config in configs.items():
            train(config, store, read_task(config, store), folder / "runs" / name, report=False)
    return folder


class CountedSource:
    """A clip's frames, which counts how often each is read."""

    def __init__(self, source: FrameSource) -> None:
        self.source, self.parallel = source, source.parallel
        self.reads: Counter[int] = Counter()

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        self.reads.update(range(start, stop))
        return self.source.read(start, stop, min_size)


class MemorySource:
    """Frames in memory, to be read in order."""

    parallel = False

    def __init__(self, frames: list[Image]) -> None:
        self.frames = frames

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        return (frame.copy() for frame in self.frames[start:stop])


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an entry for each flow that is computed."""
    flows, pool_flow = [], optical_flow.pool_flow

    def counted(flow: NDArray[np.float32], strip: Image) -> NDArray[np.float32]:
        flows.append(1)
        return pool_flow(flow, strip)

    monkeypatch.setattr(optical_flow, "pool_flow", counted)
    return flows


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[CountedSource]:
    """The sources of a predicted data set's clips."""
    sources: list[CountedSource] = []

    def counted(data: DataConfig, **options: bool) -> Catalogue:
        catalogue = scan(data, need_labels=options["need_labels"])
        sources.extend(CountedSource(clip.source) for clip in catalogue.clips)
        clips = (replace(clip, source=source) for clip, source in zip(catalogue.clips, sources, strict=True))
        return replace(catalogue, clips=tuple(clips))

    monkeypatch.setattr(predict_module, "scan", counted)
    return sources


@pytest.mark.parametrize("version", ["this", "another"])
def test_run_on_flow_of_another_version_is_named(
    version: str, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "r"
    shutil.copytree(home / "runs/ridge", run)
    metrics = json.loads((run / "metrics.json").read_text())
    if version == "another":
        metrics["store"]["streams"]["motion"] = "0123456789abcdef"
        (run / "metrics.json").write_text(json.dumps(metrics))
    predict(run, home / "data/Test/Test/1/imgs", tmp_path / "p.csv", fps=10.0)
    assert ("another version of framebank" in caplog.text) == (version == "another")
    assert read_rows(tmp_path / "p.csv")


def there_and_back(home: Path) -> list[Image]:
    """15 frames of a test clip, forwards and then backwards."""
    files = [home / f"data/Test/Test/1/imgs/{i:03d}.jpg" for i in range(1, 9)]
    frames = [np.asarray(cv2.imread(str(file)), np.uint8) for file in files]
    return [*frames, *frames[-2::-1]]


def motion_entries(frames: list[Image]) -> NDArray[np.float16]:
    cv2.setNumThreads(1)
    return optical_flow.flow_entries([optical_flow.flow_strip(frame) for frame in frames], starts_sequence=True)


def first_box(home: Path) -> tuple[float, float, float, float]:
    """The first vehicle's box in the last frame of test clip 1."""
    box = json.loads((home / "data/Test/Test/1/annotation.json").read_text())[0]["bbox"]
    return (box["left"], box["top"], box["right"], box["bottom"])


@pytest.mark.parametrize("name", ["flow", "ridge", "road", "vehicle"])
def test_data_set_predictions_equal_those_of_the_run_with_each_frame_read_once(
    name: str, home: Path, tmp_path: Path, sources: list[CountedSource], flows: list[int]
) -> None:
    predict(home / "runs" / name, None, tmp_path / "p.csv")
    assert len(sources) == 6
    # vehicles are followed through the whole clip, and its road tells the horizon; flow starts a frame early
    first = 0 if name in ("vehicle", "road") else 3
    for source in sources:
        assert source.reads == Counter(range(first, 8))
    assert len(flows) == (0 if name == "road" else 6 * (7 - first))
    rows, expected = read_rows(tmp_path / "p.csv"), read_rows(home / "runs" / name / "predictions.csv")
    assert len(rows) == len(expected) >= len(sources) and list(rows[0]) == list(expected[0])
    for a, b in zip(rows, expected, strict=True):
        for column, value in a.items():
            if "_pred" in column:
                assert float(value) == pytest.approx(float(b[column]), abs=1e-4), column
            else:
                assert value == b[column]
    assert np.std([float(row[c]) for row in rows for c in row if c.endswith("_pred")]) > 1e-2


@pytest.mark.parametrize("name", ["flow", "both"])
def test_video_and_overlay(
    name: str, home: Path, tmp_path: Path, flows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = read_video(write_video(tmp_path / "drive.avi", there_and_back(home)))
    if name == "flow":
        target = "stage2_temporal.sliding.sliding_window.any_trunk"
        monkeypatch.setattr(target, lambda *_: pytest.fail("a backbone was built for nothing"))
    predict(home / "runs" / name, tmp_path / "drive.avi", tmp_path / "d.csv", tmp_path / "d.mp4")
    assert len(flows) == len(frames) - 1
    rows = read_rows(tmp_path / "d.csv")
    assert [int(r["frame"]) for r in rows] == list(range(LENGTH - 1, 15))
    models = load_run_models(home / "runs" / name)
    windows = np.arange(15 - LENGTH + 1)[:, None] + np.arange(LENGTH)
    inputs: dict[str, Any] = {"motion": motion_entries(frames).astype(np.float32)[windows]}
    if models.trunk is not None:
        small = np.stack([resize_frame(frame, models.config.frames) for frame in frames])
        inputs["appearance"] = np.asarray(models.trunk.model.predict(small, verbose=0)["appearance"])[windows]
    expected = models.stage_two.predict(model_inputs(inputs), verbose=0)[:, :1]
    np.testing.assert_allclose([[float(r["ego_speed"])] for r in rows], expected, rtol=0, atol=1e-4)
    assert expected.std() > 1e-2
    assert len(read_video(tmp_path / "d.mp4")) == 15


def test_folder_of_frames_equals_the_clip_and_a_lower_rate_is_refused(home: Path, tmp_path: Path) -> None:
    run, frames, table = home / "runs/flow", home / "data/Test/Test/1/imgs", tmp_path / "f.csv"
    with pytest.raises(ConfigError, match="at least 10 frames per second; got 5 frames per second"):
        predict(run, frames, table, fps=5)
    predict(run, frames, table)
    expected = next(r for r in read_rows(run / "predictions.csv") if r["sequence"] == "Test/1")
    assert float(read_rows(table)[-1]["ego_speed"]) == pytest.approx(float(expected["ego_speed_pred"]), abs=1e-4)


@pytest.mark.parametrize("count", [LENGTH, 100])
def test_flow_of_one_window_and_one_step_is_kept(count: int, home: Path) -> None:
    rows = np.arange(count - LENGTH + 1)[:, None] + np.arange(LENGTH)
    models = load_run_models(home / "runs/flow")
    window = SlidingWindow(models, rows)
    flow = np.random.default_rng(0).normal(size=(count, *optical_flow.FLOW_INFO.shape)).astype(np.float16)
    batches = ({"motion": flow[i : i + window.step]} for i in range(0, count, window.step))
    values = np.concatenate(list(window.run(batches)))
    np.testing.assert_allclose(values, models.stage_two.predict(flow[rows], verbose=0), rtol=0, atol=1e-4)
    assert window.engine is None
    assert {len(buffer) for buffer in window.buffers.values()} == {LENGTH - 1 + window.step}


@pytest.mark.parametrize("needed", [[0, 2, 4], [0], [3, 4, 9, 14], list(range(15))])
def test_needed_frames_are_read_once_and_in_order(needed: list[int], home: Path) -> None:
    frames = there_and_back(home)
    source = CountedSource(MemorySource(frames))
    clip = Clip(FrameSequence("drive", "test", 15, 10.0, (1280, 720), ""), source)
    config = read_run_config(home / "runs/both")
    models = load_run_models(home / "runs/both")
    batches = list(FrameStream([clip], np.array(needed), config, models).batches(2))
    assert all(len(values) <= 2 for batch in batches for values in batch.values())
    np.testing.assert_array_equal(np.concatenate([b["motion"] for b in batches]), motion_entries(frames)[needed])
    pixels = [resize_frame(frames[i], config.frames) for i in needed]
    np.testing.assert_array_equal(np.concatenate([b["frames"] for b in batches]), pixels)
    assert set(source.reads.values()) == {1}
    assert list(source.reads) == sorted(source.reads)


def test_vehicle_predictions_from_video_and_data_set_are_equal(home: Path, flows: list[int]) -> None:
    """The window ends with the clip: one prediction, the run's own. Each frame is read once."""
    models = load_run_models(home / "runs/vehicle")
    config = models.config
    clip = next(c for c in scan(config.data).clips if c.sequence.id == "Test/1")
    source = CountedSource(clip.source)
    clip = replace(clip, source=source)
    boxes = {7: {"a": first_box(home)}}
    frames = list(predict_vehicles(models, clip, boxes, sliding_windows(clip.sequence, config), config))
    assert source.reads == Counter(range(8)) and len(flows) == 7
    assert [len(predictions) for _, predictions in frames] == [0] * 7 + [1]
    run = next(r for r in read_rows(home / "runs/vehicle/predictions.csv") if r["sequence"] == "Test/1")
    assert frames[7][1][0].values[:2] == pytest.approx([float(run["vx_pred"]), float(run["vy_pred"])], abs=1e-4)


def test_vehicle_in_a_longer_video_with_overlay(
    home: Path, tmp_path: Path, flows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    motion, push = [], SlidingWindow.push

    def recorded(window: SlidingWindow, batch: StreamBatch) -> None:
        motion.append(batch["motion"])
        push(window, batch)

    monkeypatch.setattr(SlidingWindow, "push", recorded)
    frames = read_video(write_video(tmp_path / "drive.avi", there_and_back(home)))
    boxes, table, overlay = (tmp_path / name for name in ("b.csv", "v.csv", "v.mp4"))
    boxes.write_text(f"frame,left,top,right,bottom\n7,{','.join(map(str, first_box(home)))}\n")
    predict(home / "runs/vehicle", tmp_path / "drive.avi", table, overlay, boxes=boxes)
    assert len(flows) == len(frames) - 1
    assert [int(r["frame"]) for r in read_rows(table)] == list(range(7, 15))
    assert len(read_video(overlay)) == 15
    assert [len(entries) for entries in motion] == [8, 7]
    np.testing.assert_array_equal(np.concatenate(motion), motion_entries(frames))


def test_boxes_are_needed_for_vehicles_only(home: Path) -> None:
    frames = home / "data/Test/Test/1/imgs"
    with pytest.raises(ConfigError, match="fusion predicts for a vehicle in a box"):
        predict(home / "runs/vehicle", frames)
    with pytest.raises(ConfigError, match="fusion does not use boxes"):
        predict(home / "runs/flow", frames, boxes=Path("b.csv"))


def test_fused_model_takes_frames_and_other_inputs_by_name(home: Path, tmp_path: Path) -> None:
    with Store(home / "s.h5") as store:
        fused, check = fuse_run(home / "runs/vehicle", store)
    assert check.output.relative <= 1e-4
    assert {tensor.name for tensor in fused.inputs} == {"frames", "motion", "geometry"}
    assert next(t for t in fused.inputs if t.name == "frames").shape == (None, LENGTH, 36, 64, 3)
    fused.save(tmp_path / "fused.keras")
    fused = keras.models.load_model(tmp_path / "fused.keras", safe_mode=True)
    rng = np.random.default_rng(0)
    inputs = {t.name: rng.integers(0, 9, (2, *t.shape[1:])).astype(t.dtype) for t in fused.inputs}
    _, difference = export_model(servable(fused, ("vx", "vy")), tmp_path, "saved_model", inputs)
    assert difference <= 1e-4


def test_heads_on_flow_cannot_be_fused_and_heads_on_more_than_frames_cannot_be_fine_tuned(home: Path) -> None:
    with Store(home / "s.h5") as store:
        with pytest.raises(ConfigError, match="there is no backbone to fuse it with"):
            fuse_run(home / "runs/flow", store)
        for name in ("both", "vehicle"):
            with pytest.raises(ConfigError, match="fine-tuning trains on frames only"):
                finetune(home / "runs" / name, store, read_run_config(home / "runs" / name))


FILES = {"saved_model": "model", "onnx": "model.onnx", "litert": "model.tflite"}


@pytest.mark.parametrize(
    ("name", "formats"),
    [("flow", ["onnx"]), *(pytest.param(name, list(FILES), marks=pytest.mark.soak) for name in RUNS)],
)
def test_export_takes_inputs_by_name(name: str, formats: list[str], home: Path) -> None:
    run = home / "runs" / name
    with Store(home / "s.h5") as store:
        exported = [path for path, _ in export_run(run, store, read_run_config(run), formats)]
    assert [path.name for path in exported] == [FILES[name] for name in formats]
    assert all(path.exists() for path in exported)
