"""Boxes followed frame by frame: the same paths as with all frames at hand, and only a window held."""

from __future__ import annotations

import numpy as np
import pytest

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box
from stage1_extract.sample.dataset import clip_scene
from stage1_extract.sample.render import render_frames as painted
from stage1_extract.sample.scene import vehicle_box
from stage1_extract.tracking.online_tracker import OnlineTracker
from stage1_extract.tracking.tracker import track_box

Scene = tuple[list[Image], list[list[Box]]]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Eight rendered frames, and for each of two vehicles its box in each of them."""
    world = next(w for w in (clip_scene(5, 2, n) for n in range(1, 30)) if len(w.vehicles) > 1)
    return list(painted(world)), [[vehicle_box(world, v, i) for i in range(8)] for v in world.vehicles[:2]]


def test_forwards_it_is_the_track(scene: Scene) -> None:
    frames, (path, _) = scene
    trails, expected = OnlineTracker(4), track_box(frames, path[0], 0)
    for i, frame in enumerate(frames):
        trails.step(frame, {"a": path[0]} if i == 0 else {})
        held = min(i + 1, 4)
        np.testing.assert_array_equal(trails.boxes["a"][-held:], expected.boxes[i + 1 - held : i + 1])
        np.testing.assert_array_equal(trails.confidence["a"][-held:], expected.confidence[i + 1 - held : i + 1])
        assert np.isnan(trails.boxes["a"][:-held]).all()
        assert len(trails._frames) == held


def test_backwards_it_goes_as_far_as_frames_are_held(scene: Scene) -> None:
    frames, (path, other) = scene
    trails, expected = OnlineTracker(5), track_box(frames, path[6], 6)
    for i, frame in enumerate(frames[:7]):
        trails.step(frame, {"a": path[6]} if i == 6 else {"b": other[2]} if i == 2 else {})
    np.testing.assert_array_equal(trails.boxes["a"], expected.boxes[2:7])
    np.testing.assert_array_equal(trails.boxes["b"], track_box(frames, other[2], 2).boxes[2:7])


def test_a_detectors_wavering_changes_nothing(scene: Scene) -> None:
    frames, (path, _) = scene
    rng = np.random.default_rng(0)
    once, often = OnlineTracker(8), OnlineTracker(8)
    for i, frame in enumerate(frames):
        once.step(frame, {"a": path[0]} if i == 0 else {})
        often.step(frame, {"a": path[0] if i == 0 else tuple(path[i] + rng.normal(0, 1, 4))})
    np.testing.assert_array_equal(often.boxes["a"], once.boxes["a"])


def test_a_box_elsewhere_starts_the_vehicle_anew(scene: Scene) -> None:
    frames, (path, other) = scene
    trails = OnlineTracker(8)
    for i, frame in enumerate(frames):
        trails.step(frame, {"a": path[0]} if i == 0 else {"a": other[5]} if i == 5 else {})
    np.testing.assert_array_equal(trails.boxes["a"], track_box(frames, other[5], 5).boxes)


def test_what_stays_lost_is_forgotten_and_may_come_again(scene: Scene) -> None:
    frames, (path, _) = scene
    trails, blank = OnlineTracker(3), np.full_like(frames[0], 90)
    trails.step(frames[0], {"a": path[0]})
    for _ in range(2):
        trails.step(blank, {})
    assert np.isnan(trails.boxes["a"]).all(axis=1).tolist() == [False, True, True]
    trails.step(blank, {})
    assert trails.boxes == {}
    trails.step(frames[0], {"a": path[0]})
    assert trails.boxes["a"][-1].tolist() == list(path[0])


@pytest.mark.parametrize(("given", "message"), [((5, 5, 5, 9), "no size"), ((2000, 5, 2100, 90), "outside its image")])
def test_a_box_that_cannot_be_is_refused(given: Box, message: str, scene: Scene) -> None:
    with pytest.raises(DataError, match=message):
        OnlineTracker(3).step(scene[0][0], {"a": given})
