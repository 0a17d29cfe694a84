"""Vehicles partly hidden by others: only what is visible of them is tracked."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from features._common.types import Image
from features.sequences import Box, FrameSequence, Label
from features.tracks import Track, track_keys
from stage1_extract.tracking.online_tracker import OnlineTracker
from stage1_extract.tracking.sequence_tracks import track_vehicles
from stage1_extract.tracking.tracker import occluding_boxes, track_known_boxes
from tests.tracking_helpers import relative_widths

FAR: Box = (100.0, 80.0, 160.0, 130.0)
GROWTH = 0.98  # per frame, of the far vehicle; the near one grows


def boxes(frame: int, shift: float = 0.0) -> tuple[Box, Box]:
    """The boxes of the far and the near vehicle; a `shift` of the near one to the left, in px, hides more."""
    far, near = GROWTH**frame, 1.02**frame
    return (
        (130 - 30 * far, 105 - 25 * far, 130 + 30 * far, 105 + 25 * far),
        (176 - shift - 36 * near - frame, 110 - 40 * near, 176 - shift + 36 * near - frame, 110 + 40 * near),
    )


def occlusion_frames(shift: float = 0.0, both: bool = True) -> list[Image]:
    """Eight frames with a photograph in front of another, drawn eight times larger and averaged."""
    fine = 8
    back = cv2.GaussianBlur(cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY), (0, 0), 2)
    back = cv2.resize(back, (320 * fine, 200 * fine))
    pictures = cv2.cvtColor(skimage.data.chelsea(), cv2.COLOR_RGB2GRAY), skimage.data.camera()
    frames = []
    for i in range(8):
        canvas = back.copy()
        for picture, (left, top, right, bottom) in list(zip(pictures, boxes(i, shift), strict=True))[: 1 + both]:
            k = (right - left) * fine / picture.shape[1], (bottom - top) * fine / picture.shape[0]
            matrix = np.array([[k[0], 0, left * fine], [0, k[1], top * fine]])
            cv2.warpAffine(picture, matrix, canvas.shape[::-1], dst=canvas, borderMode=cv2.BORDER_TRANSPARENT)
        frames.append(cv2.resize(canvas, (320, 200), interpolation=cv2.INTER_AREA))
    return frames


@pytest.mark.parametrize("at", [0, 7])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_visible_part_of_a_vehicle_is_tracked(at: int, shift: float) -> None:
    frames, (far, near) = occlusion_frames(shift), boxes(at, shift)
    labels = tuple(Label(at, {}, box) for box in (far, near))
    sequence = FrameSequence("s", "train", 8, 10.0, (320, 200), "", labels)
    tracks = track_vehicles(sequence, frames)
    far_track, near_track = (tracks[key] for key in track_keys(sequence))
    expected = GROWTH ** (np.arange(8.0) - at)
    widths = relative_widths(far_track, at)
    np.testing.assert_allclose(widths, expected, rtol=0.02)
    alone = relative_widths(track_known_boxes(frames, {at: far}), at)
    assert not np.abs(alone / expected - 1).max() < 2 * np.abs(widths / expected - 1).max()
    # the near vehicle is tracked as if there were no other
    np.testing.assert_array_equal(near_track.boxes, track_known_boxes(frames, {at: near}).boxes)


def test_online_tracker_hides_vehicles_too() -> None:
    frames = occlusion_frames(7.0)
    sequence = FrameSequence("s", "train", 8, 10.0, (320, 200), "", tuple(Label(0, {}, box) for box in boxes(0, 7.0)))
    online, tracks = OnlineTracker(8), track_vehicles(sequence, frames)
    for i, frame in enumerate(frames):
        online.step(frame, dict(zip("ab", boxes(0, 7.0), strict=True)) if i == 0 else {})
    for name, key in zip("ab", track_keys(sequence), strict=True):
        np.testing.assert_array_equal(online.boxes[name], tracks[key].boxes)
    late = OnlineTracker(8)
    for i, frame in enumerate(frames):
        late.step(frame, dict(zip("ab", boxes(7, 7.0), strict=True)) if i == 7 else {})
    track = Track(late.boxes["a"], late.confidence["a"])
    np.testing.assert_allclose(relative_widths(track, 7), GROWTH ** (np.arange(8.0) - 7), rtol=0.02)


def test_nearer_overlapping_boxes_hide_a_box() -> None:
    frame = np.zeros((200, 320), np.uint8)
    lower = (140.0, 90.0, 200.0, 140.0)
    assert occluding_boxes(FAR, [lower], frame) == [lower]
    assert occluding_boxes(lower, [FAR], frame) == []
    assert occluding_boxes(FAR, [(170.0, 90.0, 200.0, 140.0)], frame) == []  # beside it
    assert occluding_boxes(FAR, [FAR, (102.0, 81.0, 163.0, 132.0)], frame) == []  # the same vehicle twice
    assert occluding_boxes(FAR, [(0.0, 0.0, 320.0, 200.0)], frame) == []  # the whole scene
    lorry = (60.0, 20.0, 200.0, 150.0)
    assert occluding_boxes(FAR, [lorry, lower], frame) == [lorry, lower]  # all of it


def test_completely_hidden_vehicle_is_not_tracked() -> None:
    frames, (far, near) = occlusion_frames(), boxes(0)
    labels = tuple(Label(0, {}, box) for box in (far, (far[0] - 20, *near[1:])))
    sequence = FrameSequence("s", "train", 8, 10.0, (320, 200), "", labels)
    tracks = track_vehicles(sequence, frames)
    hidden, other = (int(np.isfinite(tracks[key].boxes[:, 0]).sum()) for key in track_keys(sequence))
    assert hidden == 1
    assert other > 1


def test_box_over_the_whole_image_hides_nothing() -> None:
    frames, far = occlusion_frames(both=False), boxes(0)[0]
    whole_image = (-0.5, -0.5, 319.5, 199.5)
    track = track_known_boxes(frames, {0: far}, {i: [whole_image] for i in range(8)})
    np.testing.assert_array_equal(track.boxes, track_known_boxes(frames, {0: far}).boxes)
