"""A drive predicted at other frame rates than the training's, constant and variable: equal speeds, or refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from features._common.types import Image
from features.config import Config, read_run_config
from features.errors import ConfigError
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage2_temporal.data.task import read_task
from stage2_temporal.predict import predict
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.train import train
from tests.image_runs import EARLY_CUT, read_rows

FPS = 20.0
HEADS = {
    "flow": {"name": "ridge", "streams": ["motion"]},
    "maps": {"name": "ridge", "difference": True, "streams": ["appearance"]},
}
UNEVEN = np.cumsum(np.tile([0.025, 0.05, 0.025], 40))  # 50 ms after two frames of three, and 75 ms after the third


def road(speeds: np.ndarray, times: np.ndarray, seed: int) -> list[Image]:
    """Frames of a textured road under a camera 1.5 m above it that moves at `speeds` (n,) m/s at `times` (n,) s."""
    rng = np.random.default_rng(seed)
    texture = cv2.normalize(cv2.GaussianBlur(rng.random((2048, 256)), (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)
    distance = np.r_[0.0, np.cumsum(np.diff(times) * (speeds[1:] + speeds[:-1]) / 2)]
    rows, columns = np.mgrid[75:160, 0:288]
    depth = 160 * 1.5 / (rows - 70.0)
    side = ((columns - 144) * depth / 160 * 10 + 128).astype(int) % 256
    frames = []
    for d in distance.tolist():
        image = np.full((160, 288, 3), 170, np.uint8)
        image[75:] = texture[((depth + d) * 10).astype(int) % 2048, side][..., None]
        frames.append(image)
    return frames


def write_timed_video(path: Path, frames: list[Image], times: np.ndarray) -> Path:
    """Encode frames without loss, with timestamps in seconds."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", 1000)
        stream.width, stream.height, stream.pix_fmt = 288, 160, "bgr0"
        for image, time in zip(frames, times.tolist(), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="bgr0")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


MORE_RATES = [("flow", 25), ("flow", 40), ("maps", 60)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each head, trained at 20 frames per second."""
    folder = tmp_path_factory.mktemp("rates")
    (folder / "data").mkdir()
    for name, seed, count in (("train", 1, 400), ("val", 2, 100)):
        times = np.arange(count) / FPS
        speeds = 14 + 8 * np.sin(times + seed)
        write_timed_video(folder / f"data/{name}.mkv", road(speeds, times, seed), times)
        (folder / f"data/{name}.txt").write_text("\n".join(map(str, speeds)))
    for name, head in HEADS.items():
        config = Config.model_validate(
            {
                "data": {"layout": "video", "path": str(folder / "data"), "target": "ego_speed", "segment": 50},
                "frames": {"width": 144, "height": 80},
                "backbone": EARLY_CUT,
                "extract": {"motion": True},
                "window": {"length": 4},
                "head": head,
            }
        )
        extract(config, folder / "s.h5", scan(config.data))
        with Store(folder / "s.h5") as store:
            train(config, store, read_task(config, store), folder / "runs" / name, report=False)
    return folder


def mean_speed(home: Path, head: str, times: np.ndarray, folder: Path) -> tuple[float, list[dict[str, str]]]:
    """The mean prediction for a drive at 18 m/s, and the rows of the table."""
    video = write_timed_video(folder / "drive.mkv", road(np.full(len(times), 18.0), times, 7), times)
    predict(home / "runs" / head, video, folder / "out.csv")
    rows = read_rows(folder / "out.csv")
    return float(np.mean([float(row["ego_speed"]) for row in rows])), rows


@pytest.fixture(scope="module")
def usual_speed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Each head's mean prediction for the drive at the training's rate."""
    folder = tmp_path_factory.mktemp("usual")
    return {head: mean_speed(home, head, np.arange(60) / FPS, folder)[0] for head in HEADS}


def test_run_records_its_intervals(home: Path) -> None:
    for head, skill in (("flow", 0.9), ("maps", 0.3)):
        metrics = read_metrics(home / "runs" / head)
        assert metrics.splits["validation"].model.skill > skill
        assert (metrics.interval, metrics.frame_interval) == (pytest.approx(0.05), pytest.approx(0.05))


@pytest.mark.parametrize(
    ("head", "fps"), [("flow", 30), ("maps", 40), *(pytest.param(*case, marks=pytest.mark.soak) for case in MORE_RATES)]
)
def test_higher_rates_give_the_same_speed(
    home: Path, usual_speed: dict[str, float], head: str, fps: int, tmp_path: Path
) -> None:
    speed, rows = mean_speed(home, head, np.arange(3 * fps) / fps, tmp_path)
    assert speed == pytest.approx(usual_speed[head], rel=0.03)
    assert float(rows[-1]["time"]) == pytest.approx(3 - 1 / fps, abs=1 / fps)  # every second frame at 40


@pytest.mark.parametrize(("head", "fps"), [("flow", 10), ("flow", 15), ("maps", 10), ("maps", 30), ("maps", 25)])
def test_other_rates_are_refused_with_both_rates(home: Path, head: str, fps: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"expected .*20 frames per second.*got {fps} frames per second"):
        mean_speed(home, head, np.arange(3 * fps) / fps, tmp_path)


@pytest.mark.parametrize("head", HEADS)
def test_variable_rate_gives_the_same_speed_and_the_true_times(
    home: Path, usual_speed: dict[str, float], head: str, tmp_path: Path
) -> None:
    times = np.r_[np.arange(40) / 40, 1 + np.arange(40) / 20]
    speed, rows = mean_speed(home, head, times, tmp_path)
    assert speed == pytest.approx(usual_speed[head], rel=0.03)
    np.testing.assert_allclose([float(r["time"]) for r in rows], times[[int(r["frame"]) for r in rows]], atol=1e-3)


def test_frames_that_alternate_are_chosen_by_time(home: Path, usual_speed: dict[str, float], tmp_path: Path) -> None:
    times = np.cumsum(np.tile([0.02, 0.03], 60))
    speed, rows = mean_speed(home, "maps", times - times[0], tmp_path)
    assert speed == pytest.approx(usual_speed["maps"], rel=0.03)
    assert len(rows) == 120 - 6


def test_overlay_keeps_the_timestamps(home: Path, tmp_path: Path) -> None:
    times = np.r_[np.arange(40) / 40, 1 + np.arange(20) / 20]
    video = write_timed_video(tmp_path / "drive.mkv", road(np.full(60, 18.0), times, 7), times)
    predict(home / "runs/maps", video, tmp_path / "out.csv", tmp_path / "out.mp4")
    with av.open(tmp_path / "out.mp4") as container:
        np.testing.assert_allclose([frame.time for frame in container.decode(video=0)], times, atol=1e-3)


@pytest.mark.parametrize("name", ["train.mkv", "monday 12:30.mkv"])
def test_folder_of_drives_needs_no_labels(home: Path, name: str, tmp_path: Path) -> None:
    folder, times = tmp_path / "drives", np.arange(40) / FPS
    folder.mkdir()
    for file in (name, "other.mkv"):
        write_timed_video(folder / file, road(np.full(40, 18.0), times, 7), times)
    predict(home / "runs/flow", folder, tmp_path / "out.csv")
    rows = read_rows(tmp_path / "out.csv")
    assert {row["sequence"].split("/")[0] for row in rows} == {Path(name).stem, "other"}
    assert np.mean([float(row["ego_speed_pred"]) for row in rows]) == pytest.approx(18, rel=0.1)


def test_mixed_rates_in_training_need_an_interval(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for name, fps in (("train", 20), ("train2", 40), ("val", 20)):
        times = np.arange(2 * fps) / fps
        write_timed_video(tmp_path / f"data/{name}.mkv", road(14 + 8 * np.sin(times), times, 3), times)
        (tmp_path / f"data/{name}.txt").write_text("\n".join(map(str, 14 + 8 * np.sin(times))))
    base = read_run_config(home / "runs/maps").with_settings({"data.path": str(tmp_path / "data")})
    extract(base, tmp_path / "s.h5", scan(base.data))
    for interval in (None, 0.05):
        config = base.with_settings({"window.interval": interval})
        with Store(tmp_path / "s.h5") as store:
            task = read_task(config, store)
            train(config, store, task, tmp_path / f"r{interval}", report=False)
            spans = store.frame_times[task.examples.rows[:, -1]] - store.frame_times[task.examples.rows[:, 0]]
        assert len(np.unique(spans.round(3))) == (2 if interval is None else 1)
        warned = "are 0.025 s apart in some sequences and 0.05 s in others" in capsys.readouterr().err
        assert warned == (interval is None)
    assert read_metrics(tmp_path / "r0.05").interval == pytest.approx(0.05)
    # flow is scaled to one interval as it is read, so the store's is not pooled
    flow = read_run_config(home / "runs/flow").with_settings({"data.path": str(tmp_path / "data")})
    with Store(tmp_path / "s.h5") as store:
        train(flow, store, read_task(flow, store), tmp_path / "flow", report=False)
    with Store(tmp_path / "s.h5") as store:
        assert "pooled" in store.streams and not any(name.startswith("motion.") for name in store.streams)
