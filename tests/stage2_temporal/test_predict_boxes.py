"""Predicting for vehicles in boxes, from a data set's labels and from a CSV file, on rendered clips."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from features._common.types import Image
from features.config import Config, read_run_config
from features.errors import BadInputs, ConfigError, DataError, FramebankError
from features.sequences import FrameSequence
from features.store import Store
from framebank.cli import main
from framebank.workflows import score
from stage1_extract.datasets.clip import Clip
from stage2_temporal.evaluation.tusimple import by_distance
from stage2_temporal.fused.export import export_run
from stage2_temporal.heads import check_streams, check_uses_maps
from stage2_temporal.predict import predict
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.runs.tables import metrics_table
from stage2_temporal.sliding.boxes_csv import read_boxes
from stage2_temporal.sliding.sliding_window import load_run_models, sliding_windows
from stage2_temporal.sliding.vehicle_prediction import predict_vehicles
from stage2_temporal.training.keras_models import load_model
from stage2_temporal.vehicle.camera_geometry import View, WindowTracks, read_camera_geometry
from stage2_temporal.vehicle.view_grounds import find_view_grounds
from tests.image_runs import read_rows, read_video
from tests.kitti_boxes import KITTI_CAMERA, KITTI_SIZE, read_kitti_windows
from tests.vehicle_runs import box_config, train_on_rendered_boxes

COLUMNS = "frame,left,top,right,bottom,vehicle"
SEQUENCE = FrameSequence("drive", "test", 8, 10.0, (1280, 720), "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips in `data`, a store `s.h5` of their tracks, and the run `runs/boxes`."""
    folder = tmp_path_factory.mktemp("home")
    train_on_rendered_boxes(folder, clips=8)
    return folder


@pytest.fixture
def run(home: Path) -> Path:
    return home / "runs/boxes"


@pytest.fixture
def frames(home: Path) -> Path:
    """The frames of test clip 1."""
    return home / "data/Test/Test/1/imgs"


@pytest.fixture
def box(home: Path) -> tuple[float, ...]:
    """Its first vehicle's box in the last frame."""
    note = json.loads((home / "data/Test/Test/1/annotation.json").read_text())
    return tuple(note[0]["bbox"][side] for side in ("left", "top", "right", "bottom"))


def write_boxes(path: Path, lines: list[str], header: str = COLUMNS) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_data_set_predictions_equal_those_of_the_run(run: Path, tmp_path: Path) -> None:
    files = predict(run, None, tmp_path / "out.csv")
    rows, expected = read_rows(tmp_path / "out.csv"), read_rows(run / "predictions.csv")
    assert files.windows == len(rows) == len(expected)
    for a, b in zip(rows, expected, strict=True):
        assert all(a[name] == b[name] for name in ("sequence", "label", "frame"))
        assert float(a["vx_pred"]) == pytest.approx(float(b["vx_pred"]), abs=1e-4)
        assert float(a["vy_pred"]) == pytest.approx(float(b["vy_pred"]), abs=1e-4)


def test_box_in_the_last_frame_is_followed_backwards(
    run: Path, frames: Path, box: tuple[float, ...], tmp_path: Path
) -> None:
    file = write_boxes(tmp_path / "boxes.csv", [f"7,{','.join(map(str, box))}"], COLUMNS.removesuffix(",vehicle"))
    predict(run, frames, tmp_path / "out.csv", boxes=file, fps=10)
    (row,) = read_rows(tmp_path / "out.csv")
    assert list(row)[:9] == ["time", "frame", "vehicle", "left", "top", "right", "bottom", "vx", "vy"]
    assert (row["frame"], row["vehicle"], row["time"]) == ("7", "1", "0.700000")
    expected = next(r for r in read_rows(run / "predictions.csv") if r["sequence"] == "Test/1")
    assert float(row["vx"]) == pytest.approx(float(expected["vx_pred"]), abs=1e-4)
    # a folder of frames has no calibration, so the camera is the one estimated from the labels' positions
    assert float(row["vy"]) == pytest.approx(float(expected["vy_pred"]), abs=0.05)


class CountedFrames:
    """Frames in memory, counted as they are read."""

    parallel = False

    def __init__(self, frames: list[Image]) -> None:
        self.frames, self.reads = frames, [0] * len(frames)

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        for i in range(start, stop):
            self.reads[i] += 1
            yield self.frames[i].copy()


def test_window_slides_and_each_frame_is_read_once(run: Path, frames: Path, box: tuple[float, ...]) -> None:
    images = [np.asarray(cv2.imread(str(frames / f"{i:03d}.jpg")), np.uint8) for i in range(1, 9)]
    source = CountedFrames([*images, *images[-2::-1]])  # 15 frames, there and back again
    clip = Clip(FrameSequence("drive", "test", 15, 10.0, (1280, 720), ""), source)
    models = load_run_models(run)
    windows = sliding_windows(clip.sequence, models.config)
    results = list(predict_vehicles(models, clip, {7: {"a": box}}, windows, models.config))
    assert source.reads == [1] * 15
    assert [len(predictions) for _, predictions in results] == [0] * 7 + [1] * 8  # from the box's frame on
    values = [predictions[0].values[0] for _, predictions in results[7:]]
    assert values[0] == pytest.approx(-values[3], abs=0.3)  # three frames later, the window shows the same backwards
    assert results[7][1][0].box == pytest.approx(box, abs=1e-6)


def picture_in(page: str) -> Image:
    """The first picture that a page embeds."""
    match = re.search(r"data:image/jpeg;base64,([^\"]+)", page)
    assert match is not None
    return np.asarray(cv2.imdecode(np.frombuffer(base64.b64decode(match[1]), np.uint8), cv2.IMREAD_COLOR), np.uint8)


def test_several_vehicles_are_named_and_drawn(run: Path, frames: Path, box: tuple[float, ...], tmp_path: Path) -> None:
    boxes = {"ahead": box, "other": (500.0, 380.0, 700.0, 500.0)}
    lines = [f"7,{','.join(map(str, sides))},{name}" for name, sides in boxes.items()]
    table, overlay, page = tmp_path / "out.csv", tmp_path / "drawn.mp4", tmp_path / "drive.html"
    boxes_file = write_boxes(tmp_path / "boxes.csv", lines)
    files = predict(run, frames, table, overlay, boxes=boxes_file, fps=10.0, report=page)
    assert files.files == (table, overlay, page)
    assert "ahead" in [r["vehicle"] for r in read_rows(table)]
    drawn, plain = read_video(overlay), cv2.imread(str(frames / "008.jpg"))
    assert len(drawn) == 8
    change = np.abs(drawn[-1].astype(int) - plain)
    left, top, _, bottom = (round(side) for side in box)
    assert change[top : bottom + 1, left].mean() > 10 * change[:100].mean()
    shown = picture_in(page.read_text())
    scale = shown.shape[1] / 1280
    small = cv2.resize(np.asarray(plain), shown.shape[1::-1], interpolation=cv2.INTER_AREA)
    change = np.abs(shown.astype(int) - small)
    rows = slice(round(top * scale), round(bottom * scale))
    assert change[rows, round(left * scale)].mean() > 10 * change[: round(100 * scale)].mean()
    assert "<td>ahead</td>" in page.read_text()


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], COLUMNS, "no boxes"),
        (["7,10,10,40,40"], "frame,left,top,right,botom", "no column bottom"),
        (["99,10,10,40,40,a"], COLUMNS, "line 2: no frame 99; expected 0 to 7"),
        (["-1,10,10,40,40,a"], COLUMNS, "no frame -1"),
        (["7,10,10,10,40,a"], COLUMNS, "empty box"),
        (["7,nan,10,20,40,a"], COLUMNS, "empty box"),
        (["7,2000,10,2040,40,a"], COLUMNS, "box outside the 1280x720 frame"),
        (["7,10,10,40,forty,a"], COLUMNS, "expected a frame number and four numbers"),
        (["7,10,10"], COLUMNS, "line 2: wrong number of cells"),
        (["7,10,10,40,40,a", "7,20,20,60,60,a"], COLUMNS, "line 3: a second box of vehicle a in frame 7"),
    ],
)
def test_bad_boxes_are_refused(lines: list[str], header: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FramebankError) as caught:
        read_boxes(write_boxes(tmp_path / "boxes.csv", lines, header), SEQUENCE)
    assert message in str(caught.value) and "Try: " in str(caught.value)


def test_boxes_are_read_by_frame_and_vehicle_and_every_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    boxes = read_boxes(write_boxes(path, ["0,1,2,3,4,b", " 5 ,1,2,3,4, b ", "5,10,20,30,40,"]), SEQUENCE)
    assert boxes == {0: {"b": (1, 2, 3, 4)}, 5: {"b": (1, 2, 3, 4), "1": (10, 20, 30, 40)}}
    with pytest.raises(BadInputs) as caught:
        read_boxes(write_boxes(path, ["9,1,2,3,4,b", "5,1,2,3,4,b", "5,10,20,3,40,"]), SEQUENCE)
    assert [fault.split(":")[0].split(", ")[-1] for fault in caught.value.faults] == ["line 2", "line 4"]


def test_vehicle_that_cannot_be_followed_leaves_no_file(run: Path, frames: Path, tmp_path: Path) -> None:
    boxes = write_boxes(tmp_path / "boxes.csv", ["0,600,20,603,24,a"])  # under 6 px, before the first full window
    with pytest.raises(DataError, match="no vehicle could be followed"):
        predict(run, frames, tmp_path / "out.csv", boxes=boxes, fps=10)
    assert not (tmp_path / "out.csv").exists()


def camera_file(path: Path, **changes: object) -> Path:
    """The rendered set's camera as a .toml file."""
    values = {"fx": 714.1526, "fy": 710.3725, "cx": 675.5754, "cy": 376.2563, "size": [1280, 720], "height": 1.8}
    path.write_text("".join(f"{name} = {value}\n" for name, value in (values | changes).items()))
    return path


def test_camera_file_tells_that_frames_are_the_training_cameras(
    run: Path, frames: Path, box: tuple[float, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = write_boxes(tmp_path / "boxes.csv", [f"7,{','.join(map(str, box))},a"])
    predict(run, frames, tmp_path / "out.csv", boxes=boxes, fps=10)
    assert "the camera is not known" in capsys.readouterr().err  # one box cannot show which one it is
    predict(run, frames, tmp_path / "camera.csv", boxes=boxes, fps=10, camera=camera_file(tmp_path / "c.toml"))
    assert "camera" not in capsys.readouterr().err
    bent = camera_file(tmp_path / "bent.toml", distortion=[-0.2, 0.03])
    predict(run, frames, tmp_path / "bent.csv", boxes=boxes, fps=10, camera=bent)
    assert "which only `framebank speed` corrects" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"distortion.*expected 2, 4 or 5 numbers"):
        three = camera_file(tmp_path / "three.toml", distortion=[0.1, 0.2, 0.3])
        predict(run, frames, tmp_path / "no.csv", boxes=boxes, fps=10, camera=three)
    (plain,), (row,) = read_rows(tmp_path / "out.csv"), read_rows(tmp_path / "camera.csv")
    assert row == plain
    with pytest.raises(DataError, match=r"frames of another shape.*got 1280x720"):
        wrong = camera_file(tmp_path / "wrong.toml", size=[640, 480])
        predict(run, frames, tmp_path / "no.csv", boxes=boxes, fps=10, camera=wrong)


def test_run_is_scored_on_labelled_data(home: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's own data set has the run's own scores; nothing is written."""
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert main(["evaluate", "--run", str(run), "--input", str(home / "data"), "--layout", "sample"]) == 0
    table = capsys.readouterr().out
    assert "EV: near medium far" in table
    metrics, scored = read_metrics(run), score(run, home / "data", layout="sample")
    assert metrics_table(scored) in table
    for split in ("train", "test"):
        own, again = (m.splits[split].model for m in (metrics, scored))
        assert again.rmse == pytest.approx(own.rmse, abs=1e-4)
        assert scored.splits[split].constant.rmse == pytest.approx(metrics.splits[split].constant.rmse)
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_run_is_scored_with_the_numbers_of_a_camera(home: Path, run: Path, tmp_path: Path) -> None:
    """A camera that is said to be lower than it is makes vehicles nearer and slower."""
    true, low = (
        score(run, home / "data", camera=camera_file(tmp_path / f"{height}.toml", height=height, horizon=340.0))
        for height in (1.8, 0.9)
    )
    assert low.splits["train"].model.spread_ratio < 0.8 * true.splits["train"].model.spread_ratio
    with pytest.raises(ConfigError, match=r"data\.layout: no such layout"):
        score(run, home / "data", layout="movie")
    with pytest.raises(DataError, match=r"nowhere: no such"):
        score(run, home / "nowhere")


@pytest.mark.parametrize(("horizon", "limit"), [({"horizon": 172.85}, 0.2), ({}, 0.2)])
def test_kitti_lead_car_from_pixels_by_a_run_on_rendered_clips(
    horizon: dict[str, float], limit: float, run: Path, real: Path, tmp_path: Path
) -> None:
    """Zero has 0.58 m/s; the box is known in the first frame, and the calibration."""
    scene = real / "kitti_lead_car"
    intrinsics = {"fx": 721.54, "fy": 721.54, "cx": 609.56, "cy": 172.85, "size": [1242, 375], "height": 1.65}
    camera = camera_file(tmp_path / "kitti.toml", **intrinsics, **horizon)
    boxes = write_boxes(tmp_path / "boxes.csv", ["0,556,190,700,308,lead"])
    predict(run, scene / "frames", tmp_path / "out.csv", boxes=boxes, fps=10, camera=camera)
    true = [float(row["relative_velocity_mps"]) for row in read_rows(scene / "labels.csv")]
    rows = read_rows(tmp_path / "out.csv")
    errors = np.array([float(row["vx"]) - true[int(row["frame"])] for row in rows])
    print(f"RMS {np.sqrt(np.mean(errors**2)):.3f} m/s over {len(rows)} frames, {horizon or 'horizon unknown'}")
    assert len(rows) > 70
    assert np.sqrt(np.mean(errors**2)) <= limit


def test_kitti_boxes_by_a_run_on_rendered_clips(run: Path, real: Path) -> None:
    """Real boxes of ten scenes, each with the calibration and a horizon of its own; zero has EV 90 and 43."""
    windows, model = read_kitti_windows(real / "kitti_tracking_boxes"), load_model(run)
    geometry, view = read_camera_geometry(run), View(KITTI_CAMERA, KITTI_SIZE)
    predicted = np.zeros_like(windows.velocity)
    for scene in np.unique(windows.scene):
        rows = windows.scene == scene
        boxes, times = windows.boxes[rows], np.tile(windows.times, (int(rows.sum()), 1))
        tracks = WindowTracks(boxes, np.ones(boxes.shape[:2]), times, [view] * len(boxes))
        grounds = find_view_grounds(geometry, {view: boxes[:, -1]})
        predicted[rows] = np.asarray(model(geometry.vectors(tracks, grounds.grounds, grounds.noise)))
    errors = predicted - windows.velocity
    every, ordinary = (by_distance(errors[rows], windows.position[rows]) for rows in (slice(None), windows.ordinary))
    assert every is not None and ordinary is not None
    print(f"EV {every.mean:.2f} for all windows, {ordinary.mean:.2f} for vehicles along the road")
    assert every.mean <= 5.5
    assert ordinary.mean <= 1.8


def test_boxes_must_be_given_for_a_video_and_not_for_a_data_set(run: Path, frames: Path) -> None:
    with pytest.raises(ConfigError, match=r"box_ridge predicts for a vehicle in a box.*--boxes"):
        predict(run, frames)
    with pytest.raises(ConfigError, match="a data set has boxes in its labels"):
        predict(run, boxes=Path("boxes.csv"))


def test_labels_without_boxes_get_a_typical_value(
    home: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (1, 2):
        source, clip = home / f"data/Test/Test/{i}", tmp_path / f"data/Test/Test/{i}"
        clip.mkdir(parents=True)
        (clip / "imgs").symlink_to(source / "imgs")
        notes = json.loads((source / "annotation.json").read_text())[:1]
        without_box = [{k: v for k, v in note.items() if k != "bbox"} for note in notes]
        (clip / "annotation.json").write_text(json.dumps(without_box))
    with pytest.raises(ConfigError, match="no label has a box"):
        predict(run, tmp_path / "data", tmp_path / "out.csv")
    (tmp_path / "data/Test/Test/2/annotation.json").unlink()
    (tmp_path / "data/Test/Test/2/annotation.json").symlink_to(home / "data/Test/Test/2/annotation.json")
    predict(run, tmp_path / "data", tmp_path / "out.csv")
    assert "1 of" in capsys.readouterr().err
    typical = np.median([float(r["vx_true"]) for r in read_rows(run / "predictions.csv")])
    assert float(read_rows(tmp_path / "out.csv")[0]["vx_pred"]) == pytest.approx(typical, abs=2)


def test_heads_that_cannot_predict_from_images_or_be_fused_are_refused(home: Path) -> None:
    config = box_config(home / "data")
    with pytest.raises(ConfigError, match="reads a vehicle's track and no frames"):
        check_uses_maps(Path("r"), config)
    config = Config.model_validate(config.model_dump() | {"head": {"name": "ridge", "streams": ("motion", "pooled")}})
    with pytest.raises(ConfigError, match=r"derived in a store.*got pooled.*evaluate"):
        check_streams(Path("r"), config)


@pytest.mark.parametrize("name", ["saved_model", "onnx", "litert"])
def test_model_on_tracks_is_exported(name: str, home: Path, run: Path) -> None:
    with Store(home / "s.h5") as store:
        ((path, difference),) = export_run(run, store, read_run_config(run), [name])
    assert path.exists()
    assert difference < 1e-5
