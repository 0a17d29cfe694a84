"""Optical flow as the speed it stands for, whatever the camera."""

from __future__ import annotations

import numpy as np
import pytest

from features._common.types import Floats
from features.normalised_flow import BAND, FLOW_GRID, SIZE, normalise_flow, unknown_horizons
from features.sequences import Camera, FrameSequence

CAMERAS = {
    (1280, 720): Camera(710.0, 710.0, 640.0, 360.0, 1.8, 330.0),
    (1920, 1080): Camera(1500.0, 1500.0, 960.0, 540.0, 1.2, 480.0),
    (640, 480): Camera(450.0, 450.0, 320.0, 240.0, 1.4, 215.0),
}


def sequence(size: tuple[int, int], camera: Camera | None) -> FrameSequence:
    return FrameSequence("a", "test", 8, 10.0, size, "", camera=camera)


def flow_of_road(size: tuple[int, int], distance: float, turn: tuple[float, float] = (0.0, 0.0)) -> Floats:
    """(1, …) flow while driving a distance in m on a flat road, and turning and nodding by px of a frame."""
    camera = CAMERAS[size]
    assert camera.height is not None and camera.horizon is not None
    width, height = size
    top, bottom = (round(share * height) for share in BAND)
    rows = top + (np.arange(FLOW_GRID[0])[:, None] + 0.5) * (bottom - top) / FLOW_GRID[0] - 0.5
    columns = (np.arange(FLOW_GRID[1]) + 0.5) * width / FLOW_GRID[1] - 0.5
    below = np.maximum(rows - camera.horizon, 0)
    right = (columns - camera.cx) * below * distance / (camera.fy * camera.height) + turn[0]
    down = below**2 * distance / (camera.fy * camera.height) + turn[1] + 0 * columns
    flow = np.full((1, *FLOW_GRID, 7), 0.25)
    flow[0, ..., :3] = right[..., None] * SIZE[0] / width
    flow[0, ..., 3:6] = down[..., None] * SIZE[1] / (bottom - top)
    return flow


@pytest.mark.parametrize("size", list(CAMERAS))
@pytest.mark.parametrize("turn", [(0.0, 0.0), (-14.0, 3.0)])
def test_flow_of_the_road_is_the_distance_driven(size: tuple[int, int], turn: tuple[float, float]) -> None:
    result = normalise_flow(flow_of_road(size, 1.7, turn), sequence(size, CAMERAS[size]))
    assert result.shape == (1, *FLOW_GRID, 7)
    far = slice(4, 9)  # rows that all three cameras see
    assert result[0, far, :, 3:6] == pytest.approx(1.7, rel=0.08)
    sides = [0, 1, 6, 7]
    assert result[0, far][:, sides, :3] == pytest.approx(1.7, rel=0.12)
    assert (result[..., 6] == 0.25).all()


def test_unknown_horizons_are_said() -> None:
    known = [sequence(size, camera) for size, camera in CAMERAS.items()]
    assert unknown_horizons(known) == ""
    assert unknown_horizons([*known, sequence((640, 480), None)]).startswith("1 of 4 sequences: no row of the horizon")


def test_unknown_camera_is_taken_as_a_usual_one_and_values_stay_bounded() -> None:
    flow = np.random.default_rng(0).normal(0, 30, (5, *FLOW_GRID, 7)).astype(np.float16)
    result = normalise_flow(flow, sequence((1280, 720), None))
    assert result.dtype == np.float16 and result.shape == flow.shape
    assert np.isfinite(result).all() and np.abs(result[..., :6]).max() <= 8
    usual = Camera(832.0, 832.0, 639.5, 359.5, 1.5)
    np.testing.assert_array_equal(result, normalise_flow(flow, sequence((1280, 720), usual)))
