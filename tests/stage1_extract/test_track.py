"""The tracker on pictures whose motion is known, on real frames, and where there is nothing to follow."""

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

from features._common.types import Floats, Image
from features.errors import DataError
from features.sequences import Box
from features.tracks import Track
from stage1_extract.sample.dataset import clip_scene
from stage1_extract.sample.render import render_frames as painted
from stage1_extract.sample.scene import FPS, vehicle_box
from stage1_extract.tracking.tracker import track_box
from stage2_temporal.vehicle.geometry import confidence_weights, weighted_line

FINE = 8  # pictures are drawn this many times finer and averaged, as a sensor's pixels do
SIZE = 320, 200
SHAPE = 0.8  # height over width of the photograph that is moved


@cache
def photographs() -> tuple[Image, Image]:
    """What is moved, and what stays behind it."""
    cat = cv2.cvtColor(skimage.data.chelsea(), cv2.COLOR_RGB2GRAY)[30:270, 80:380]
    back = cv2.GaussianBlur(cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY), (0, 0), 1)
    return cat, cv2.resize(back, (SIZE[0] * FINE, SIZE[1] * FINE))


def scene(width: float, scale: ArrayLike, x: ArrayLike, y: ArrayLike, noise: float = 2.0) -> list[Image]:
    """Frames in which the photograph is `width * scale` px wide round (x, y), to a hundredth of a pixel."""
    cat, back = photographs()
    rng = np.random.default_rng(0)
    frames = []
    for s, u, v in np.broadcast(scale, x, y):
        k = width * s * FINE / cat.shape[1]
        middle = np.array([u, v]) * FINE + (FINE - 1) / 2
        place = [m - k * (n - 1) / 2 for m, n in zip(middle, cat.shape[::-1], strict=True)]
        canvas = back.copy()
        matrix = np.array([[k, 0, place[0]], [0, k, place[1]]])
        cv2.warpAffine(cat, matrix, canvas.shape[::-1], dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
        small = cv2.resize(canvas.astype(np.float32), SIZE, interpolation=cv2.INTER_AREA)
        frames.append(np.clip(small + rng.normal(0, noise, small.shape) + 0.5, 0, 255).astype(np.uint8))
    return frames


def around(width: float, x: float, y: float) -> Box:
    return x - width / 2, y - width * SHAPE / 2, x + width / 2, y + width * SHAPE / 2


def scales(found: Track, at: int) -> Floats:
    width = found.boxes[:, 2] - found.boxes[:, 0]
    return width / width[at]


def middles(found: Track) -> Floats:
    return (found.boxes[:, :2] + found.boxes[:, 2:]) / 2


STEPS = np.arange(8)
PATH = 150.3 + 2.3 * STEPS, 95.2 + 1.7 * STEPS


@pytest.mark.parametrize(("width", "size", "place"), [(20, 0.01, 0.06), (30, 0.004, 0.06), (60, 0.0015, 0.05)])
@pytest.mark.parametrize("nears", [False, True])
def test_scale_and_place_to_sub_pixels(width: float, size: float, place: float, nears: bool) -> None:
    scale = 0.965**STEPS
    scale = 1 / scale if nears else scale
    found = track_box(scene(width, scale, *PATH), around(width, 150.3, 95.2), 0)
    np.testing.assert_allclose(scales(found, 0), scale, rtol=size)
    np.testing.assert_allclose(middles(found), np.stack(PATH, axis=1), atol=place)
    assert found.boxes.shape == (8, 4)
    assert found.boxes.dtype == np.float64
    assert found.confidence[0] == 1
    assert (found.confidence > 0.85).all()
    assert (found.confidence <= 1).all()


def test_from_the_middle_both_ways() -> None:
    scale = 0.97 ** (STEPS - 4)
    found = track_box(scene(60, scale, *PATH), around(60, PATH[0][4], PATH[1][4]), 4)
    np.testing.assert_allclose(scales(found, 4), scale, rtol=0.002)
    np.testing.assert_array_equal(found.boxes[4], around(60, PATH[0][4], PATH[1][4]))


def test_an_edge_that_isnt_a_whole_pixel_and_a_box_that_misses_the_outline() -> None:
    scale = 0.965**STEPS
    left, top, right, bottom = around(60, 150.3, 95.2)
    found = track_box(scene(60, scale, *PATH), (left + 4.3, top + 5.7, right - 2.1, bottom - 1.2), 0)
    np.testing.assert_allclose(scales(found, 0), scale, rtol=0.003)


@pytest.mark.parametrize("growth", [0.8, 0.9, 1.1, 1.2])
@pytest.mark.parametrize(("width", "size"), [(30, 0.01), (60, 0.003), (120, 0.001)])
def test_a_sudden_change_of_size(width: float, size: float, growth: float) -> None:
    found = track_box(scene(width, [1, growth], [150.3, 153.1], [95.2, 94.3]), around(width, 150.3, 95.2), 0)
    np.testing.assert_allclose(scales(found, 0), [1, growth], rtol=size)


def test_changing_light() -> None:
    scale = 0.97**STEPS
    frames = [
        np.clip(f * (1 - 0.06 * i) + 5.0 * i, 0, 255).astype(np.uint8)
        for i, f in enumerate(scene(60, scale, *PATH))
    ]  # fmt: skip
    np.testing.assert_allclose(scales(track_box(frames, around(60, 150.3, 95.2), 0), 0), scale, rtol=0.002)


def test_a_shaking_camera() -> None:
    shake = np.array([0, 7, -6, 9, -9, 8, -7, 3.0])
    scale = 0.98**STEPS
    x, y = 150.0 + shake[::-1] - 3, 95 + shake
    found = track_box(scene(30, scale, x, y), around(30, 150.0, 95.0), 0)
    np.testing.assert_allclose(middles(found), np.stack([x, y], axis=1), atol=0.08)


def test_colour_is_followed_as_grey_is() -> None:
    frames = scene(40, 0.97**STEPS, *PATH)
    colour = [cv2.cvtColor(f, cv2.COLOR_GRAY2BGR) for f in frames]
    place = around(40, 150.3, 95.2)
    np.testing.assert_allclose(track_box(colour, place, 0).boxes, track_box(frames, place, 0).boxes, atol=1e-3)


def test_growth_to_double_the_size_and_back() -> None:
    scale = np.concatenate([np.linspace(1, 2.2, 16), np.linspace(2.2, 1, 16)])
    found = track_box(scene(40, scale, 160, 100), around(40, 160, 100), 0)
    np.testing.assert_allclose(scales(found, 0), scale, rtol=0.012)


def test_the_same_twice() -> None:
    frames = scene(40, 0.97**STEPS, *PATH)
    first, second = (track_box(frames, around(40, 150.3, 95.2), 0) for _ in range(2))
    np.testing.assert_array_equal(first.boxes, second.boxes)
    np.testing.assert_array_equal(first.confidence, second.confidence)


def test_one_frame() -> None:
    found = track_box(scene(40, 1.0, 150.0, 95.0), around(40, 150, 95), 0)
    np.testing.assert_array_equal(found.boxes, [around(40, 150, 95)])


def lost(found: Track) -> list[int]:
    gone = np.isnan(found.boxes)
    assert (gone.all(axis=1) == gone.any(axis=1)).all()
    np.testing.assert_array_equal(gone.all(axis=1), found.confidence == 0)
    return [int(i) for i in np.flatnonzero(gone.all(axis=1))]


def test_a_vehicle_that_leaves_the_image_is_given_up() -> None:
    x = 250.0 + 10 * np.arange(12)  # its middle is at the image's edge in frame 7
    found = track_box(scene(60, 1.0, x, 100.0), around(60, 250, 100), 0)
    gone = lost(found)
    assert gone
    assert gone == list(range(gone[0], 12))
    assert gone[0] in (6, 7, 8)
    np.testing.assert_allclose(middles(found)[: gone[0], 0], x[: gone[0]], atol=0.3)


def test_a_vehicle_that_shrinks_to_nothing_is_given_up() -> None:
    scale = 0.9 ** np.arange(20)  # 5 px high from frame 14 on
    found = track_box(scene(28, scale, 160, 100), around(28, 160, 100), 0)
    gone = lost(found)
    assert gone
    assert gone[-1] == 19
    assert np.nanmin(found.boxes[:, 3] - found.boxes[:, 1]) >= 6


@pytest.mark.parametrize(("hidden", "back"), [(2, True), (6, False)])
def test_hidden_for_a_while(hidden: int, back: bool) -> None:
    frames = scene(60, 1.0, 150 + 2.0 * np.arange(14), 100.0)
    for i in range(4, 4 + hidden):
        frames[i][40:160, 100:250] = 128
    found = track_box(frames, around(60, 150, 100), 0)
    assert lost(found) == list(range(4, 4 + hidden if back else 14))


def test_what_passes_in_front_isnt_taken_for_growth() -> None:
    frames = scene(40, 1.0, 150.0 + 0 * STEPS, 100.0)
    for i, frame in enumerate(frames):
        frame[40:160, 110 + 4 * i : 120 + 6 * i] = 30  # a post that widens: over a fifth of it in frame 3
    found = track_box(frames, around(40, 150, 100), 0)
    np.testing.assert_allclose(scales(found, 0)[~np.isnan(found.boxes[:, 0])], 1, rtol=0.02)
    assert lost(found) == [3, 4, 5, 6, 7]  # lost rather than wrong


def test_a_box_without_contrast_is_known_in_its_own_frame_only() -> None:
    frames = [np.full((200, 320, 3), 90, np.uint8) for _ in range(5)]
    found = track_box(frames, (100, 50, 160, 90), 2)
    assert lost(found) == [0, 1, 3, 4]
    np.testing.assert_array_equal(found.boxes[2], [100, 50, 160, 90])


def test_into_frames_without_contrast() -> None:
    frames = [*scene(40, 1.0, [150.0, 151.0], 100.0), *[np.full((200, 320), 90, np.uint8)] * 5]
    assert lost(track_box(frames, around(40, 150, 100), 0)) == [2, 3, 4, 5, 6]


def test_a_box_over_everything_follows_the_scene() -> None:
    still = scene(60, 1.0, 150.0 + 0 * STEPS, 100.0)
    found = track_box(still, (0, 0, *SIZE), 7)
    np.testing.assert_allclose(found.boxes, np.tile([0, 0, *SIZE], (8, 1)), atol=0.1)
    beyond = track_box(still, (-200, -200, 700, 600), 7)
    assert lost(beyond) == list(range(7))  # most of it is outside: nothing to hold on to


def test_a_box_that_reaches_out_of_the_image() -> None:
    x = 12.0 + 2 * STEPS
    found = track_box(scene(60, 1.0, x, 100.0), around(60, 12.0, 100), 0)
    np.testing.assert_allclose(middles(found)[:, 0], x, atol=0.1)


@pytest.mark.parametrize(
    ("where", "at", "message"),
    [
        ((400.0, 50.0, 440.0, 90.0), 0, "outside its image"),
        ((-50.0, 50.0, -10.0, 90.0), 0, "outside its image"),
        ((50.0, 50.0, 50.0, 90.0), 0, "no size"),
        ((60.0, 50.0, 50.0, 90.0), 0, "no size"),
        ((50.0, float("nan"), 90.0, 90.0), 0, "no size"),
        ((50.0, 50.0, float("inf"), 90.0), 0, "no size"),
        ((50.0, 50.0, 90.0, 90.0), 8, "not among those given"),
        ((50.0, 50.0, 90.0, 90.0), -1, "not among those given"),
    ],
)
def test_what_cant_be_followed_is_refused(where: Box, at: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        track_box([np.zeros((200, 320), np.uint8)] * 8, where, at)


@settings(deadline=None, max_examples=60)
@given(
    left=st.floats(-400, 330),
    top=st.floats(-300, 210),
    width=st.floats(0.01, 900),
    height=st.floats(0.01, 700),
    at=st.integers(0, 2),
)
def test_any_box_is_followed_lost_or_refused(left: float, top: float, width: float, height: float, at: int) -> None:
    frames = scene(60, [1.0, 0.97, 0.94], [150.0, 152.0, 154.0], 100.0)
    where = left, top, left + width, top + height
    try:
        found = track_box(frames, where, at)
    except DataError:
        assert left >= 319.5 or top >= 199.5 or left + width <= -0.5 or top + height <= -0.5
        return
    lost(found)
    np.testing.assert_array_equal(found.boxes[at], where)
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()


@pytest.mark.parametrize("side", [30, 300, 600])
def test_a_vehicle_costs_at_most_20_ms_a_frame(side: int) -> None:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (720, 1280, 3), np.uint8), (0, 0), 3)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
    frames = [image] * 20
    start = time.process_time()
    found = track_box(frames, (400.0, 100.0, 400.0 + side, 100.0 + 0.8 * side), 0)
    assert (time.process_time() - start) / 20 < 0.020
    assert not lost(found)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_rendered_vehicles_move_as_they_were_told(number: int) -> None:
    world = clip_scene(5, 2, number)
    vehicle = world.vehicles[0]
    frames = list(painted(world))
    last = len(frames) - 1
    found = track_box(frames, vehicle_box(world, vehicle, last), last)
    t = np.arange(-last, 1) / FPS
    level, slope = weighted_line(t, 1 / scales(found, last), confidence_weights(found.confidence))
    assert vehicle.position[0] * slope / level == pytest.approx(vehicle.velocity[0], abs=0.5)


def test_tusimple_clip_shrinks_as_its_label_says(real: Path) -> None:
    clip = real / "tusimple" / "clips" / "1"
    note = json.loads((clip / "annotation.json").read_text())[0]
    frames = [cv2.imread(str(clip / "imgs" / f"{i:03d}.jpg")) for i in range(1, 41)]
    found = track_box(frames, tuple(note["bbox"][k] for k in ("left", "top", "right", "bottom")), 39)
    x = note["position"][0] + note["velocity"][0] * (np.arange(40) - 39) / 20
    np.testing.assert_allclose(scales(found, 39), note["position"][0] / x, rtol=0.03)
    assert not lost(found)


def test_kitti_lead_car_follows_the_lidar(real: Path) -> None:
    scene = real / "kitti_lead_car"
    rows = list(csv.DictReader((scene / "labels.csv").read_text().splitlines()))
    frames = [cv2.imread(str(scene / "frames" / row["frame"])) for row in rows]
    found = track_box(frames, (556, 190, 700, 308), 0)
    assert not lost(found)
    # the horizon from the track itself: the lower edge over the size is a line that meets size 0 there
    _, drop = weighted_line(scales(found, 0), found.boxes[:, 3], confidence_weights(found.confidence))
    distance = 721.5 * 1.65 / (drop * scales(found, 0))
    t = np.arange(-4, 5) / 10
    rate = [weighted_line(t, distance[i - 4 : i + 5], np.ones(9))[1] for i in range(4, len(rows) - 4)]
    lidar = np.array([float(row["relative_velocity_mps"]) for row in rows])[4:-4]
    assert np.sqrt(np.mean((rate - lidar) ** 2)) <= 0.25
    assert np.sqrt(np.mean(lidar**2)) > 0.5  # what standing still would have
