"""Frames of windows by time: at an interval, over gaps, and at other frame rates."""

from __future__ import annotations

import numpy as np
import pytest

from features.errors import ConfigError
from features.sequences import FrameSequence, Label
from features.streams import scale_flow
from features.windows import make_examples, window_frames


def drive(times: np.ndarray | None = None, fps: float = 20.0, length: int = 40) -> FrameSequence:
    """A sequence with a label at each frame."""
    length = length if times is None else len(times)
    labels = tuple(Label(i, {"ego_speed": 1.0}) for i in range(length))
    own = None if times is None else tuple(times.tolist())
    return FrameSequence("d", "train", length, fps, (64, 48), "d", labels, times=own)


@pytest.mark.parametrize(("fps", "stride"), [(10.0, 1), (20.0, 2), (30.0, 3), (29.97, 3), (40.0, 4)])
def test_interval_chooses_every_nth_frame_of_a_multiple_rate(fps: float, stride: int) -> None:
    rows, fits, misplaced = window_frames(drive(fps=fps), np.arange(40), length=4, interval=0.1)
    np.testing.assert_array_equal(
        rows[fits], window_frames(drive(), np.arange(3 * stride, 40), length=4, stride=stride).rows
    )
    assert fits.sum() == 40 - 3 * stride and not misplaced[fits].any()


@pytest.mark.parametrize("fps", [8.0, 15.0, 25.0, 12.5])
def test_rate_without_frames_at_the_interval_is_refused_with_both_rates(fps: float) -> None:
    with pytest.raises(ConfigError, match=rf"expected 10 frames per second, or a multiple of it; got {fps:g} frames"):
        make_examples([drive(fps=fps)], np.array([0]), ("ego_speed",), length=4, interval=0.1)


def test_uneven_frames_are_chosen_by_their_times() -> None:
    times = np.cumsum(np.tile([0.02, 0.03], 40))  # 25 ms apart on average, every second one 50 ms
    rows, fits, misplaced = window_frames(drive(times), np.arange(80), length=5, interval=0.1)
    assert not misplaced[fits].any()
    np.testing.assert_allclose(np.diff(times[rows[fits]], axis=1), 0.1)


@pytest.mark.parametrize(("length", "stride", "lost"), [(4, 1, 3), (4, 2, 6), (2, 1, 1)])
def test_windows_over_a_gap_are_dropped(length: int, stride: int, lost: int) -> None:
    times = np.r_[0:20, 40:60] / 20
    examples = make_examples([drive(times)], np.array([0]), ("ego_speed",), length=length, stride=stride)
    assert (np.diff(times[examples.rows], axis=1).max(axis=1) < 0.11).all()
    assert examples.dropped == lost + (length - 1) * stride


def test_heads_for_any_rate_take_the_nearest_frames_up_to_the_slowest_rate() -> None:
    times = np.r_[np.arange(20) / 30, 0.7 + np.arange(10) / 12]
    rows, fits, misplaced = window_frames(drive(times), np.arange(30), length=4, interval=0.05, slowest=0.055)
    assert fits[5:].all() and not misplaced[5:20].any() and misplaced[20:].all()
    wanted = times[:, None] - 0.05 * np.arange(3, -1, -1)
    assert (np.abs(times[rows] - wanted)[5:20] <= 1 / 60 + 1e-9).all()


def test_flow_is_scaled_to_another_interval_except_for_its_texture() -> None:
    flow = np.ones((3, 2, 2, 7), np.float16)
    scaled = scale_flow(flow, np.array([0.1, 0.05, 0.1001]), 0.1)
    np.testing.assert_array_equal(scaled[1, ..., :6], 2)
    np.testing.assert_array_equal(scaled[..., 6], 1)
    np.testing.assert_array_equal(scaled[[0, 2]], flow[[0, 2]])  # the rates are the same, so no number changes
    assert scale_flow(flow, np.array([0.1, 0.05, 0.1]), None) is flow
