"""Own speed from the road: on real frames, on rendered clips of known speed, and where there is nothing to see."""

from __future__ import annotations

import csv
import gc
import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from features._common.csv_table import read_csv_table
from features._common.types import Floats, Image
from features.sequences import Camera, FrameSequence
from framebank.cli import main
from stage1_extract.ground_flow import SpeedEstimates, estimate_speeds, speed_curve
from stage1_extract.ground_flow.ground_flow import road_image
from stage1_extract.sample.dataset import clip_scene
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import FPS, FRAMES, TUSIMPLE_CAMERA, Scene
from tests.semi_real import SEMI_REAL_CAMERA, semi_real_clips

KITTI_CAMERA = Camera(707.09, 707.09, 601.89, 183.11, 1.65)
KITTI_STEP = 0.1037  # s
LOW_CONFIDENCE = 0.5


def scene_camera(scene: Scene, *, horizon: bool = False) -> Camera:
    """The camera of a rendered clip, with the mean row of the horizon if it is to be known."""
    c = scene.camera
    row = float(np.mean(scene.horizons)) if horizon else None
    return Camera(c.fx, c.fy, c.cx, c.cy, c.above_road, row)


def measured(scene: Scene, *, horizon: bool = False) -> SpeedEstimates:
    return estimate_speeds(render_frames(scene), np.arange(FRAMES) / FPS, scene_camera(scene, horizon=horizon))


def rms(errors: list[float] | Floats) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


@pytest.fixture(scope="module")
def kitti_frames() -> list[Image]:
    from tests.helpers import REAL

    if not REAL.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return [np.asarray(cv2.imread(str(p), 0), np.uint8) for p in sorted((REAL / "kitti_odometry/frames").iterdir())]


@pytest.fixture(scope="module")
def kitti_speeds() -> Floats:
    from tests.helpers import REAL

    with (REAL / "kitti_odometry/labels.csv").open() as file:
        return np.array([float(row["ego_speed_mps"]) for row in csv.DictReader(file)])


# real frames


def test_speed_of_a_real_drive(kitti_frames: list[Image], kitti_speeds: Floats) -> None:
    times = np.arange(len(kitti_frames)) * KITTI_STEP
    estimates = estimate_speeds(kitti_frames, times, KITTI_CAMERA)
    print(f"RMS {rms(estimates.speeds - kitti_speeds):.3f} m/s, horizon in row {estimates.horizon:.1f}")
    assert rms(estimates.speeds - kitti_speeds) < 0.25
    assert estimates.confidence.min() > LOW_CONFIDENCE


def test_frames_at_irregular_times(kitti_frames: list[Image], kitti_speeds: Floats) -> None:
    kept = [i for i in range(len(kitti_frames)) if i % 5 not in (1, 3)]  # steps of one and two frames
    estimates = estimate_speeds([kitti_frames[i] for i in kept], np.array(kept) * KITTI_STEP, KITTI_CAMERA)
    assert rms(estimates.speeds - kitti_speeds[kept]) < 0.03 * kitti_speeds.mean()


def test_colour_frames_and_larger_ones_give_the_same_speed(kitti_frames: list[Image], kitti_speeds: Floats) -> None:
    few = kitti_frames[:8]
    height, width = few[0].shape
    doubled = [cv2.cvtColor(cv2.resize(f, (2 * width, 2 * height)), cv2.COLOR_GRAY2BGR) for f in few]
    camera = KITTI_CAMERA.resized((width, height), (2 * width, 2 * height))
    estimates = estimate_speeds(doubled, np.arange(8) * KITTI_STEP, camera)
    assert np.median(estimates.speeds) == pytest.approx(np.median(kitti_speeds[:8]), abs=0.5)
    assert estimates.horizon == pytest.approx(2 * 170.6, abs=10)  # in rows of the full-size frames


def test_real_drive_with_sharp_turns(kitti_frames: list[Image], kitti_speeds: Floats) -> None:
    """The camera turns by 27 degrees per second, to and fro, which moves the picture by up to 33 px per frame."""
    times = np.arange(len(kitti_frames)) * KITTI_STEP
    headings = np.radians(4.2) * 2 / np.pi * np.arcsin(np.sin(2 * np.pi * times / (6 * KITTI_STEP)))
    c = KITTI_CAMERA
    matrix = np.array([[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]])
    turned = []
    for frame, heading in zip(kitti_frames, headings, strict=True):
        cos, sin = np.cos(heading), np.sin(heading)
        turn = matrix @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) @ np.linalg.inv(matrix)
        size = frame.shape[1], frame.shape[0]
        turned.append(np.asarray(cv2.warpPerspective(frame, turn, size, borderMode=cv2.BORDER_REFLECT), np.uint8))
    estimates = estimate_speeds(turned, times, KITTI_CAMERA)
    errors = estimates.speeds - kitti_speeds * np.cos(headings)
    print(f"RMS {rms(errors):.3f} m/s")
    assert rms(errors) < 0.03 * kitti_speeds.mean()
    assert estimates.confidence.min() > LOW_CONFIDENCE


def test_real_frame_that_stands(kitti_frames: list[Image]) -> None:
    rng = np.random.default_rng(0)
    noisy = [np.clip(kitti_frames[0] + rng.normal(0, 2, kitti_frames[0].shape), 0, 255) for _ in range(12)]
    estimates = estimate_speeds([f.astype(np.uint8) for f in noisy], np.arange(12) * KITTI_STEP, KITTI_CAMERA)
    assert np.abs(estimates.speeds).max() < 0.1
    assert estimates.confidence.min() > LOW_CONFIDENCE


@pytest.mark.soak  # a minute
def test_speed_on_semi_real_clips(tmp_path: Path) -> None:
    errors, confidence = [], []
    for frames, speed in semi_real_clips(tmp_path, 100):
        estimates = estimate_speeds(frames, np.arange(len(frames)) / 10, SEMI_REAL_CAMERA)
        errors.append(abs(float(np.median(estimates.speeds)) - speed))
        confidence.append(float(np.median(estimates.confidence)))
    wrong, doubted = np.array(errors) > 2, np.array(confidence) < LOW_CONFIDENCE
    print(f"median error {np.median(errors):.3f} m/s; {wrong.sum()} off by more than 2 m/s, {doubted[wrong].sum()} of")
    print(f"them doubted; {doubted[~wrong].sum()} of {(~wrong).sum()} others doubted")
    assert np.median(errors) < 0.25
    assert doubted[wrong].sum() >= 0.9 * wrong.sum()
    assert doubted[~wrong].mean() < 0.1


# rendered clips


@pytest.mark.parametrize("clips", [6, pytest.param(30, marks=pytest.mark.soak)])
def test_speed_on_the_sample_set(clips: int) -> None:
    scenes = [clip_scene(0, 2, number) for number in range(1, clips + 1)]
    estimates = [measured(scene) for scene in scenes]
    errors = np.concatenate([e.speeds - s.speed for e, s in zip(estimates, scenes, strict=True)])
    print(f"RMS {rms(errors):.3f} m/s")
    assert rms(errors) < 0.3
    horizons = [e.horizon - np.mean(s.horizons) for e, s in zip(estimates, scenes, strict=True)]
    assert rms(horizons) < 2.5  # px, beginning at cy, which is 36 px lower


@pytest.mark.parametrize("clips", [10, pytest.param(60, marks=pytest.mark.soak)])
def test_speed_on_the_wide_set_with_turns(clips: int) -> None:
    scenes = [clip_scene(0, 2, number, wide=True) for number in range(1, clips + 1)]
    errors = {scene: measured(scene, horizon=True).speeds - scene.speed for scene in scenes}
    turning = [rms(e) for scene, e in errors.items() if scene.yaw_rate]
    standing = [float(np.abs(e).max()) for scene, e in errors.items() if not scene.speed]
    print(f"RMS {rms(np.concatenate(list(errors.values()))):.3f} m/s, turning {rms(turning):.3f}, {standing=}")
    assert len(turning) > clips / 6 and standing
    assert rms(np.concatenate(list(errors.values()))) < 0.3
    assert rms(turning) < 0.3
    assert max(standing) < 0.1


@pytest.mark.parametrize("yaw_rate", [-0.45, 0.45])  # rad/s, 26 degrees per second
def test_sharp_turn(yaw_rate: float) -> None:
    scene = replace(clip_scene(0, 0, 4, wide=True), speed=8.0, yaw_rate=yaw_rate)
    assert rms(measured(scene).speeds - 8.0) < 0.3


@pytest.mark.soak
def test_unknown_horizon_on_the_wide_set() -> None:
    scenes = [clip_scene(0, 1, number, wide=True) for number in range(1, 13)]
    errors = [float(np.median(measured(scene).speeds)) - scene.speed for scene in scenes]
    print(f"errors {np.round(errors, 2)} m/s")
    assert np.median(np.abs(errors)) < 0.3


# what it cannot see, and what it holds


def test_road_without_texture_has_no_confidence() -> None:
    rng = np.random.default_rng(0)
    frames = [np.full((360, 640), 90, np.uint8) + rng.integers(0, 3, (360, 640), np.uint8) for _ in range(8)]
    estimates = estimate_speeds(frames, np.arange(8) / 10, Camera(400, 400, 320, 180, 1.5))
    assert estimates.confidence.max() < LOW_CONFIDENCE


def test_noise_has_no_confidence() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (360, 640), np.uint8) for _ in range(8)]
    estimates = estimate_speeds(frames, np.arange(8) / 10, Camera(400, 400, 320, 180, 1.5))
    assert estimates.confidence.max() < LOW_CONFIDENCE


def test_a_long_drive_holds_few_frames() -> None:
    alive: list[weakref.ref[Image]] = []
    most = 0

    def frames() -> Iterator[Image]:
        nonlocal most
        rng = np.random.default_rng(0)
        for _ in range(300):
            frame = rng.integers(0, 255, (90, 160), np.uint8)
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(ref() is not None for ref in alive))

    estimates = estimate_speeds(frames(), np.arange(300) / 30, Camera(100, 100, 80, 45, 1.5))
    gc.collect()
    assert len(estimates.speeds) == 300
    assert most < 80


# the stream


def test_speed_curve_of_a_real_drive(kitti_frames: list[Image], kitti_speeds: Floats) -> None:
    """Of single pairs of frames, with the horizon known or not; half the height halves all speeds."""
    frames = [road_image(frame) for frame in kitti_frames]
    sequence = FrameSequence("a", "test", 51, 1 / KITTI_STEP, kitti_frames[0].shape[1::-1], "", camera=KITTI_CAMERA)
    for horizon in (170.6, None):
        known = replace(sequence, camera=replace(KITTI_CAMERA, horizon=horizon))
        curves = speed_curve.curve_entries(frames, 0, known, 1, 51)[:, 0, 0].astype(np.float64)
        assert curves.shape == (50, len(speed_curve.AXIS))
        assert curves.sum(axis=1) == pytest.approx(np.ones(50), abs=0.02)
        assert np.median(np.abs(curves @ speed_curve.AXIS - kitti_speeds[1:])) < 0.05 * kitti_speeds.mean()
    halved = replace(known, camera=replace(KITTI_CAMERA, height=KITTI_CAMERA.height / 2, horizon=170.6))
    curves = speed_curve.curve_entries(frames, 0, halved, 1, 51)[:, 0, 0].astype(np.float64)
    assert np.median(curves @ speed_curve.AXIS) == pytest.approx(np.median(kitti_speeds) / 2, abs=0.3)


def test_speed_curve_of_a_standing_car_and_of_an_unknown_camera(kitti_frames: list[Image]) -> None:
    frames = [road_image(kitti_frames[0])] * 3
    sequence = FrameSequence("a", "test", 3, 10.0, kitti_frames[0].shape[1::-1], "")
    curves = speed_curve.curve_entries(frames, 0, sequence, 1, 3)[:, 0, 0].astype(np.float64)
    assert curves @ speed_curve.AXIS == pytest.approx([0, 0], abs=0.2)
    assert curve_fingerprint(sequence) != curve_fingerprint(replace(sequence, fps=20.0))


def curve_fingerprint(sequence: FrameSequence) -> str:
    return speed_curve.curve_info([sequence]).fingerprint


# the command


def write_drive(folder: Path, scene: Scene, *, height: bool = True) -> tuple[Path, Path]:
    """Write a clip's frames and its camera file."""
    (folder / "drive").mkdir()
    for i, frame in enumerate(render_frames(scene)):
        cv2.imwrite(str(folder / "drive" / f"{i:03d}.png"), frame)
    c = scene.camera
    numbers = {"fx": c.fx, "fy": c.fy, "cx": c.cx, "cy": c.cy, "size": [c.width, c.height]}
    numbers |= {"horizon": float(np.mean(scene.horizons))} | ({"height": c.above_road} if height else {})
    (folder / "camera.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in numbers.items()))
    return folder / "drive", folder / "camera.toml"


def test_command_writes_a_row_for_each_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = clip_scene(0, 0, 1)
    drive, camera = write_drive(tmp_path, scene)
    out = tmp_path / "speed.csv"
    assert main(["speed", str(drive), "--camera", str(camera), "--fps", "10", "--output", str(out)]) == 0
    table = read_csv_table(out)
    assert table.columns == ("time", "frame", "speed", "confidence")
    rows = np.array([[float(row.cells[c]) for c in table.columns] for row in table.rows])
    assert rows[:, 0] == pytest.approx(np.arange(FRAMES) / FPS)
    assert rows[:, 1].tolist() == list(range(FRAMES))
    assert np.median(rows[:, 2]) == pytest.approx(scene.speed, abs=0.5)
    assert f"{FRAMES} frames" in capsys.readouterr().out


@pytest.mark.parametrize("terms", [(-0.25, 0.06), pytest.param((0.12, 0.0, 0.001, -0.001), marks=pytest.mark.soak)])
def test_distortion_of_the_lens_is_taken_out(
    terms: tuple[float, ...], kitti_frames: list[Image], kitti_speeds: Floats, tmp_path: Path
) -> None:
    c, (height, width) = KITTI_CAMERA, kitti_frames[0].shape
    matrix, padded = np.array([[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1]]), np.array([*terms, 0, 0][:4])
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 1, 2).astype(np.float32)
    places = cv2.undistortPoints(pixels, matrix, padded, P=matrix).reshape(height, width, 2)
    (tmp_path / "drive").mkdir()
    for i, frame in enumerate(kitti_frames):
        bent = cv2.remap(frame, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        cv2.imwrite(str(tmp_path / "drive" / f"{i:03d}.png"), bent)
    errors = {}
    for name, line in (("corrected", f"distortion = {list(terms)}\n"), ("ignored", "")):
        camera, out = tmp_path / f"{name}.toml", tmp_path / f"{name}.csv"
        numbers = f"fx = {c.fx}\nfy = {c.fy}\ncx = {c.cx}\ncy = {c.cy}\nheight = {c.height}\n"
        camera.write_text(f"{numbers}size = [{width}, {height}]\n{line}")
        options = ["--camera", str(camera), "--fps", str(1 / KITTI_STEP), "--output", str(out)]
        assert main(["speed", str(tmp_path / "drive"), *options]) == 0
        speeds = [float(row.cells["speed"]) for row in read_csv_table(out).rows]
        errors[name] = rms(np.array(speeds) - kitti_speeds)
    print(errors)
    assert errors["corrected"] < 0.3
    assert errors["ignored"] > 2 * errors["corrected"]


@pytest.mark.parametrize("labels", [False, True])
def test_known_speed_calibrates_the_height(labels: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = clip_scene(0, 0, 1)
    drive, camera = write_drive(tmp_path, scene, height=False)
    known = f"{scene.speed:.3f}"
    if labels:
        (tmp_path / "known.csv").write_text(f"time,speed\n0.2,{known}\n0.55,{known}\n")
        known = str(tmp_path / "known.csv")
    out = tmp_path / "speed.csv"
    options = ["--camera", str(camera), "--fps", "10", "--output", str(out)]
    assert main(["speed", str(drive), *options]) == 2
    assert "no camera height" in capsys.readouterr().err
    assert main(["speed", str(drive), *options, "--calibrate", known]) == 0
    speeds = [float(row.cells["speed"]) for row in read_csv_table(out).rows]
    assert np.mean(speeds) == pytest.approx(scene.speed, rel=0.01)
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("height = "))
    assert float(line.split()[2]) == pytest.approx(TUSIMPLE_CAMERA.above_road, rel=0.03)


def test_low_confidence_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grey").mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / "grey" / f"{i}.png"), np.full((360, 640), 90, np.uint8))
    camera = tmp_path / "camera.toml"
    camera.write_text("fx = 400\nfy = 400\ncx = 320\ncy = 180\nsize = [640, 360]\nheight = 1.5\n")
    assert main(["speed", str(tmp_path / "grey"), "--camera", str(camera), "--output", str(tmp_path / "o.csv")]) == 0
    output = capsys.readouterr()
    assert "Confidence is below 0.5 in 4 of 4 frames" in output.err
    assert "none of them with confidence" in output.out
