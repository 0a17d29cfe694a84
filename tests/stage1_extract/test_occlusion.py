"""Vehicles that others hide: what stands before one is not taken for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from features._common.types import Image
from features.sequences import Box, FrameSequence, Label
from features.tracks import Track, track_keys
from stage1_extract.tracking.follower import occluding_boxes
from stage1_extract.tracking.online_tracker import OnlineTracker
from stage1_extract.tracking.sequence_tracks import track_vehicles
from stage1_extract.tracking.tracker import track_known_boxes

FAR: Box = (100.0, 80.0, 160.0, 130.0)
GROWTH = 0.98  # of the one behind, a frame; the one before it grows instead


def boxes(frame: int, shift: float = 0.0) -> tuple[Box, Box]:
    """Where the vehicle behind and the one before it are; `shift` px more to the left hides more."""
    far, near = GROWTH**frame, 1.02**frame
    return (
        (130 - 30 * far, 105 - 25 * far, 130 + 30 * far, 105 + 25 * far),
        (176 - shift - 36 * near - frame, 110 - 40 * near, 176 - shift + 36 * near - frame, 110 + 40 * near),
    )


def scene(shift: float = 0.0, both: bool = True) -> list[Image]:
    """Eight frames with a photograph behind another, drawn eight times finer than they are seen."""
    fine = 8
    back = cv2.GaussianBlur(cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY), (0, 0), 2)
    back = cv2.resize(back, (320 * fine, 200 * fine))
    pictures = cv2.cvtColor(skimage.data.chelsea(), cv2.COLOR_RGB2GRAY), skimage.data.camera()
    out = []
    for i in range(8):
        canvas = back.copy()
        for picture, (left, top, right, bottom) in list(zip(pictures, boxes(i, shift), strict=True))[: 1 + both]:
            k = (right - left) * fine / picture.shape[1], (bottom - top) * fine / picture.shape[0]
            matrix = np.array([[k[0], 0, left * fine], [0, k[1], top * fine]])
            cv2.warpAffine(picture, matrix, canvas.shape[::-1], dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
        out.append(cv2.resize(canvas, (320, 200), interpolation=cv2.INTER_AREA))
    return out


def scales(found: Track, at: int) -> NDArray[np.float64]:
    width = found.boxes[:, 2] - found.boxes[:, 0]
    return width / width[at]


@pytest.mark.parametrize("at", [0, 7])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_what_is_left_of_a_vehicle_is_followed(at: int, shift: float) -> None:
    frames, (far, near) = scene(shift), boxes(at, shift)
    labels = tuple(Label(at, {}, box) for box in (far, near))
    sequence = FrameSequence("s", "train", 8, 10.0, (320, 200), "", labels)
    tracks = track_vehicles(sequence, frames)
    found = [tracks[name] for name in track_keys(sequence)]
    expected = GROWTH ** (np.arange(8.0) - at)
    beside = scales(found[0], at)
    np.testing.assert_allclose(beside, expected, rtol=0.02)
    alone = scales(track_known_boxes(frames, {at: far}), at)
    assert not np.abs(alone / expected - 1).max() < 2 * np.abs(beside / expected - 1).max()
    # the one before is followed as if there were no other
    np.testing.assert_array_equal(found[1].boxes, track_known_boxes(frames, {at: near}).boxes)


def test_trails_hide_as_tracks_do() -> None:
    frames = scene(7.0)
    sequence = FrameSequence("s", "train", 8, 10.0, (320, 200), "", tuple(Label(0, {}, box) for box in boxes(0, 7.0)))
    trails, tracks = OnlineTracker(8), track_vehicles(sequence, frames)
    for i, frame in enumerate(frames):
        trails.step(frame, dict(zip("ab", boxes(0, 7.0), strict=True)) if i == 0 else {})
    for name, known in zip("ab", track_keys(sequence), strict=True):
        np.testing.assert_array_equal(trails.boxes[name], tracks[known].boxes)
    late = OnlineTracker(8)
    for i, frame in enumerate(frames):
        late.step(frame, dict(zip("ab", boxes(7, 7.0), strict=True)) if i == 7 else {})
    found = Track(late.boxes["a"], late.confidence["a"])
    np.testing.assert_allclose(scales(found, 7), GROWTH ** (np.arange(8.0) - 7), rtol=0.02)


def test_what_stands_before_a_box() -> None:
    frame = np.zeros((200, 320), np.uint8)
    lower = (140.0, 90.0, 200.0, 140.0)
    assert occluding_boxes(FAR, [lower], frame) == [lower]
    assert occluding_boxes(lower, [FAR], frame) == []
    assert occluding_boxes(FAR, [(170.0, 90.0, 200.0, 140.0)], frame) == []  # beside it
    assert occluding_boxes(FAR, [FAR, (102.0, 81.0, 163.0, 132.0)], frame) == []  # the same vehicle twice
    assert occluding_boxes(FAR, [(0.0, 0.0, 320.0, 200.0)], frame) == []  # the whole scene
    lorry = (60.0, 20.0, 200.0, 150.0)
    assert occluding_boxes(FAR, [lorry, lower], frame) == [lorry, lower]  # all of it


def test_a_vehicle_that_another_hides_entirely_is_not_followed() -> None:
    frames, (far, near) = scene(), boxes(0)
    labels = tuple(Label(0, {}, box) for box in (far, (far[0] - 20, *near[1:])))
    sequence = FrameSequence("s", "train", 8, 10.0, (320, 200), "", labels)
    tracks = track_vehicles(sequence, frames)
    hidden, other = (int(np.isfinite(tracks[name].boxes[:, 0]).sum()) for name in track_keys(sequence))
    assert hidden == 1
    assert other > 1


def test_a_box_over_everything_hides_nothing() -> None:
    frames, far = scene(both=False), boxes(0)[0]
    everything = (-0.5, -0.5, 319.5, 199.5)
    beside = track_known_boxes(frames, {0: far}, {i: [everything] for i in range(8)})
    np.testing.assert_array_equal(beside.boxes, track_known_boxes(frames, {0: far}).boxes)
