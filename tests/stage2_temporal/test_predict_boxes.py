"""Vehicles in boxes: from a data set's labels and from a CSV, on rendered clips tracked as extraction tracks them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from features._common.types import Image
from features.config import Config, read_config
from features.errors import BadInputs, ConfigError, DataError
from features.sequences import FrameSequence
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.sample import render_sample_set
from stage1_extract.tracking.sequence_tracks import track_clips
from stage2_temporal.__main__ import main
from stage2_temporal.data.task import read_task
from stage2_temporal.fused.export import export_run
from stage2_temporal.heads import check_streams
from stage2_temporal.predict import predict
from stage2_temporal.sliding.boxes_csv import read_boxes
from stage2_temporal.sliding.sliding_window import load_run_models, sliding_windows
from stage2_temporal.sliding.vehicle_prediction import predict_vehicles, warn_of_other_size
from stage2_temporal.train import train
from stage2_temporal.vehicle.camera_geometry import read_camera_geometry
from tests.helpers import write_store

CONFIG = Config.model_validate(
    {
        "data": {"layout": "sample", "path": "data", "target": "velocity", "fps": 10.0},
        "window": {"length": 4},
        "head": {"name": "box_ridge"},
    }
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with rendered clips, a store of their tracks, and the run `boxes`."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        render_sample_set(Path("data"), seed=3, train=12, validation=0, test=2, workers=1, progress=False)
        clips = scan(CONFIG.data).clips
        named = {c.sequence.id: c for c in clips}
        made = dict(track_clips(named, named, 1))
        tracks = {k: t for found in made.values() if not isinstance(found, str) for k, t in found.items()}
        maps = np.zeros((8 * len(clips), 1, 1, 1), np.float32)
        path = write_store(folder / "s.h5", [c.sequence for c in clips], {"appearance": maps}, tracks=tracks)
        with Store(path) as store:
            train(CONFIG, store, read_task(CONFIG, store), Path("runs/boxes"))
    return folder


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder beside the run."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "data", "s.h5"):
        (tmp_path / name).symlink_to(home / name)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def box_of(clip: int, vehicle: int = 0) -> list[float]:
    """A test clip's vehicle in its last frame."""
    note = json.loads(Path(f"data/Test/Test/{clip}/annotation.json").read_text())
    return [note[vehicle]["bbox"][k] for k in ("left", "top", "right", "bottom")]


def write_boxes(lines: list[str], header: str = "frame,left,top,right,bottom,vehicle") -> Path:
    path = Path("boxes.csv")
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_data_set_by_its_labels_boxes(here: Path) -> None:
    written = predict(here / "runs/boxes", None, here / "out.csv")
    ours, theirs = rows_of(here / "out.csv"), rows_of(here / "runs/boxes/predictions.csv")
    assert written.windows == len(ours) == len(theirs)
    for row, trained in zip(ours, theirs, strict=True):
        assert {k: row[k] for k in ("sequence", "label", "frame")} == {
            k: trained[k] for k in ("sequence", "label", "frame")
        }
        assert float(row["vx_pred"]) == pytest.approx(float(trained["vx_pred"]), abs=1e-4)
        assert float(row["vy_pred"]) == pytest.approx(float(trained["vy_pred"]), abs=1e-4)


def test_frames_and_a_box_as_the_data_set_has_it(here: Path) -> None:
    """The box on the last frame alone: one window, followed backwards."""
    file = write_boxes([f"7,{','.join(map(str, box_of(1)))}"], "frame,left,top,right,bottom")
    arguments = ["predict", "--run", "boxes", "--input", "data/Test/Test/1/imgs", "--fps", "10"]
    assert main([*arguments, "--boxes", str(file), "--output", "out.csv"]) == 0
    (row,) = rows_of(here / "out.csv")
    assert list(row) == ["time", "frame", "vehicle", "left", "top", "right", "bottom", "vx", "vy"]
    assert (row["frame"], row["vehicle"], row["time"]) == ("7", "1", "0.700000")
    trained = next(r for r in rows_of(here / "runs/boxes/predictions.csv") if r["sequence"] == "Test/1")
    assert float(row["vx"]) == pytest.approx(float(trained["vx_pred"]), abs=1e-4)
    # without calibration the camera is the one found from the labels' positions
    assert float(row["vy"]) == pytest.approx(float(trained["vy_pred"]), abs=0.05)


class Counted:
    """A clip's frames, counted as they are read."""

    parallel = False

    def __init__(self, frames: list[Image]) -> None:
        self.frames, self.read_of = frames, [0] * len(frames)

    def read(self, start: int, stop: int) -> Iterator[Image]:
        for i in range(start, stop):
            self.read_of[i] += 1
            yield self.frames[i].copy()


def test_a_window_slides_and_each_frame_is_read_once(here: Path) -> None:
    frames = [cv2.imread(f"data/Test/Test/1/imgs/{i:03d}.jpg") for i in range(1, 9)]
    back = [*frames, *frames[-2::-1]]  # 15 frames, there and back again
    source = Counted(back)
    clip = Clip(FrameSequence("drive", "test", 15, 10.0, (1280, 720), ""), source)
    box = tuple(box_of(1))
    parts, rows = load_run_models(here / "runs/boxes"), sliding_windows(clip, CONFIG)
    seen = list(predict_vehicles(parts, clip, {7: {"a": box}}, rows, CONFIG))
    assert source.read_of == [1] * 15
    assert [len(sights) for _, sights in seen] == [0] * 7 + [1] * 8  # from the box's frame on
    values = [sights[0].values[0] for _, sights in seen[7:]]
    assert values[0] == pytest.approx(-values[3], abs=0.3)  # four frames later the window shows them backwards
    assert seen[7][1][0].box == pytest.approx(box, abs=1e-6)


def test_several_vehicles_are_named_and_drawn(here: Path) -> None:
    boxes = {"ahead": box_of(1), "other": [500.0, 380.0, 700.0, 500.0]}
    file = write_boxes([f"7,{','.join(map(str, box))},{name}" for name, box in boxes.items()])
    where = {"overlay": here / "drawn.mp4", "boxes": file, "fps": 10.0}
    written = predict(here / "runs/boxes", here / "data/Test/Test/1/imgs", here / "out.csv", **where)
    assert written.files == (here / "out.csv", here / "drawn.mp4")
    assert "ahead" in [r["vehicle"] for r in rows_of(here / "out.csv")]
    capture, count = cv2.VideoCapture(str(here / "drawn.mp4"), cv2.CAP_FFMPEG), 0
    while (image := capture.read()[1]) is not None:
        last, count = image, count + 1
    assert count == 8
    plain = cv2.imread("data/Test/Test/1/imgs/008.jpg")
    left, top, _, bottom = (round(v) for v in boxes["ahead"])
    edge = np.abs(last[top : bottom + 1, left].astype(int) - plain[top : bottom + 1, left]).mean()
    away = np.abs(last[:100].astype(int) - plain[:100]).mean()
    assert edge > 10 * away


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], None, "no box in it"),
        (["7,10,10,40,40"], "frame,left,top,right,botom", "no column bottom"),
        (["99,10,10,40,40,a"], None, "line 2: no frame 99, expected 0 to 7"),
        (["-1,10,10,40,40,a"], None, "no frame -1"),
        (["7,10,10,10,40,a"], None, "a box of no size"),
        (["7,nan,10,20,40,a"], None, "a box of no size"),
        (["7,2000,10,2040,40,a"], None, "a box outside the image of 1280x720"),
        (["7,10,10,40,forty,a"], None, "not a frame's number and four numbers"),
        (["7,10,10"], None, "not a frame's number and four numbers"),
        (["7,10,10,40,40,a", "7,20,20,60,60,a"], None, "line 3: a second box of vehicle a in frame 7"),
        (["7,600,100,640,130,a"], None, "no vehicle could be followed"),
    ],
)
def test_boxes_that_cannot_be(
    lines: list[str], header: str | None, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_boxes(lines, header or "frame,left,top,right,bottom,vehicle")
    if "followed" in message:  # under 6 px, at a frame at which no window is full
        file.write_text("frame,left,top,right,bottom\n0,600,20,603,24\n")
    arguments = ["predict", "--run", "boxes", "--input", "data/Test/Test/1/imgs", "--fps", "10", "--output", "out.csv"]
    assert main([*arguments, "--boxes", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert not (here / "out.csv").exists()


def test_boxes_are_read_by_frame_and_vehicle_and_every_wrong_line_is_named(here: Path) -> None:
    sequence = FrameSequence("drive", "test", 8, 10.0, (1280, 720), "")
    got = read_boxes(write_boxes(["0,1,2,3,4,b", " 5 ,1,2,3,4, b ", "5,10,20,30,40,"]), sequence)
    assert got == {0: {"b": (1, 2, 3, 4)}, 5: {"b": (1, 2, 3, 4), "1": (10, 20, 30, 40)}}
    with pytest.raises(BadInputs) as caught:
        read_boxes(write_boxes(["9,1,2,3,4,b", "5,1,2,3,4,b", "5,10,20,3,40,"]), sequence)
    assert [line.split(":")[1] for line in caught.value.faults] == [" line 2", " line 4"]
    with pytest.raises(DataError, match=r"cannot be read.*--boxes FILE"):
        read_boxes(Path("none.csv"), sequence)


def test_a_box_where_none_is_asked_for_and_none_where_one_is(here: Path) -> None:
    frames, run = here / "data/Test/Test/1/imgs", here / "runs/boxes"
    with pytest.raises(ConfigError, match=r"box_ridge answers for a vehicle in a box.*--boxes"):
        predict(run, frames)
    with pytest.raises(ConfigError, match="a data set's boxes are its labels'"):
        predict(run, boxes=Path("boxes.csv"))


def test_frames_of_another_size_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_other_size(
        read_camera_geometry(here / "runs/boxes"), FrameSequence("drive", "test", 8, 10.0, (640, 360), "")
    )
    assert "640x360 frames, but the run's ground was learnt on 1280x720" in capsys.readouterr().err


def test_labels_without_boxes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine/Test/Test").mkdir(parents=True)
    for i in (1, 2):
        clip = here / f"mine/Test/Test/{i}"
        clip.mkdir()
        (clip / "imgs").symlink_to(here / f"data/Test/Test/{i}/imgs")
        note = json.loads((here / f"data/Test/Test/{i}/annotation.json").read_text())[:1]
        (clip / "annotation.json").write_text(json.dumps([{k: v for k, v in n.items() if k != "bbox"} for n in note]))
    with pytest.raises(ConfigError, match="no label has a box"):
        predict(here / "runs/boxes", here / "mine", here / "out.csv")
    (here / "mine/Test/Test/2/annotation.json").unlink()
    (here / "mine/Test/Test/2/annotation.json").symlink_to(here / "data/Test/Test/2/annotation.json")
    predict(here / "runs/boxes", here / "mine", here / "out.csv")
    assert "1 of" in capsys.readouterr().err
    usual = np.median([float(r["vx_true"]) for r in rows_of(here / "runs/boxes/predictions.csv")])
    assert float(rows_of(here / "out.csv")[0]["vx_pred"]) == pytest.approx(usual, abs=2)


def test_there_is_nothing_to_fuse(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fuse", "finetune"):
        assert main([command, "--run", "boxes", "--store", "s.h5"]) == 2
        assert "no frames: there is no backbone" in capsys.readouterr().err


def test_a_head_on_a_derived_stream_answers_from_a_store_alone(here: Path) -> None:
    seen = CONFIG.head.model_copy(update={"name": "ridge", "streams": ("motion", "pooled")})
    with pytest.raises(ConfigError, match=r"derived in a store.*got pooled.*evaluate"):
        check_streams(Path("r"), CONFIG.model_copy(update={"head": seen}))


@pytest.mark.parametrize("name", ["saved_model", "onnx", "litert"])
def test_the_model_is_exported_by_its_input(name: str, here: Path) -> None:
    run = here / "runs/boxes"
    with Store(here / "s.h5") as store:
        ((path, difference),) = export_run(run, store, read_config(run / "config.toml"), [name])
    assert path.exists()
    assert difference < 1e-5
