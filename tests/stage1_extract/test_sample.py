"""The rendered sample set: same bytes for the same seed, true labels, whole or not there."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from features.errors import DataError
from stage1_extract.sample.dataset import clip_annotation, clip_scene, render_sample_set
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import CX, FPS, FRAMES, FX, FY, LAST_FRAME, Scene, image_row, vehicle_box
from stage1_extract.sample.sprites import make_sprite, draw_sprite, vehicle_rear

ROOT = Path(__file__).parents[2]
COUNTS = {"train": 2, "validation": 1, "test": 1}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "set"
    render_sample_set(out, seed=5, workers=2, progress=False, **COUNTS)
    return out


@pytest.fixture(scope="module")
def worlds() -> list[Scene]:
    return [clip_scene(0, 0, number) for number in range(1, 2001)]


# the set on disk


def test_layout(small: Path) -> None:
    clips = [f"Train/Train/{i}" for i in (1, 2)] + ["Validation/Validation/1", "Test/Test/1"]
    names = ["annotation.json", "ego.json", *(f"imgs/{i:03d}.jpg" for i in range(1, 9))]
    assert set(digests(small)) == {"calibration.txt", "sample.json"} | {f"{c}/{n}" for c in clips for n in names}
    for clip in clips:
        for name in names[2:]:
            image = cv2.imread(str(small / clip / name))
            assert image is not None and image.shape == (720, 1280, 3)
        entries = json.loads((small / clip / "annotation.json").read_text())
        assert 1 <= len(entries) <= 3
        for entry in entries:
            assert set(entry) == {"velocity", "bbox", "position"}
            assert set(entry["bbox"]) == {"top", "right", "bottom", "left"}
        speed = json.loads((small / clip / "ego.json").read_text())["speed"]
        assert 5 <= speed <= 32


def test_calibration_is_that_of_the_competition(small: Path, real: Path) -> None:
    theirs = (real / "competition" / "calibration.txt").read_text().split()
    assert (small / "calibration.txt").read_text().split() == theirs


def test_same_seed_same_bytes_whatever_the_workers(small: Path, tmp_path: Path) -> None:
    render_sample_set(tmp_path / "one", seed=5, workers=1, progress=False, **COUNTS)
    assert digests(tmp_path / "one") == digests(small)


def test_a_clip_does_not_depend_on_how_many_there_are(small: Path, tmp_path: Path) -> None:
    render_sample_set(tmp_path / "fewer", seed=5, train=0, validation=1, test=0, workers=1, progress=False)
    clip = "Validation/Validation/1"
    assert digests(tmp_path / "fewer" / clip) == digests(small / clip)


def test_another_seed_gives_other_clips(small: Path, tmp_path: Path) -> None:
    render_sample_set(tmp_path / "other", seed=6, train=1, validation=0, test=0, workers=1, progress=False)
    ours, theirs = digests(tmp_path / "other" / "Train/Train/1"), digests(small / "Train/Train/1")
    assert not set(ours.values()) & set(theirs.values())


def test_clips_of_one_set_differ(small: Path) -> None:
    firsts = [v for k, v in digests(small).items() if k.endswith("008.jpg")]
    assert len(set(firsts)) == len(firsts) == 4


def test_a_finished_set_is_left_alone(small: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    start = time.process_time()
    render_sample_set(small, seed=5, progress=False, **COUNTS)
    assert time.process_time() - start < 0.1
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_another_set_is_not_overwritten(small: Path) -> None:
    before = digests(small)
    with pytest.raises(DataError, match=r"expected .*'seed': 7.*; got .*'seed': 5.*--data.path FOLDER"):
        render_sample_set(small, seed=7, progress=False, **COUNTS)
    assert digests(small) == before


@pytest.mark.parametrize("marker", [None, "{not json"])
def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    if marker:
        (tmp_path / "mine" / "sample.json").write_text(marker)
    with pytest.raises(DataError, match=r"mine: not the sample set"):
        render_sample_set(tmp_path / "mine", progress=False, **COUNTS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("a file")
    with pytest.raises(DataError, match="not the sample set"):
        render_sample_set(tmp_path / "set", progress=False, **COUNTS)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    render_sample_set(tmp_path / "set", train=1, validation=0, test=0, workers=1, progress=False)
    assert (tmp_path / "set" / "Train/Train/1/imgs/008.jpg").is_file()


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        render_sample_set(tmp_path / "file" / "set", progress=False, **COUNTS)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failing_render_leaves_no_half_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        if self.name == "003.jpg":
            raise OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device"):
        render_sample_set(tmp_path / "set", workers=1, progress=False, **COUNTS)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.glob(".set.*.partial"))


def test_a_killed_render_leaves_no_half_set_and_the_next_one_succeeds(small: Path, tmp_path: Path) -> None:
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
    render_sample_set(out, seed=5, workers=1, progress=False, **COUNTS)
    assert digests(out) == digests(small)
    assert not list(tmp_path.glob(".set.*.partial"))


# what is drawn


def test_distances_have_tusimple_s_quartiles(worlds: list[Scene]) -> None:
    x = [v.position[0] for w in worlds for v in w.vehicles]
    assert np.percentile(x, [25, 50, 75]) == pytest.approx([28, 36, 46], abs=1.0)
    assert min(x) >= 5 and max(x) <= 90
    first = [w.vehicles[0].position[0] for w in worlds]
    assert np.percentile(first, [25, 50, 75]) == pytest.approx([28, 36, 46], abs=2.0)


def test_velocities_have_tusimple_s_mean_and_deviation(worlds: list[Scene]) -> None:
    first = np.array([w.vehicles[0].velocity for w in worlds])
    assert first.mean(axis=0) == pytest.approx([0.525, -0.081], abs=0.15)
    assert first.std(axis=0) == pytest.approx([2.274, 0.291], rel=0.05)


def test_own_speed_is_uniform(worlds: list[Scene]) -> None:
    speed = np.array([w.speed for w in worlds])
    assert np.percentile(speed, [0, 25, 50, 75, 100]) == pytest.approx([5, 11.75, 18.5, 25.25, 32], abs=0.8)


def test_camera_and_vehicles_are_in_their_ranges(worlds: list[Scene]) -> None:
    for world in worlds:
        assert all(336 - 1 <= h <= 344 + 1 for h in world.horizons)
        assert world.road.period > 2 * 3.2 * 1.5  # the fastest clip's motion in a frame stays unambiguous
        assert 1 <= len(world.vehicles) <= 3
        for vehicle in world.vehicles:
            assert 1.8 <= vehicle.width <= 2.8
            assert world.speed + vehicle.velocity[0] >= 0
            for frame in range(FRAMES):
                left, top, right, bottom = vehicle_box(world, vehicle, frame)
                assert 0 <= left < right <= 1279 and 0 <= top < bottom <= 719
    widths = [v.width for w in worlds for v in w.vehicles]
    assert np.mean(widths) == pytest.approx(2.1, abs=0.05)
    assert {len(w.vehicles) for w in worlds} == {1, 2, 3}


def test_nothing_hides_the_first_vehicle(worlds: list[Scene]) -> None:
    nearest = 0
    for world in worlds:
        first, *others = world.vehicles
        for frame in range(FRAMES):
            left, _, right, _ = vehicle_box(world, first, frame)
            for other in others:
                a, _, b, _ = vehicle_box(world, other, frame)
                assert other.at(frame)[0] > first.at(frame)[0] or a >= right or b <= left
            x, y = first.at(frame)
            for thing in world.things:
                if 1 < thing.x - world.speed * frame / FPS < x:
                    edge = (abs(thing.y) - thing.width / 2) / (thing.x - world.speed * frame / FPS)
                    assert edge * x > abs(y) + first.width / 2 or np.sign(y) != np.sign(thing.y)
        nearest += all(first.position[0] <= o.position[0] for o in others) and bool(others)
    several = sum(len(w.vehicles) > 1 for w in worlds)
    assert 0.4 < nearest / several < 0.9  # chosen at random, not always the nearest


def test_labels_agree_with_one_another(worlds: list[Scene]) -> None:
    for world in worlds[:200]:
        for vehicle, entry in zip(world.vehicles, clip_annotation(world), strict=True):
            (x, y), (vx, vy), b = entry["position"], entry["velocity"], entry["bbox"]  # type: ignore[misc, has-type]
            horizon = world.horizons[LAST_FRAME]
            assert b["bottom"] == pytest.approx(horizon + FY * 1.8 / x)
            assert (b["left"] + b["right"]) / 2 == pytest.approx(CX + FX * y / x)
            assert b["right"] - b["left"] == pytest.approx(FX * vehicle.width / x)
            # 0.7 s earlier
            left, _, right, bottom = vehicle_box(world, vehicle, 0)
            x0, y0 = x - 0.7 * vx, y - 0.7 * vy
            assert bottom == pytest.approx(world.horizons[0] + FY * 1.8 / x0)
            assert (left + right) / 2 == pytest.approx(CX + FX * y0 / x0)


# the pictures


@pytest.mark.parametrize("width", [3.3, 17.31, 47.77, 130.4, 301.9])
def test_a_sprite_fills_its_box_to_a_fraction_of_a_pixel(width: float) -> None:
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


def test_a_rear_touches_its_box_on_every_side(worlds: list[Scene]) -> None:
    for world in worlds[:12]:
        alpha = vehicle_rear(world.vehicles[0])[0][..., 3]
        for line in (alpha[:3], alpha[-3:], alpha[:, :3], alpha[:, -3:]):
            assert line.max() > 0.9


def cover(world: Scene) -> list[np.ndarray]:
    """Share of each pixel that the vehicles cover, frame by frame: seen before a dark and before a bright world."""
    scenes = []
    for grey in (20.0, 220.0):
        one = (grey, grey, grey)
        look = replace(world.look, noise=0.0, gain=1.0, gamma=1.0, haze=1e9, clouds=0.0)
        look = replace(look, asphalt=one, verge=one, sky_top=one, sky_bottom=one)
        scene = replace(world, look=look, things=(), road=replace(world.road, rails=()))
        scenes.append(
            [[f[..., 1].astype(float) for f in render_frames(w)] for w in (scene, replace(scene, vehicles=()))]
        )
    (dark, dark_empty), (bright, bright_empty) = scenes
    shares = []
    for d, de, b, be in zip(dark, dark_empty, bright, bright_empty, strict=True):
        contrast = be - de
        shares.append(np.where(contrast > 25, 1 - (b - d) / np.maximum(contrast, 25), 0))
    return shares


def test_a_vehicle_s_edges_in_the_picture_agree_with_its_box() -> None:
    errors = []
    for number in range(1, 6):
        world = clip_scene(11, 0, number)
        world = replace(world, vehicles=world.vehicles[:1])
        (vehicle,) = world.vehicles
        for frame, share in enumerate(cover(world)):
            left, top, right, bottom = vehicle_box(world, vehicle, frame)
            # the body's widest part, above the shadow on the ground
            low = min(image_row(world.horizons[frame], vehicle.at(frame)[0] + 2.5), bottom - 0.3 * (bottom - top))
            rows = slice(int(bottom - 0.6 * (bottom - top)), int(low))
            middle = int((left + right) / 2)
            across = share[rows].max(axis=0)
            errors.append(middle - 0.5 - across[:middle].sum() - left)
            errors.append(middle - 0.5 + across[middle:].sum() - right)
            down = share[: rows.start, middle - 3 : middle + 4].max(axis=1)
            errors.append(rows.start - 0.5 - down.sum() - top)
    assert np.abs(errors).max() < 0.5
    assert np.abs(np.mean(errors)) < 0.1


def test_the_ground_moves_as_the_own_speed_says() -> None:
    for number in (1, 2, 3):
        world = clip_scene(3, 0, number)
        world = replace(world, look=replace(world.look, noise=0.0), vehicles=(), things=())
        first, second = list(render_frames(world))[:2]
        v, u = np.mgrid[480:700, 300:1000].astype(np.float32)
        x = FY * 1.8 / (v - world.horizons[1])

        def difference(speed: float, x: np.ndarray = x, u: np.ndarray = u, h: float = world.horizons[0]) -> float:
            """Between the second frame and what the first shows of the same ground, for a supposed speed."""
            before = x + speed / FPS
            was = [CX + (u - CX) * x / before, h + FY * 1.8 / before]
            moved = cv2.remap(first, *(w.astype(np.float32) for w in was), cv2.INTER_LINEAR)  # noqa: B023
            return float(np.abs(moved.astype(float) - second[480:700, 300:1000]).mean())  # noqa: B023

        speeds = world.speed + np.arange(-3, 3.1, 0.5)
        assert speeds[np.argmin([difference(s) for s in speeds])] == pytest.approx(world.speed)
