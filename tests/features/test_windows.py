"""Windows: their rows, their labels, and what is dropped."""

from __future__ import annotations

import math

import numpy as np
import pytest

from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from features.windows import make_examples, window_offsets

NAN = math.nan


def clip(name: str, length: int, *labels: Label, split: str = "train") -> FrameSequence:
    return FrameSequence(name, split, length, 20.0, (1280, 720), name, labels)


def test_the_published_window_is_32_frames_before_the_label() -> None:
    clips = [
        clip("Train/1", 8, Label(39, {"vx": -1.0, "vy": 0.5})),
        clip("Train/2", 8, Label(39, {"vx": 2.0, "vy": 0.0})),
    ]
    examples = make_examples(clips, np.array([0, 8]), ("vx", "vy"), length=8, end=-32)
    np.testing.assert_array_equal(examples.rows, [np.arange(8), np.arange(8, 16)])
    np.testing.assert_array_equal(examples.targets, [[-1, 0.5], [2, 0]])
    np.testing.assert_array_equal(examples.start, [0, 0])


def test_eight_frames_spread_over_forty() -> None:
    np.testing.assert_array_equal(window_offsets(8, 5, 0) + 39, [4, 9, 14, 19, 24, 29, 34, 39])


def test_windows_that_reach_outside_their_sequence_are_dropped() -> None:
    drive = clip("drive", 6, *(Label(i, {"ego_speed": float(i)}) for i in range(6)))
    examples = make_examples([drive], np.array([10]), ("ego_speed",), length=3)
    np.testing.assert_array_equal(examples.rows, [[10, 11, 12], [11, 12, 13], [12, 13, 14], [13, 14, 15]])
    assert examples.dropped == 2


def test_ego_speed_and_vehicle_labels_are_separate_examples() -> None:
    scene = clip(
        "1",
        8,
        Label(7, {"vx": 1.0, "vy": 0.0}, (1, 2, 3, 4), (20.0, 1.0)),
        Label(7, {"vx": 3.0, "vy": 0.0}, (5, 6, 7, 8), (40.0, -1.0)),
        Label(7, {"ego_speed": 25.0}),
    )
    speeds = make_examples([scene], np.array([0]), ("ego_speed",), length=8)
    vehicles = make_examples([scene], np.array([0]), ("vx", "vy"), length=8)
    positions = make_examples([scene], np.array([0]), ("x", "y"), length=8)
    assert len(speeds) == 1 and len(vehicles) == 2
    np.testing.assert_array_equal(vehicles.position, [[20, 1], [40, -1]])
    np.testing.assert_array_equal(positions.targets, [[20, 1], [40, -1]])


def test_an_unlabelled_clip_gives_examples_with_unknown_targets() -> None:
    clips = [
        clip("1", 8, Label(7, {"vx": 1.0, "vy": 0.0})),
        clip("2", 8, Label(7, {"vx": NAN, "vy": NAN}), split="test"),
    ]
    examples = make_examples(clips, np.array([0, 8]), ("vx", "vy"), length=8)
    np.testing.assert_array_equal(examples.known, [True, False])
    np.testing.assert_array_equal(examples[examples.split == "test"].rows, [np.arange(8, 16)])


@pytest.mark.parametrize(
    ("columns", "length", "message"),
    [(("vx",), 8, "ego_speed"), (("ego_speed",), 9, "--window.length")],
)
def test_missing_targets_and_windows_are_refused(columns: tuple[str, ...], length: int, message: str) -> None:
    scene = clip("1", 8, Label(7, {"ego_speed": 25.0}))
    with pytest.raises(ConfigError, match=message):
        make_examples([scene], np.array([0]), columns, length=length)
