"""Tracking frame by frame: the same boxes as with all frames in memory, but only a window of frames is kept."""

from __future__ import annotations

import numpy as np
import pytest

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box
from stage1_extract.sample.dataset import clip_scene
from stage1_extract.sample.render import render_frames
from stage1_extract.sample.scene import vehicle_box
from stage1_extract.tracking.online_tracker import OnlineTracker
from tests.tracking_helpers import track_box

Clip = tuple[list[Image], list[list[Box]]]


@pytest.fixture(scope="module")
def clip() -> Clip:
    """Eight rendered frames, and the boxes of two vehicles in each of them."""
    scene = next(s for s in (clip_scene(5, 2, n) for n in range(1, 30)) if len(s.vehicles) > 1)
    return list(render_frames(scene)), [[vehicle_box(scene, v, i) for i in range(8)] for v in scene.vehicles[:2]]


def test_boxes_forwards_are_those_of_track_box(clip: Clip) -> None:
    frames, (path, _) = clip
    tracker, expected = OnlineTracker(4), track_box(frames, path[0], 0)
    for i, frame in enumerate(frames):
        tracker.step(frame, {"a": path[0]} if i == 0 else {})
        kept = min(i + 1, 4)
        np.testing.assert_array_equal(tracker.boxes["a"][-kept:], expected.boxes[i + 1 - kept : i + 1])
        np.testing.assert_array_equal(tracker.confidence["a"][-kept:], expected.confidence[i + 1 - kept : i + 1])
        assert np.isnan(tracker.boxes["a"][:-kept]).all()


def test_boxes_backwards_reach_as_far_as_frames_are_kept(clip: Clip) -> None:
    frames, (path, other) = clip
    tracker, expected = OnlineTracker(5), track_box(frames, path[6], 6)
    for i, frame in enumerate(frames[:7]):
        tracker.step(frame, {"a": path[6]} if i == 6 else {"b": other[2]} if i == 2 else {})
    np.testing.assert_array_equal(tracker.boxes["a"], expected.boxes[2:7])
    np.testing.assert_array_equal(tracker.boxes["b"], track_box(frames, other[2], 2).boxes[2:7])


def test_jitter_of_later_boxes_changes_nothing(clip: Clip) -> None:
    frames, (path, _) = clip
    rng = np.random.default_rng(0)
    once, often = OnlineTracker(8), OnlineTracker(8)
    for i, frame in enumerate(frames):
        once.step(frame, {"a": path[0]} if i == 0 else {})
        often.step(frame, {"a": path[0] if i == 0 else tuple(path[i] + rng.normal(0, 1, 4))})
    np.testing.assert_array_equal(often.boxes["a"], once.boxes["a"])


def test_box_elsewhere_restarts_the_vehicle(clip: Clip) -> None:
    frames, (path, other) = clip
    tracker = OnlineTracker(8)
    for i, frame in enumerate(frames):
        tracker.step(frame, {"a": path[0]} if i == 0 else {"a": other[5]} if i == 5 else {})
    np.testing.assert_array_equal(tracker.boxes["a"], track_box(frames, other[5], 5).boxes)


def test_lost_vehicle_is_removed_and_can_start_again(clip: Clip) -> None:
    frames, (path, _) = clip
    tracker, blank = OnlineTracker(3), np.full_like(frames[0], 90)
    tracker.step(frames[0], {"a": path[0]})
    for _ in range(2):
        tracker.step(blank, {})
    assert np.isnan(tracker.boxes["a"]).all(axis=1).tolist() == [False, True, True]
    tracker.step(blank, {})
    assert tracker.boxes == {}
    tracker.step(frames[0], {"a": path[0]})
    assert tracker.boxes["a"][-1].tolist() == list(path[0])


@pytest.mark.parametrize(("box", "message"), [((5, 5, 5, 9), "no size"), ((2000, 5, 2100, 90), "outside its image")])
def test_impossible_box_is_refused(box: Box, message: str, clip: Clip) -> None:
    with pytest.raises(DataError, match=message):
        OnlineTracker(3).step(clip[0][0], {"a": box})
