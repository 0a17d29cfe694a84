"""The tracker on pictures of known motion, on real frames, and on boxes that cannot be tracked."""

from __future__ import annotations

import csv
import json
import time
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box
from stage1_extract.sample.dataset import clip_scene
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import FPS, vehicle_box
from stage1_extract.tracking.tracker import start_tracker
from stage2_temporal.vehicle.geometry import confidence_weights, weighted_line
from tests.tracking_helpers import centres, lost_frames, relative_widths, track_box

OVERSAMPLING = 8  # pictures are drawn this many times larger and averaged, as a sensor does
SIZE = 320, 200
ASPECT = 0.8  # height over width of the moved photograph


@cache
def photographs() -> tuple[Image, Image]:
    """The moved photograph, and the background."""
    cat = cv2.cvtColor(skimage.data.chelsea(), cv2.COLOR_RGB2GRAY)[30:270, 80:380]
    back = cv2.GaussianBlur(cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY), (0, 0), 1)
    return cat, cv2.resize(back, (SIZE[0] * OVERSAMPLING, SIZE[1] * OVERSAMPLING))


def moving_photograph(width: float, scale: ArrayLike, x: ArrayLike, y: ArrayLike, noise: float = 2.0) -> list[Image]:
    """Frames in which the photograph is `width * scale` px wide around (x, y), accurate to a hundredth of a pixel."""
    cat, back = photographs()
    rng = np.random.default_rng(0)
    frames = []
    for s, u, v in np.broadcast(scale, x, y):
        k = width * s * OVERSAMPLING / cat.shape[1]
        middle = np.array([u, v]) * OVERSAMPLING + (OVERSAMPLING - 1) / 2
        corner = [m - k * (n - 1) / 2 for m, n in zip(middle, cat.shape[::-1], strict=True)]
        canvas = back.copy()
        matrix = np.array([[k, 0, corner[0]], [0, k, corner[1]]])
        cv2.warpAffine(cat, matrix, canvas.shape[::-1], dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
        small = cv2.resize(canvas.astype(np.float32), SIZE, interpolation=cv2.INTER_AREA)
        frames.append(np.clip(small + rng.normal(0, noise, small.shape) + 0.5, 0, 255).astype(np.uint8))
    return frames


def box_around(width: float, x: float, y: float) -> Box:
    return x - width / 2, y - width * ASPECT / 2, x + width / 2, y + width * ASPECT / 2


STEPS = np.arange(8)
PATH = 150.3 + 2.3 * STEPS, 95.2 + 1.7 * STEPS


@pytest.mark.parametrize(
    ("width", "scale_tolerance", "position_tolerance"), [(20, 0.01, 0.06), (30, 0.004, 0.06), (60, 0.0015, 0.05)]
)
@pytest.mark.parametrize("approaching", [False, True])
def test_scale_and_position_are_accurate_to_sub_pixels(
    width: float, scale_tolerance: float, position_tolerance: float, approaching: bool
) -> None:
    scale = 0.965**STEPS
    scale = 1 / scale if approaching else scale
    track = track_box(moving_photograph(width, scale, *PATH), box_around(width, 150.3, 95.2), 0)
    np.testing.assert_allclose(relative_widths(track, 0), scale, rtol=scale_tolerance)
    np.testing.assert_allclose(centres(track), np.stack(PATH, axis=1), atol=position_tolerance)
    assert track.boxes.shape == (8, 4)
    assert track.boxes.dtype == np.float64
    assert track.confidence[0] == 1
    assert (track.confidence > 0.85).all()
    assert (track.confidence <= 1).all()


def test_box_in_the_middle_is_tracked_both_ways() -> None:
    scale = 0.97 ** (STEPS - 4)
    track = track_box(moving_photograph(60, scale, *PATH), box_around(60, PATH[0][4], PATH[1][4]), 4)
    np.testing.assert_allclose(relative_widths(track, 4), scale, rtol=0.002)
    np.testing.assert_array_equal(track.boxes[4], box_around(60, PATH[0][4], PATH[1][4]))


def test_box_that_misses_the_outline_gives_the_same_scale() -> None:
    scale = 0.965**STEPS
    left, top, right, bottom = box_around(60, 150.3, 95.2)
    track = track_box(moving_photograph(60, scale, *PATH), (left + 4.3, top + 5.7, right - 2.1, bottom - 1.2), 0)
    np.testing.assert_allclose(relative_widths(track, 0), scale, rtol=0.003)


@pytest.mark.parametrize("growth", [0.8, 1.2])
@pytest.mark.parametrize(("width", "tolerance"), [(30, 0.01), (60, 0.003), (120, 0.001)])
def test_sudden_change_of_size(width: float, tolerance: float, growth: float) -> None:
    track = track_box(
        moving_photograph(width, [1, growth], [150.3, 153.1], [95.2, 94.3]), box_around(width, 150.3, 95.2), 0
    )
    np.testing.assert_allclose(relative_widths(track, 0), [1, growth], rtol=tolerance)


def test_changing_light() -> None:
    scale = 0.97**STEPS
    frames = [
        np.clip(f * (1 - 0.06 * i) + 5.0 * i, 0, 255).astype(np.uint8)
        for i, f in enumerate(moving_photograph(60, scale, *PATH))
    ]  # fmt: skip
    np.testing.assert_allclose(relative_widths(track_box(frames, box_around(60, 150.3, 95.2), 0), 0), scale, rtol=0.002)


def test_shaking_camera() -> None:
    shake = np.array([0, 7, -6, 9, -9, 8, -7, 3.0])
    scale = 0.98**STEPS
    x, y = 150.0 + shake[::-1] - 3, 95 + shake
    track = track_box(moving_photograph(30, scale, x, y), box_around(30, 150.0, 95.0), 0)
    np.testing.assert_allclose(centres(track), np.stack([x, y], axis=1), atol=0.08)


def test_colour_gives_the_track_of_grey() -> None:
    frames = moving_photograph(40, 0.97**STEPS, *PATH)
    colour = [cv2.cvtColor(f, cv2.COLOR_GRAY2BGR) for f in frames]
    box = box_around(40, 150.3, 95.2)
    np.testing.assert_allclose(track_box(colour, box, 0).boxes, track_box(frames, box, 0).boxes, atol=1e-3)


def test_growth_to_twice_the_size_and_back() -> None:
    scale = np.concatenate([np.linspace(1, 2.2, 16), np.linspace(2.2, 1, 16)])
    track = track_box(moving_photograph(40, scale, 160, 100), box_around(40, 160, 100), 0)
    np.testing.assert_allclose(relative_widths(track, 0), scale, rtol=0.012)


def test_single_frame() -> None:
    track = track_box(moving_photograph(40, 1.0, 150.0, 95.0), box_around(40, 150, 95), 0)
    np.testing.assert_array_equal(track.boxes, [box_around(40, 150, 95)])


def test_vehicle_that_leaves_the_image_is_lost() -> None:
    x = 250.0 + 10 * np.arange(12)  # centred on the image's edge in frame 7
    track = track_box(moving_photograph(60, 1.0, x, 100.0), box_around(60, 250, 100), 0)
    lost = lost_frames(track)
    assert lost
    assert lost == list(range(lost[0], 12))
    assert lost[0] in (6, 7, 8)
    np.testing.assert_allclose(centres(track)[: lost[0], 0], x[: lost[0]], atol=0.3)


def test_vehicle_that_becomes_too_small_is_lost() -> None:
    scale = 0.9 ** np.arange(20)  # 5 px high from frame 14
    track = track_box(moving_photograph(28, scale, 160, 100), box_around(28, 160, 100), 0)
    lost = lost_frames(track)
    assert lost
    assert lost[-1] == 19
    assert np.nanmin(track.boxes[:, 3] - track.boxes[:, 1]) >= 6


@pytest.mark.parametrize(("hidden", "found_again"), [(2, True), (6, False)])
def test_vehicle_is_found_again_after_being_hidden_briefly(hidden: int, found_again: bool) -> None:
    frames = moving_photograph(60, 1.0, 150 + 2.0 * np.arange(14), 100.0)
    for i in range(4, 4 + hidden):
        frames[i][40:160, 100:250] = 128
    track = track_box(frames, box_around(60, 150, 100), 0)
    assert lost_frames(track) == list(range(4, 4 + hidden if found_again else 14))


def test_vehicle_behind_a_widening_post_is_lost_rather_than_wrong() -> None:
    frames = moving_photograph(40, 1.0, 150.0 + 0 * STEPS, 100.0)
    for i, frame in enumerate(frames):
        frame[40:160, 110 + 4 * i : 120 + 6 * i] = 30  # the post covers over a fifth of it in frame 3
    track = track_box(frames, box_around(40, 150, 100), 0)
    np.testing.assert_allclose(relative_widths(track, 0)[~np.isnan(track.boxes[:, 0])], 1, rtol=0.02)
    assert lost_frames(track) == [3, 4, 5, 6, 7]


def test_box_without_contrast_is_known_only_in_its_own_frame() -> None:
    frames = [np.full((200, 320, 3), 90, np.uint8) for _ in range(5)]
    track = track_box(frames, (100, 50, 160, 90), 2)
    assert lost_frames(track) == [0, 1, 3, 4]
    np.testing.assert_array_equal(track.boxes[2], [100, 50, 160, 90])


def test_vehicle_is_lost_in_frames_without_contrast() -> None:
    frames = [*moving_photograph(40, 1.0, [150.0, 151.0], 100.0), *[np.full((200, 320), 90, np.uint8)] * 5]
    assert lost_frames(track_box(frames, box_around(40, 150, 100), 0)) == [2, 3, 4, 5, 6]


def test_box_over_the_whole_image_follows_the_scene() -> None:
    frames = moving_photograph(60, 1.0, 150.0 + 0 * STEPS, 100.0)
    track = track_box(frames, (0, 0, *SIZE), 7)
    np.testing.assert_allclose(track.boxes, np.tile([0, 0, *SIZE], (8, 1)), atol=0.1)
    beyond = track_box(frames, (-200, -200, 700, 600), 7)
    assert lost_frames(beyond) == list(range(7))  # most of it is outside the image


def test_box_partly_outside_the_image() -> None:
    x = 12.0 + 2 * STEPS
    track = track_box(moving_photograph(60, 1.0, x, 100.0), box_around(60, 12.0, 100), 0)
    np.testing.assert_allclose(centres(track)[:, 0], x, atol=0.1)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((400.0, 50.0, 440.0, 90.0), "outside its image"),
        ((-50.0, 50.0, -10.0, 90.0), "outside its image"),
        ((50.0, 50.0, 50.0, 90.0), "no size"),
        ((60.0, 50.0, 50.0, 90.0), "no size"),
        ((50.0, float("nan"), 90.0, 90.0), "no size"),
        ((50.0, 50.0, float("inf"), 90.0), "no size"),
    ],
)
def test_tracking_cannot_start_at_an_impossible_box(box: Box, message: str) -> None:
    image = np.zeros((200, 320), np.uint8)
    with pytest.raises(DataError, match=message):
        start_tracker(image, box)
    track = track_box([image] * 2, box, 0)
    assert lost_frames(track) == ([1] if message == "outside its image" else [0, 1])


@cache
def three_frames() -> list[Image]:
    return moving_photograph(60, [1.0, 0.97, 0.94], [150.0, 152.0, 154.0], 100.0)


@settings(max_examples=60)
@given(
    left=st.floats(-400, 330),
    top=st.floats(-300, 210),
    width=st.floats(0.01, 900),
    height=st.floats(0.01, 700),
    at=st.integers(0, 2),
)
def test_any_box_is_tracked_or_lost(left: float, top: float, width: float, height: float, at: int) -> None:
    box = left, top, left + width, top + height
    track = track_box(three_frames(), box, at)
    if left >= 319.5 or top >= 199.5 or left + width <= -0.5 or top + height <= -0.5:
        assert len(lost_frames(track)) == 2
    assert at not in lost_frames(track)
    np.testing.assert_array_equal(track.boxes[at], box)
    assert ((track.confidence >= 0) & (track.confidence <= 1)).all()


@pytest.mark.parametrize("side", [30, 300, 600])
def test_tracking_takes_at_most_20_ms_per_frame(side: int) -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (720, 1280, 3), np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    frames = [image] * 20
    start = time.process_time()
    track = track_box(frames, (400.0, 100.0, 400.0 + side, 100.0 + 0.8 * side), 0)
    assert (time.process_time() - start) / 20 < 0.020
    assert not lost_frames(track)


@pytest.mark.parametrize("number", [1, 2])
def test_velocity_of_a_rendered_vehicle(number: int) -> None:
    scene = clip_scene(5, 2, number)
    vehicle = scene.vehicles[0]
    frames = list(render_frames(scene))
    last = len(frames) - 1
    track = track_box(frames, vehicle_box(scene, vehicle, last), last)
    t = np.arange(-last, 1) / FPS
    level, slope = weighted_line(t, 1 / relative_widths(track, last), confidence_weights(track.confidence))
    assert vehicle.position[0] * slope / level == pytest.approx(vehicle.velocity[0], abs=0.5)


def test_scale_in_a_tusimple_clip_agrees_with_its_label(real: Path) -> None:
    clip = real / "tusimple" / "clips" / "1"
    note = json.loads((clip / "annotation.json").read_text())[0]
    frames = [cv2.imread(str(clip / "imgs" / f"{i:03d}.jpg")) for i in range(1, 41)]
    track = track_box(frames, tuple(note["bbox"][k] for k in ("left", "top", "right", "bottom")), 39)
    x = note["position"][0] + note["velocity"][0] * (np.arange(40) - 39) / 20
    np.testing.assert_allclose(relative_widths(track, 39), note["position"][0] / x, rtol=0.03)
    assert not lost_frames(track)


def test_velocity_of_a_kitti_car_agrees_with_the_lidar(real: Path) -> None:
    scene = real / "kitti_lead_car"
    rows = list(csv.DictReader((scene / "labels.csv").read_text().splitlines()))
    frames = [cv2.imread(str(scene / "frames" / row["frame"])) for row in rows]
    track = track_box(frames, (556, 190, 700, 308), 0)
    assert not lost_frames(track)
    # the lower edge is a linear function of the size, whose value at size 0 is the horizon
    _, drop = weighted_line(relative_widths(track, 0), track.boxes[:, 3], confidence_weights(track.confidence))
    distance = 721.5 * 1.65 / (drop * relative_widths(track, 0))
    t = np.arange(-4, 5) / 10
    rate = [weighted_line(t, distance[i - 4 : i + 5], np.ones(9))[1] for i in range(4, len(rows) - 4)]
    lidar = np.array([float(row["relative_velocity_mps"]) for row in rows])[4:-4]
    assert np.sqrt(np.mean((rate - lidar) ** 2)) <= 0.25
    assert np.sqrt(np.mean(lidar**2)) > 0.5  # the error of a constant zero
