"""Distance and velocity of vehicles weighed by certainty: by hand, with few or noisy boxes, turning, on real boxes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features._common.types import Floats
from features.sequences import Camera
from stage2_temporal.evaluation.tusimple import by_distance
from stage2_temporal.vehicle.ground import Ground
from stage2_temporal.vehicle.vehicle_state import STATE_NAMES, vehicle_state
from tests.kitti_boxes import KITTI_CAMERA, KittiWindows, read_kitti_windows

CAMERA = Camera(714.0, 710.0, 675.0, 376.0)
GROUND = Ground(340.0, 1270.0, 714.0 * 1.9, 710.0 * 1.6)
T = np.arange(-7, 1) / 10


def boxes_of(x: Floats, y: Floats, width: Floats | float = 1.9, height: float = 1.6) -> Floats:
    """The boxes of a vehicle of a size in m at x, y."""
    centre, bottom, half = CAMERA.cx + CAMERA.fx * y / x, 340 + 1270 / x, CAMERA.fx * width / x / 2
    return np.stack([centre - half, bottom - CAMERA.fy * height / x, centre + half, bottom], axis=1)


def state(boxes: Floats, t: Floats = T, ground: Ground = GROUND, noise: float = 0.05) -> dict[str, float]:
    return vehicle_state(boxes, np.ones(len(boxes)), t, ground, CAMERA, noise)


def test_state_of_a_vehicle_at_constant_velocity() -> None:
    values = state(boxes_of(30 - 4 * T, 2 + 0.5 * T))
    assert set(values) == set(STATE_NAMES)
    assert [values[k] for k in ("x", "y", "vx", "vy")] == pytest.approx([30, 2, -4, 0.5], rel=1e-3)


def test_distance_by_hand() -> None:
    """The three distances are averaged in logs by inverse variance."""
    box = np.array([[600.0, 370.0, 640.0, 390.0]])  # foot 1270 / 50; 40 px wide, 20 px high
    ground = replace(GROUND, span=1200.0, tall=600.0, horizon_deviation=4.0, scale_deviation=0.0)
    ground = replace(ground, width_spread=0.1, height_spread=0.2)
    distances, deviations = np.array([25.4, 30.0, 30.0]), np.array([4 / 50, 0.1, 0.2])
    precision = 1 / deviations**2
    values = state(box, np.zeros(1), ground)
    assert values["x"] == pytest.approx(math.exp((precision * np.log(distances)).sum() / precision.sum()))
    assert values["x_deviation"] / values["x"] == pytest.approx(1 / math.sqrt(precision.sum()))
    assert math.isnan(values["vx"]) and math.isnan(values["vx_deviation"])


def test_foot_counts_near_and_size_counts_far() -> None:
    """The row of the foot is off by 5 px, vehicles are 15 % wider and taller than usual."""
    wrong = replace(GROUND, horizon=345.0, span=GROUND.span / 1.15, tall=GROUND.usual_tall / 1.15)
    near, far = (state(boxes_of(np.full(8, x), np.zeros(8)), ground=wrong)["x"] / x for x in (8.0, 70.0))
    by_foot, by_size = (1270 / (1270 / 70 - 5)) / 70, 1 / 1.15
    assert abs(near - 1) < 0.05  # by its size it would be 0.87
    assert abs(far - by_size) < abs(far - by_foot)


def test_vehicle_seen_from_the_side_is_not_taken_for_a_near_one() -> None:
    values = state(boxes_of(np.full(8, 40.0), np.zeros(8), width=4.3))
    assert values["x"] == pytest.approx(40, rel=0.05)  # by its width it would be at 18 m


def test_lorry_is_not_taken_for_a_near_car() -> None:
    values = state(boxes_of(np.full(8, 40.0), np.zeros(8), width=2.4, height=3.6))
    assert values["x"] == pytest.approx(40, rel=0.15)  # by its height it would be at 18 m


def test_turning_vehicle_that_gets_wider_does_not_approach() -> None:
    """Its width grows by half in the window at a constant distance."""
    values = state(boxes_of(np.full(8, 25.0), np.zeros(8), width=1.9 * (1 + 0.7 * (T + 0.7))))
    assert abs(values["vx"]) < 0.3  # by the width it would be −15 m/s, by the mean of both −8
    still = state(boxes_of(np.full(8, 25.0), np.zeros(8)))
    assert values["vy_deviation"] > 5 * still["vy_deviation"]


def test_two_boxes_are_believed_as_far_as_boxes_usually_are() -> None:
    """They leave no residual, so what is known of boxes in general counts."""
    boxes = boxes_of(40 + 0 * T, 0 * T)
    two = boxes[-2:] + np.array([[-1, -1, 1, 1], [0, 0, 0, 0]])  # 2 px wider one frame before: 7 m/s at 40 m
    usual, noisy = (state(two, T[-2:], noise=noise) for noise in (0.05, 1.5))
    many = state(boxes)
    assert usual["vx_deviation"] > 3 * many["vx_deviation"]
    assert noisy["vx_deviation"] > 8
    assert abs(usual["vx"]) > noisy["vx_deviation"] / 4  # the velocity itself is the same rate of two boxes


def test_deviations_cover_the_errors_of_noisy_boxes() -> None:
    rng = np.random.default_rng(3)
    errors = []
    for noise in (0.1, 1.0):
        for _ in range(400):
            x, vx = rng.uniform(10, 60), rng.normal(0, 4)
            boxes = boxes_of(x + vx * T, 0 * T) + rng.normal(0, noise, (8, 4))
            values = state(boxes, noise=0.05)  # the track's own residuals tell
            errors.append([(values["vx"] - vx) / values["vx_deviation"], values["x_deviation"] / x])
    relative = np.array(errors).reshape(2, 400, 2)[:, :, 0]
    for of_noise in relative:
        assert 0.7 < np.sqrt(np.mean(np.clip(of_noise, -5, 5) ** 2)) < 1.6


def test_braking_car_is_followed_to_the_last_frame() -> None:
    """3 m/s², so 1 m/s less than the mean over the window; noisy boxes say the mean."""
    x = 10 + 1.5 * T**2
    assert state(boxes_of(x, 0 * T), noise=0.05)["vx"] == pytest.approx(0, abs=0.15)
    assert state(boxes_of(x, 0 * T), noise=3.0)["vx"] == pytest.approx(-1.05, abs=0.2)


def velocity_error(windows: KittiWindows, ground: Ground, chosen: Floats | None = None) -> float:
    values = [vehicle_state(b, np.ones(8), windows.times, ground, KITTI_CAMERA, 0.05) for b in windows.boxes]
    predicted = np.array([[v["vx"], v["vy"]] for v in values])
    rows = np.ones(len(predicted), bool) if chosen is None else chosen
    result = by_distance((predicted - windows.velocity)[rows], windows.position[rows])
    assert result is not None
    return result.mean


@pytest.mark.parametrize("shift", [-8.0, 0.0, 8.0])
def test_velocities_of_kitti_boxes(shift: float, real: Path) -> None:
    """Real boxes of ten scenes with the calibrated horizon, and with one that is off by 8 px."""
    windows = read_kitti_windows(real / "kitti_tracking_boxes")
    f = KITTI_CAMERA.fx
    ground = Ground(KITTI_CAMERA.cy + shift, f * 1.65, f * 1.9, f * 1.6)
    assert len(windows.boxes) > 900 and windows.ordinary.sum() > 650
    assert velocity_error(windows, ground) <= 5.5
    assert velocity_error(windows, ground, windows.ordinary) <= 1.8
    zero = by_distance(-windows.velocity, windows.position)
    assert zero is not None and zero.mean > 80
