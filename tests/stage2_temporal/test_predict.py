"""Predicting videos, folders of frames and data sets: the fused model's values, with one trunk pass per frame."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Image
from features.config import Config
from features.errors import DataError, FramebankError, StoreError
from features.sequences import FrameSequence
from stage1_extract.datasets.video import Video
from stage1_extract.frame_loader import resize_frame
from stage2_temporal import predict as predict_module
from stage2_temporal.__main__ import main
from stage2_temporal.fused.fuse import build_fused_model
from stage2_temporal.predict import predict
from stage2_temporal.sliding.overlay import open_overlay
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow, load_run_models, sliding_windows
from tests.helpers import picture, write_clips
from tests.image_runs import image_config, read_rows, read_video, train_on_images, write_video

LENGTH, STRIDE, BATCH = 3, 2, 8
SPAN = (LENGTH - 1) * STRIDE + 1
FRAMES = 21


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on clips of 12 frames per second, every second of which is in a window."""
    return train_on_images(
        tmp_path_factory.mktemp("home"),
        {"Train": 6, "Validation": 2, "Test": 11},
        data={"fps": 12.0},
        extract={"batch": BATCH},
        window={"length": LENGTH, "stride": STRIDE},
        head={"units": 8, "difference": True},
        train={"epochs": 1},
    )


@pytest.fixture(scope="module")
def models(run: Path) -> RunModels:
    return load_run_models(run)


@pytest.fixture(scope="module")
def fused(models: RunModels) -> keras.Model:
    assert models.trunk is not None
    return build_fused_model(models.trunk.model, models.stage_two)


def images(count: int = FRAMES, size: tuple[int, int] = (160, 120)) -> list[Image]:
    """A picture that drifts and darkens."""
    wide = picture(7, (size[0] + 8 * count, size[1]))
    return [(wide[:, 8 * i : 8 * i + size[0]] * (1 - 0.5 * i / count)).astype(np.uint8) for i in range(count)]


def resized(frames: list[Image], config: Config) -> Image:
    return np.stack([resize_frame(frame, config.frames) for frame in frames])


def assert_predicted(rows: list[dict[str, str]], fused: keras.Model, frames: Image, stride: int = STRIDE) -> None:
    """Compare the last two columns with the fused model's prediction of each window."""
    span = (LENGTH - 1) * stride + 1
    expected = fused.predict(
        np.stack([frames[i : i + span : stride] for i in range(len(frames) - span + 1)]), verbose=0
    )
    expected = expected[:, :2]  # without what tells the uncertainty
    assert expected.std() > 1e-2  # the windows do differ
    values = np.array([[row["vx"], row["vy"]] for row in rows], np.float32)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)


def test_folder_of_frames_has_the_fused_models_values_in_the_order_of_its_numbers(
    tmp_path: Path, run: Path, models: RunModels, fused: keras.Model
) -> None:
    (tmp_path / "frames").mkdir()
    for i, image in enumerate(images()):  # f1, f2, … f10: not the order of the alphabet
        assert cv2.imwrite(str(tmp_path / "frames" / f"f{i + 1}.png"), image)
    (tmp_path / "frames" / "notes.txt").write_text("not a frame")
    files = predict(run, tmp_path / "frames", stride=1, fps=4)
    assert files.files == (run / "predicted" / "frames.csv",)
    rows = read_rows(files.files[0])
    assert_predicted(rows, fused, resized(images(), models.config), stride=1)
    assert (int(rows[0]["frame"]), float(rows[0]["time"])) == (LENGTH - 1, (LENGTH - 1) / 4)
    assert len(rows) == FRAMES - LENGTH + 1


def test_command_predicts_a_video_and_draws_the_overlay(
    tmp_path: Path, run: Path, models: RunModels, fused: keras.Model, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    windows: list[SlidingWindow] = []

    class RecordedWindow(SlidingWindow):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            windows.append(self)

    monkeypatch.setattr(predict_module, "SlidingWindow", RecordedWindow)
    video, table, overlay = (tmp_path / name for name in ("drive.avi", "out/d.csv", "out/d.mp4"))
    write_video(video, images(size=(320, 240)), fps=12)
    command = ["predict", "--run", str(run), "--input", str(video), "--output", str(table), "--overlay", str(overlay)]
    assert main(command) == 0
    assert [w.engine.passes for w in windows if w.engine is not None] == [math.ceil(FRAMES / BATCH)]
    assert capsys.readouterr().out == f"{FRAMES - SPAN + 1} windows: {table}, {overlay}\n"
    rows, decoded = read_rows(table), read_video(video)
    assert list(rows[0])[:4] == ["time", "frame", "vx", "vy"]
    assert [int(r["frame"]) for r in rows] == list(range(SPAN - 1, FRAMES))
    assert float(rows[0]["time"]) == pytest.approx((SPAN - 1) / 12, abs=1e-6)
    assert_predicted(rows, fused, resized(decoded, models.config))

    assert cv2.VideoCapture(str(overlay), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FPS) == 12
    drawn = read_video(overlay)
    assert len(drawn) == FRAMES and {f.shape for f in drawn} == {(240, 320, 3)}
    for i, (after, before) in enumerate(zip(drawn, decoded, strict=True)):
        change = np.abs(after.astype(int) - before)
        assert change[10:60, 10:60].mean() > 20, i  # the panel
        assert change[150:].mean() < 6, i  # the road below is changed only by the codec
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["d.csv", "d.mp4"]


def test_overlay_of_odd_size_loses_a_row_and_a_column(tmp_path: Path) -> None:
    sequence = FrameSequence("drive", "test", 6, 29.97, (161, 121), "")
    with open_overlay(tmp_path / "o.mp4", sequence) as write_frame:
        for image in images(6, (161, 121)):
            write_frame(image)
    frames = read_video(tmp_path / "o.mp4")
    assert len(frames) == 6 and frames[0].shape == (120, 160, 3)


@pytest.mark.parametrize("count", [SPAN, 5 * BATCH + 3])
def test_each_frame_passes_the_trunk_once_and_memory_does_not_grow(
    models: RunModels, fused: keras.Model, count: int
) -> None:
    frames = resized(images(count), models.config)
    # in the engine of the fused model; the differences between engines have tests of their own
    extract = models.config.extract.model_copy(update={"engine": "tensorflow"})
    models = replace(models, config=models.config.model_copy(update={"extract": extract}))
    window = SlidingWindow(models, np.arange(count - SPAN + 1)[:, None] + STRIDE * np.arange(LENGTH))
    batches = ({"frames": frames[i : i + BATCH]} for i in range(0, count, BATCH))
    values = np.concatenate(list(window.run(batches)))
    assert window.engine is not None and window.engine.passes == math.ceil(count / BATCH)
    assert {len(buffer) for buffer in window.buffers.values()} == {SPAN - 1 + BATCH}  # whatever the count
    np.testing.assert_allclose(values[:, :2], fused.predict(frames[window.rows], verbose=0)[:, :2], rtol=0, atol=1e-4)


def test_data_set_predictions_equal_those_of_the_run(tmp_path: Path, run: Path) -> None:
    predict(run, None, tmp_path / "p.csv")
    rows, expected = read_rows(tmp_path / "p.csv"), read_rows(run / "predictions.csv")
    assert len(rows) == len(expected) == 19 and list(rows[0]) == list(expected[0])
    for a, b in zip(rows, expected, strict=True):
        for name, value in a.items():
            computed = value and name.endswith(("_pred", "_low", "_high"))
            assert (float(value) == pytest.approx(float(b[name]), abs=1e-4)) if computed else value == b[name]
    speeds, expected = read_rows(tmp_path / "submission.csv"), read_rows(run / "submission.csv")
    assert [r["ID"] for r in speeds] == [r["ID"] for r in expected] == [str(i) for i in range(1, 12)]
    for a, b in zip(speeds, expected, strict=True):
        assert float(a["speed"]) == pytest.approx(float(b["speed"]), abs=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "submission.csv"]


def test_damaged_clip_is_skipped_and_named(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run.parents[1] / "clips", tmp_path / "data")
    file = tmp_path / "data" / "Test" / "Test" / "2" / "imgs" / "008.jpg"
    content = bytearray(file.read_bytes())
    content[content.index(b"\xff\xda") + 6] = 0x33  # no such Huffman tables, which only decoding shows
    file.write_bytes(content)
    (skipped,) = predict(run, tmp_path / "data", tmp_path / "p.csv").skipped
    assert "data/Test/Test/2/imgs/008.jpg" in skipped
    names = {r["sequence"] for r in read_rows(tmp_path / "p.csv")}
    assert "Test/2" not in names and len(names) == 18
    assert [r["ID"] for r in read_rows(tmp_path / "submission.csv")] == ["1", *map(str, range(3, 12))]


def test_unlabelled_video_frames_are_predicted(
    tmp_path: Path, run: Path, models: RunModels, fused: keras.Model
) -> None:
    """A manifest without labels gives a row for every frame that ends a full window."""
    write_clips(tmp_path / "bare", {"Test": 1}, frames=SPAN + 2)
    paths = sorted((tmp_path / "bare" / "Test" / "Test" / "1" / "imgs").iterdir())
    lines = [f"{p},a,{i},test,\n" for i, p in enumerate(paths)]
    (tmp_path / "bare.csv").write_text("path,sequence,frame,split,vx\n" + "".join(lines))
    shutil.copytree(run, tmp_path / "other")
    config = tmp_path / "other" / "config.toml"
    config.write_text(config.read_text().replace('"competition"', '"manifest"'))
    predict(tmp_path / "other", tmp_path / "bare.csv", tmp_path / "p.csv")
    rows = read_rows(tmp_path / "p.csv")
    assert [int(r["frame"]) for r in rows] == [SPAN - 1, SPAN, SPAN + 1]
    frames = resized([np.asarray(cv2.imread(str(p)), np.uint8) for p in paths], models.config)
    assert_predicted([{c: r[f"{c}_pred"] for c in ("vx", "vy")} for r in rows], fused, frames)


def two_sizes(path: Path, codec: str) -> Path:
    """A video whose frame size changes: 6 frames of 128x96, then 6 of 160x96."""
    parts = [write_video(path.with_name(f"{n}{path.suffix}"), images(6, (n, 96)), codec, 12) for n in (128, 160)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.ts", "mp4v"), ("a.ts", "mpg2"), ("a.avi", "MJPG")])
def test_change_of_frame_size_is_found(tmp_path: Path, name: str, codec: str) -> None:
    path = two_sizes(tmp_path / name, codec)
    with pytest.raises(DataError, match=r"frame size changes at frame [56]; expected 128x96 throughout; got 160x96"):
        Video(path)  # a decoder may drop the last frame before the change
    assert Video(write_video(tmp_path / f"b{path.suffix}", images(), codec, 12)).facts.size == (160, 120)


def test_frame_rate_is_read_only_from_headers_that_have_one(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", images(), "mp4v", 29.97)
    assert Video(video).facts.fps == pytest.approx(29.97)
    bare = tmp_path / "a.mjpeg"
    bare.write_bytes(b"".join(bytes(cv2.imencode(".jpg", image)[1]) for image in images()))
    assert Video(bare).facts.fps is None


def without_rate(path: Path) -> Path:
    """An MP4 whose header says that each frame lasts 0 s."""
    content = bytearray(write_video(path, images(), "mp4v", 12).read_bytes())
    start = content.index(b"stts") + 16
    content[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that can be wrong with an input."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "corrupt.mp4").write_bytes(b"no video" * 200)
    good = write_video(folder / "good.mp4", images(), "mp4v", 12)
    (folder / "half.mp4").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    write_video(folder / "three.avi", images(3))
    two_sizes(folder / "grows.ts", "mp4v")
    without_rate(folder / "rateless.mp4")
    (folder / "empty").mkdir()
    for name, sizes in (("mixed", [(64, 48)] * 6 + [(80, 48)]), ("short", [(64, 48)] * 4), ("torn", [(64, 48)] * 6)):
        (folder / name).mkdir()
        for i, size in enumerate(sizes):
            cv2.imwrite(str(folder / name / f"{i}.jpg"), picture(i, size))
    torn = folder / "torn" / "3.jpg"
    torn.write_bytes(torn.read_bytes()[:-200])
    return folder


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("corrupt.mp4", {}, "corrupt.mp4: not a video that FFmpeg can decode"),
        ("half.mp4", {}, "half.mp4: not a video that FFmpeg can decode"),
        (
            "three.avi",
            {},
            "three.avi: shorter than one window (3 frames, 0.167 s apart); expected at least 0.333 s",
        ),
        ("grows.ts", {}, "frame size changes at frame 6; expected 128x96 throughout; got 160x96"),
        ("rateless.mp4", {}, "rateless.mp4: no frame rate in its header"),
        ("empty", {}, "empty: no frames; expected image files such as 001.jpg"),
        ("mixed", {}, "mixed/6.jpg: "),
        ("short", {}, "short: shorter than one window"),
        ("torn", {}, "torn/3.jpg: damaged image"),
        ("nowhere.mp4", {}, "nowhere.mp4: no such video or folder"),
        ("nowhere.mp4", {"output": "rateless.mp4"}, "nowhere.mp4: no such video or folder"),
        ("nowhere.csv", {}, "nowhere.csv"),
        ("good.mp4", {"stride": 0}, "--stride must be positive; got 0"),
        ("good.mp4", {"stride": 11}, "shorter than one window (3 frames, stride 11); expected at least 23 frames"),
        ("good.mp4", {"fps": -1.0}, "--fps must be positive; got -1.0"),
        ("good.mp4", {"output": "corrupt.mp4/o.csv"}, "corrupt.mp4/o.csv: cannot be written"),
        ("good.mp4", {"output": "empty"}, "empty: is a folder, not an output file"),
        ("good.mp4", {"overlay": "corrupt.mp4/o.mp4"}, "corrupt.mp4/o.mp4: cannot be written"),
        ("good.mp4", {"overlay": "good.mp4"}, "good.mp4: is the input, not an output file"),
        ("good.mp4", {"output": "good.mp4"}, "good.mp4: is the input, not an output file"),
        ("mixed", {"output": "mixed/2.jpg"}, "mixed/2.jpg: is the input, not an output file"),
        (None, {"overlay": "o.mp4"}, "--overlay needs one video or one folder of frames"),
        ("good.mp4", {"run": Path("runs/nothing")}, "runs/nothing is not a run"),
    ],
)
def test_bad_request_is_refused_before_a_model_is_loaded(
    run: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(predict_module, "load_run_models", lambda run: pytest.fail("a network was loaded for nothing"))
    before = sorted(inputs.rglob("*"))
    options = {n: inputs / v if n in ("output", "overlay") else v for n, v in options.items()}
    options = {"run": run, "output": inputs / "new.csv"} | options
    with pytest.raises(FramebankError) as caught:
        predict(source=None if source is None else inputs / source, **options)
    text = str(caught.value)
    assert message in text and "Try: " in text and len(text.splitlines()) == 1, text
    assert sorted(inputs.rglob("*")) == before


def test_given_frame_rate_replaces_a_missing_one(tmp_path: Path, run: Path) -> None:
    predict(run, without_rate(tmp_path / "rateless.mp4"), tmp_path / "r.csv", fps=12)
    assert [r["time"] for r in read_rows(tmp_path / "r.csv")][:2] == ["0.333333", "0.416667"]


def test_video_that_cannot_be_read_to_its_end_leaves_the_old_files(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, table, overlay = (tmp_path / name for name in ("drive.avi", "d.csv", "o.mp4"))
    write_video(video, images(), fps=12)
    table.write_text("before")
    overlay.write_bytes(b"before")

    lengths = iter([12, 10])  # the second after its frames were counted again

    def shorten(sequence: FrameSequence, config: Config, slowest: float | None) -> NDArray[np.int64]:
        """Shorten the video after it was opened: only decoding shows that frames are missing."""
        write_video(video, images(next(lengths)), fps=12)
        return sliding_windows(sequence, config, slowest)

    monkeypatch.setattr(predict_module, "sliding_windows", shorten)
    with pytest.raises(DataError):
        predict(run, video, table, overlay)
    assert (table.read_text(), overlay.read_bytes()) == ("before", b"before")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.csv", "drive.avi", "o.mp4"]


def test_backbone_other_than_the_runs_is_refused(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    config = tmp_path / "other" / "config.toml"
    config.write_text(config.read_text().replace("0.25", "0.5"))
    with pytest.raises(StoreError, match="builds a different backbone than the run was trained on"):
        load_run_models(tmp_path / "other")


UNFIT = "takes something else than the run's settings say"


@pytest.mark.parametrize(
    ("name", "shape", "value", "message"),
    [
        ("other", (LENGTH, 5, 5, 3), 0.0, UNFIT),
        ("features", (LENGTH + 1, 5, 5, 3), 0.0, UNFIT),
        ("features", (None, 5, 5, 3), 0.0, UNFIT),
        ("features", (LENGTH, 5, 5, 3), 0.0, UNFIT),
        ("features", (LENGTH, 5, 5, 3), math.nan, "NaN or infinity in the weights"),
    ],
    ids=["name", "length", "any length", "maps", "NaN"],
)
def test_model_that_is_not_the_runs_is_refused(
    tmp_path: Path, run: Path, name: str, shape: tuple[int | None, ...], value: float, message: str
) -> None:
    shutil.copytree(run, tmp_path / "other")
    maps = keras.Input(shape, name=name)
    pooled = keras.layers.GlobalAveragePooling3D()(maps)
    bias = keras.initializers.Constant(value)
    model = keras.Model(maps, keras.layers.Dense(2, bias_initializer=bias)(pooled))
    model.save(tmp_path / "other" / "model.keras")
    with pytest.raises(DataError, match=message):
        load_run_models(tmp_path / "other")


def test_model_without_the_layers_of_its_head_is_refused(tmp_path: Path, run: Path, models: RunModels) -> None:
    shutil.copytree(run, tmp_path / "other")
    shape = models.stage_two.inputs[0].shape[1:]
    maps = keras.Input(shape, name="features")
    keras.Model(maps, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling3D()(maps))).save(
        tmp_path / "other" / "model.keras"
    )
    write_video(tmp_path / "drive.avi", images(), fps=12)
    with pytest.raises(DataError, match=r"not the model of this run's head; got No such layer"):
        predict(tmp_path / "other", tmp_path / "drive.avi")


def test_sliding_windows_are_all_that_fit() -> None:
    sequence = FrameSequence("drive", "test", SPAN + 1, 10.0, (64, 48), "")
    config = image_config(Path("unused"), window={"length": LENGTH, "stride": STRIDE})
    assert sliding_windows(sequence, config).tolist() == [[0, 2, 4], [1, 3, 5]]
