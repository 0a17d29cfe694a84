"""The rendered sample set: the same bytes for the same seed, labels that fit the pictures, complete or absent."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.sample.dataset import clip_annotation, clip_scene, render_sample_set
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import FPS, FRAMES, LAST_FRAME, TUSIMPLE_CAMERA, Scene, image_row, vehicle_box
from stage1_extract.sample.sprites import draw_sprite, make_sprite, vehicle_rear

ROOT = Path(__file__).parents[2]
FX, FY, CX = TUSIMPLE_CAMERA.fx, TUSIMPLE_CAMERA.fy, TUSIMPLE_CAMERA.cx
COUNTS = {"train": 2, "validation": 1, "test": 1}
BLOCK_MEANS = [[121.13, 165.31, 157.57, 176.91], [95.26, 103.86, 109.06, 101.69]]  # of 2 x 4 blocks of a frame


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, rendered by two processes."""
    out = tmp_path_factory.mktemp("sample") / "set"
    render_sample_set(out, seed=5, workers=2, **COUNTS)
    return out


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [clip_scene(0, 0, number) for number in range(1, 2001)]


# the set on disk


def test_files_and_labels_of_a_set(small_set: Path) -> None:
    clips = [f"Train/Train/{i}" for i in (1, 2)] + ["Validation/Validation/1", "Test/Test/1"]
    names = ["annotation.json", "ego.json", *(f"imgs/{i:03d}.jpg" for i in range(1, 9))]
    files = digests(small_set)
    assert set(files) == {"calibration.txt", "sample.json"} | {f"{c}/{n}" for c in clips for n in names}
    assert len({files[f"{clip}/imgs/008.jpg"] for clip in clips}) == 4
    for clip in clips:
        image = cv2.imread(str(small_set / clip / "imgs/001.jpg"))
        assert image is not None and image.shape == (720, 1280, 3)
        entries = json.loads((small_set / clip / "annotation.json").read_text())
        assert 1 <= len(entries) <= 3
        for entry in entries:
            assert set(entry) == {"velocity", "bbox", "position"}
            assert set(entry["bbox"]) == {"top", "right", "bottom", "left"}
        assert 5 <= json.loads((small_set / clip / "ego.json").read_text())["speed"] <= 32


def test_pictures_stay_the_same() -> None:
    """If this fails after a change of the renderer, increase `RENDERER`."""
    frame = next(render_frames(clip_scene(5, 2, 1)))
    blocks = frame.reshape(2, 360, 4, 320, 3).mean(axis=(1, 3, 4))
    np.testing.assert_allclose(blocks, BLOCK_MEANS, atol=0.05)


def test_calibration_is_that_of_the_competition(small_set: Path, real: Path) -> None:
    published = (real / "competition" / "calibration.txt").read_text().split()
    assert (small_set / "calibration.txt").read_text().split() == published


def test_clip_depends_only_on_seed_split_and_number(small_set: Path, tmp_path: Path) -> None:
    clip = "Validation/Validation/1"
    for seed, same in ((5, True), (6, False)):
        out = tmp_path / str(seed)
        render_sample_set(out, seed=seed, train=0, validation=1, test=0, workers=1)
        assert (digests(out / clip) == digests(small_set / clip)) is same


def test_complete_set_is_left_alone(small_set: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in small_set.rglob("*")}
    render_sample_set(small_set, seed=5, **COUNTS)
    with pytest.raises(DataError, match=r"expected .*'seed': 7.*; got .*'seed': 5.*--data.path FOLDER"):
        render_sample_set(small_set, seed=7, **COUNTS)
    assert {p: p.stat().st_mtime_ns for p in small_set.rglob("*")} == before


@pytest.mark.parametrize("marker", [None, "{not json"])
def test_folder_with_other_files_is_left_alone(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    if marker:
        (tmp_path / "mine" / "sample.json").write_text(marker)
    with pytest.raises(DataError, match=r"mine: not the requested sample set"):
        render_sample_set(tmp_path / "mine", **COUNTS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("a file")
    with pytest.raises(DataError, match="not the requested sample set"):
        render_sample_set(tmp_path / "set", **COUNTS)


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    render_sample_set(tmp_path / "set", train=0, validation=0, test=0, workers=1)
    assert (tmp_path / "set" / "sample.json").is_file()


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        render_sample_set(tmp_path / "file" / "set", **COUNTS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_failed_rendering_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_until_full(self: Path, data: bytes) -> int:
        if self.name == "003.jpg":
            raise OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with pytest.raises(DataError, match="No space left on device"):
        render_sample_set(tmp_path / "set", workers=1, **COUNTS)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".set.*.partial"))


def test_rendering_after_a_killed_one_gives_the_same_set(small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    code = (
        "from pathlib import Path; from stage1_extract.sample import render_sample_set as render;"
        f"render(Path({str(out)!r}), seed=5, train=50, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob(".set.*.partial/Train/Train/*/imgs/002.jpg")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    render_sample_set(out, seed=5, workers=1, **COUNTS)
    assert digests(out) == digests(small_set)
    assert not list(tmp_path.glob(".set.*.partial"))


# what the clips show


def test_distances_have_the_quartiles_of_tusimple(scenes: list[Scene]) -> None:
    x = [v.position[0] for scene in scenes for v in scene.vehicles]
    assert np.percentile(x, [25, 50, 75]) == pytest.approx([28, 36, 46], abs=1.0)
    assert min(x) >= 5 and max(x) <= 90
    first = [scene.vehicles[0].position[0] for scene in scenes]
    assert np.percentile(first, [25, 50, 75]) == pytest.approx([28, 36, 46], abs=2.0)


def test_velocities_have_the_mean_and_deviation_of_tusimple(scenes: list[Scene]) -> None:
    first = np.array([scene.vehicles[0].velocity for scene in scenes])
    assert first.mean(axis=0) == pytest.approx([0.525, -0.081], abs=0.15)
    assert first.std(axis=0) == pytest.approx([2.274, 0.291], rel=0.05)


def test_ego_speed_is_uniform(scenes: list[Scene]) -> None:
    speed = [scene.speed for scene in scenes]
    assert np.percentile(speed, [0, 25, 50, 75, 100]) == pytest.approx([5, 11.75, 18.5, 25.25, 32], abs=0.8)


def test_horizon_and_vehicles_stay_in_their_ranges(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert all(336 - 1 <= h <= 344 + 1 for h in scene.horizons)
        assert scene.road.period > 2 * 3.2 * 1.5  # the motion per frame is unambiguous even in the fastest clip
        assert 1 <= len(scene.vehicles) <= 3
        for vehicle in scene.vehicles:
            assert 1.8 <= vehicle.width <= 2.8
            assert scene.speed + vehicle.velocity[0] >= 0
            for frame in range(FRAMES):
                left, top, right, bottom = vehicle_box(scene, vehicle, frame)
                assert 0 <= left < right <= 1279 and 0 <= top < bottom <= 719
    widths = [v.width for scene in scenes for v in scene.vehicles]
    assert np.mean(widths) == pytest.approx(2.1, abs=0.05)
    assert {len(scene.vehicles) for scene in scenes} == {1, 2, 3}


def test_nothing_hides_the_first_vehicle(scenes: list[Scene]) -> None:
    nearest = 0
    for scene in scenes:
        first, *others = scene.vehicles
        for frame in range(FRAMES):
            left, _, right, _ = vehicle_box(scene, first, frame)
            for other in others:
                a, _, b, _ = vehicle_box(scene, other, frame)
                assert other.at(frame)[0] > first.at(frame)[0] or a >= right or b <= left
            x, y = first.at(frame)
            for item in scene.roadside:
                if 1 < item.x - scene.speed * frame / FPS < x:
                    edge = (abs(item.y) - item.width / 2) / (item.x - scene.speed * frame / FPS)
                    assert edge * x > abs(y) + first.width / 2 or np.sign(y) != np.sign(item.y)
        nearest += all(first.position[0] <= o.position[0] for o in others) and bool(others)
    several = sum(len(scene.vehicles) > 1 for scene in scenes)
    assert 0.4 < nearest / several < 0.9  # random, not always the nearest


def test_box_position_and_velocity_agree(scenes: list[Scene]) -> None:
    for scene in scenes[:200]:
        for vehicle, entry in zip(scene.vehicles, clip_annotation(scene), strict=True):
            (x, y), (vx, vy), b = entry["position"], entry["velocity"], entry["bbox"]  # type: ignore[misc, has-type]
            horizon = scene.horizons[LAST_FRAME]
            assert b["bottom"] == pytest.approx(horizon + FY * 1.8 / x)
            assert (b["left"] + b["right"]) / 2 == pytest.approx(CX + FX * y / x)
            assert b["right"] - b["left"] == pytest.approx(FX * vehicle.width / x)
            # 0.7 s earlier
            left, _, right, bottom = vehicle_box(scene, vehicle, 0)
            x0, y0 = x - 0.7 * vx, y - 0.7 * vy
            assert bottom == pytest.approx(scene.horizons[0] + FY * 1.8 / x0)
            assert (left + right) / 2 == pytest.approx(CX + FX * y0 / x0)


# the pictures


@pytest.mark.parametrize("width", [3.3, 17.31, 47.77, 130.4, 301.9])
def test_sprite_fills_its_box_with_sub_pixel_accuracy(width: float) -> None:
    white = make_sprite(np.full((400, 512, 3), 255, np.uint8), np.full((400, 512), 255, np.uint8))
    for offset in (0.0, 0.23, 0.5, 0.81):
        canvas = np.zeros((300, 400, 3), np.uint8)
        left, top = 40.0 + offset, 30.6 - offset
        draw_sprite(canvas, white, (left, top, left + width, top + width * 0.75))
        light = canvas[..., 1].astype(float) / 255
        across, down = light.max(axis=0), light.max(axis=1)
        assert across.sum() == pytest.approx(width, abs=0.1)
        assert (across * np.arange(400)).sum() / across.sum() == pytest.approx(left + width / 2, abs=0.05)
        assert down.sum() == pytest.approx(width * 0.75, abs=0.1)
        assert (down * np.arange(300)).sum() / down.sum() == pytest.approx(top + width * 0.375, abs=0.05)


def test_rear_of_a_vehicle_touches_all_sides_of_its_box(scenes: list[Scene]) -> None:
    for scene in scenes[:12]:
        alpha = vehicle_rear(scene.vehicles[0])[0][..., 3]
        for line in (alpha[:3], alpha[-3:], alpha[:, :3], alpha[:, -3:]):
            assert line.max() > 0.9


def vehicle_cover(scene: Scene, frames: int) -> list[np.ndarray]:
    """Share of each pixel that the vehicles cover, per frame, from renderings with a dark and a bright background."""
    greens = []
    for grey in (20.0, 220.0):
        colour = (grey, grey, grey)
        style = replace(scene.style, noise=0.0, gain=1.0, gamma=1.0, haze=1e9, clouds=0.0)
        style = replace(style, asphalt=colour, verge=colour, sky_top=colour, sky_bottom=colour)
        plain = replace(scene, style=style, roadside=(), road=replace(scene.road, rails=()))
        greens += [
            [frame[..., 1].astype(float) for frame in islice(render_frames(variant), frames)]
            for variant in (plain, replace(plain, vehicles=()))
        ]
    shares = []
    for dark, dark_empty, bright, bright_empty in zip(*greens, strict=True):
        contrast = bright_empty - dark_empty
        shares.append(np.where(contrast > 25, 1 - (bright - dark) / np.maximum(contrast, 25), 0))
    return shares


def test_edges_of_a_vehicle_in_the_picture_agree_with_its_box() -> None:
    errors = []
    for number in range(1, 5):
        scene = clip_scene(11, 0, number)
        scene = replace(scene, vehicles=scene.vehicles[:1])
        (vehicle,) = scene.vehicles
        for frame, share in enumerate(vehicle_cover(scene, 2)):
            left, top, right, bottom = vehicle_box(scene, vehicle, frame)
            # the body's widest part, above the shadow on the ground
            low = min(
                image_row(scene.camera, scene.horizons[frame], vehicle.at(frame)[0] + 2.5),
                bottom - 0.3 * (bottom - top),
            )
            rows = slice(int(bottom - 0.6 * (bottom - top)), int(low))
            middle = int((left + right) / 2)
            across = share[rows].max(axis=0)
            errors.append(middle - 0.5 - across[:middle].sum() - left)
            errors.append(middle - 0.5 + across[middle:].sum() - right)
            down = share[: rows.start, middle - 3 : middle + 4].max(axis=1)
            errors.append(rows.start - 0.5 - down.sum() - top)
    assert np.abs(errors).max() < 0.5
    assert np.abs(np.mean(errors)) < 0.1


def test_ground_moves_at_ego_speed() -> None:
    for number in (1, 2, 3):
        scene = clip_scene(3, 0, number)
        scene = replace(scene, style=replace(scene.style, noise=0.0), vehicles=(), roadside=())
        first, second = islice(render_frames(scene), 2)
        v, u = np.mgrid[480:700, 300:1000].astype(np.float32)
        x = FY * 1.8 / (v - scene.horizons[1])

        def difference(speed: float, x: np.ndarray = x, u: np.ndarray = u, h: float = scene.horizons[0]) -> float:
            """Difference between the second frame and the first, moved by an assumed speed."""
            before = x + speed / FPS
            was = [CX + (u - CX) * x / before, h + FY * 1.8 / before]
            moved = cv2.remap(first, *(w.astype(np.float32) for w in was), cv2.INTER_LINEAR)  # noqa: B023
            return float(np.abs(moved.astype(float) - second[480:700, 300:1000]).mean())  # noqa: B023

        speeds = scene.speed + np.arange(-3, 3.1, 0.5)
        assert speeds[np.argmin([difference(s) for s in speeds])] == pytest.approx(scene.speed)


# the wide set


@pytest.fixture(scope="module")
def wide_scenes() -> list[Scene]:
    return [clip_scene(0, 0, number, wide=True) for number in range(1, 501)]


def test_wide_set_knows_the_camera_and_the_motion_of_each_clip(tmp_path: Path) -> None:
    out = tmp_path / "wide"
    render_sample_set(out, kind="wide", seed=5, workers=2, train=6, validation=0, test=1)
    assert not (out / "calibration.txt").exists()
    catalogue = scan(DataConfig(layout="sample", path=str(out), fps=FPS))
    assert not catalogue.faults and len(catalogue.clips) == 7
    for clip in catalogue.clips:
        split, number = clip.sequence.id.split("/")
        scene = clip_scene(5, 2 if split == "Test" else 0, int(number), wide=True)
        camera, c = clip.sequence.camera, scene.camera
        assert camera is not None and camera.height is not None
        assert clip.sequence.size == (c.width, c.height)
        numbers = (camera.fx, camera.fy, camera.cx, camera.cy, camera.height, camera.horizon)
        assert numbers == pytest.approx((c.fx, c.fy, c.cx, c.cy, c.above_road, np.mean(scene.horizons)), abs=0.006)
        (ego,) = (x.targets for x in clip.sequence.labels if "ego_speed" in x.targets)
        assert ego == {"ego_speed": scene.speed, "yaw_rate": scene.yaw_rate}


def test_wide_set_is_not_taken_for_the_standard_one(tmp_path: Path) -> None:
    render_sample_set(tmp_path / "set", kind="wide", train=0, validation=0, test=1, workers=1)
    with pytest.raises(DataError, match="not the requested sample set"):
        render_sample_set(tmp_path / "set", train=0, validation=0, test=1, workers=1)


def test_wide_scenes_have_many_cameras_turns_and_speeds(wide_scenes: list[Scene]) -> None:
    speeds, yaw_rates = np.array([(s.speed, s.yaw_rate) for s in wide_scenes]).T
    assert 0.1 < np.mean(speeds == 0) < 0.2
    assert speeds.max() <= 40 and np.quantile(speeds[speeds > 0], [0.1, 0.9]) == pytest.approx([4, 36], abs=2)
    assert 0.3 < np.mean(yaw_rates != 0) < 0.55
    assert np.abs(yaw_rates).max() <= 0.5 and np.abs(yaw_rates * speeds).max() <= 4.0001
    assert len({(s.camera.width, s.camera.height) for s in wide_scenes}) == 4
    assert min(s.camera.above_road for s in wide_scenes) < 1.25 < 2.2 < max(s.camera.above_road for s in wide_scenes)
    for scene in wide_scenes:
        for vehicle in scene.vehicles:
            for frame in range(FRAMES):
                left, top, right, _ = vehicle_box(scene, vehicle, frame)
                assert left >= 0 and top >= 0 and right <= scene.camera.width - 1


@pytest.mark.parametrize("yaw_rate", [-0.4, 0.0, 0.4])
def test_ground_of_the_wide_set_moves_with_the_camera(yaw_rate: float) -> None:
    """Each frame is the one before, moved by the homography of the road's plane, where bands of the ground meet too."""
    scene = replace(clip_scene(0, 0, 4, wide=True), speed=9.0, yaw_rate=yaw_rate, vehicles=(), roadside=())
    scene = replace(scene, road=replace(scene.road, rails=()), style=replace(scene.style, noise=0.0))
    c = scene.camera
    first, second = islice(render_frames(scene), 2)
    rows, columns = slice(int(scene.camera.horizon) + 60, c.height - 90), slice(c.width // 4, 3 * c.width // 4)
    v, u = np.mgrid[rows, columns].astype(np.float64)
    x = c.fy * c.above_road / (v - scene.horizons[1])
    y = (u - c.cx) / c.fx * x

    def difference(distance: float, turn: float) -> float:
        """Difference between the second frame and the first, moved by an assumed motion, in grey levels."""
        heading = scene.pose(0)[2] + turn / 2  # of the way between the two frames
        drive = distance * np.array([np.cos(heading), np.sin(heading)])
        cos, sin = np.cos(scene.pose(0)[2] + turn), np.sin(scene.pose(0)[2] + turn)
        road = np.stack([cos * x - sin * y + drive[0], sin * x + cos * y + drive[1]])
        cos, sin = np.cos(scene.pose(0)[2]), np.sin(scene.pose(0)[2])
        before = np.stack([cos * road[0] + sin * road[1], cos * road[1] - sin * road[0]])
        was = c.cx + c.fx * before[1] / before[0], scene.horizons[0] + c.fy * c.above_road / before[0]
        moved = cv2.remap(first, *(w.astype(np.float32) for w in was), cv2.INTER_LINEAR)
        return float(np.abs(moved.astype(float) - second[rows, columns]).mean())

    true = difference(9.0 / FPS, yaw_rate / FPS)
    others = [difference(s / FPS, r / FPS) for s in (8.7, 9.3) for r in (yaw_rate - 0.02, yaw_rate + 0.02)]
    assert true < 0.8 * min(others)
