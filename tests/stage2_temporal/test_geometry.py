"""Geometry vectors compared with values worked out by hand, and with the boxes of a pinhole camera."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features._common.types import Floats
from features.errors import DataError
from features.sequences import Camera
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES, confidence_weights, geometry_vector
from stage2_temporal.vehicle.ground import MAX_DISTANCE, Ground, fit_camera, fit_ground, fit_ground_from_motion
from stage2_temporal.vehicle.lines import weighted_line

CAMERA = Camera(714.0, 710.0, 675.0, 376.0)
GROUND = Ground(340.0, 1000.0, 1400.0)


def vector_of(boxes: object, confidence: object = None, fps: float = 10.0, ground: Ground = GROUND) -> dict[str, float]:
    rows = np.asarray(boxes, float).reshape(-1, 4)
    sure = np.ones(len(rows)) if confidence is None else confidence
    times = np.arange(1 - len(rows), 1) / fps
    return dict(zip(GEOMETRY_NAMES, map(float, geometry_vector(rows, sure, times, ground, CAMERA)), strict=True))


def boxes_seen_by(camera: Camera, ground: Ground, x: Floats, y: Floats, width: float, height: float) -> Floats:
    """The boxes of a vehicle of a size in m at x, y: what a pinhole camera sees."""
    u, foot = camera.cx + camera.fx * y / x, ground.horizon + ground.scale / x
    w, h = camera.fx * width / x, camera.fx * height / x
    return np.stack([u - w / 2, foot - h, u + w / 2, foot], axis=1)


def test_distances_by_hand() -> None:
    assert GROUND.distance_from_bottom(390.0) == pytest.approx(20.0)  # 1000 / (390 − 340)
    assert GROUND.distance_from_width(70.0) == pytest.approx(20.0)  # 1400 / 70
    assert GROUND.distance_from_bottom([390.0, 360.0]).tolist() == pytest.approx([20.0, 50.0])


@pytest.mark.parametrize("bottom", [340.0, 100.0, 340.001])
def test_box_at_or_above_the_horizon_is_at_the_largest_distance(bottom: float) -> None:
    assert GROUND.distance_from_bottom(bottom) == pytest.approx(MAX_DISTANCE)
    assert GROUND.distance_from_width(0.0) == pytest.approx(MAX_DISTANCE)


def test_weighted_line_by_hand() -> None:
    ones = np.ones(3)
    # mean t −1, mean y 5; slope (1·2 + 0 + 1·2) / 2 = 2; at t = 0: 5 + 2
    assert weighted_line(np.array([-2.0, -1.0, 0.0]), np.array([3.0, 5.0, 7.0]), ones) == pytest.approx((7.0, 2.0))
    assert weighted_line(
        np.array([-2.0, -1.0, 0.0]), np.array([3.0, 99.0, 7.0]), np.array([1, 0, 1.0])
    ) == pytest.approx((7, 2))
    assert weighted_line(np.zeros(2), np.array([1.0, 3.0]), ones[:2]) == pytest.approx((2.0, 0.0))


def test_confidence_weights_by_hand() -> None:
    assert confidence_weights([1.0, 0.0]).tolist() == pytest.approx([50.0, 1 / 1.02])  # 1 / (1.02 − c²)


def test_geometry_of_two_boxes_computed_by_hand() -> None:
    # from 50 px to 40 px square in 0.1 s: 1/size 0.020 to 0.025, so 0.05 a second over 0.025 at the end: 2 a second
    boxes = [[650, 352.5, 700, 402.5], [675, 350, 715, 390]]
    values = vector_of(boxes)
    assert values["closing"] == pytest.approx(2.0)
    assert values["log_size_rate"] == pytest.approx(-2.0)
    assert values["x_foot"] == pytest.approx(20.0)  # 62.5 below the horizon at 1.25 times the size, and 50: both 50
    assert values["x_size"] == pytest.approx(35.0)
    assert values["vx_foot"] == pytest.approx(40.0)
    assert values["vx_size"] == pytest.approx(70.0)
    assert (values["u_rate"], values["v_rate"]) == pytest.approx((200.0, -75.0))
    assert [values[k] for k in ("left", "top", "right", "bottom")] == pytest.approx([675, 350, 715, 390])
    # y/x_end: 0 at first, 20 px / 714 at the end: over 0.1 s, times 20 m
    assert values["y_foot"] == pytest.approx(20 * 20 / 714)
    assert values["vy_foot"] == pytest.approx(20 * 20 / 714 / 0.1)
    assert values["log_width"] == pytest.approx(math.log(40))
    assert (values["seen"], values["confidence"], values["misfit"]) == pytest.approx((1, 1, 0), abs=1e-12)


@settings(deadline=None)
@given(
    x=st.floats(8, 90),
    y=st.floats(-6, 6),
    vx=st.floats(-6.5, 8),
    vy=st.floats(-1, 1),
    width=st.floats(1.6, 2.8),
    height=st.floats(1.3, 3.8),
    horizon=st.floats(200, 420),
    fps=st.sampled_from([10.0, 20.0]),
)
def test_boxes_of_a_pinhole_camera_give_the_velocity(
    x: float, y: float, vx: float, vy: float, width: float, height: float, horizon: float, fps: float
) -> None:
    t = np.arange(-7, 1) / fps
    ground = Ground(horizon, 1270.0, CAMERA.fx * width)
    boxes = boxes_seen_by(CAMERA, ground, x + vx * t, y + vy * t, width, height)
    values = vector_of(boxes, fps=fps, ground=ground)
    for how in ("foot", "size"):
        assert values[f"x_{how}"] == pytest.approx(x, rel=1e-6)
        assert values[f"y_{how}"] == pytest.approx(y, rel=1e-6, abs=1e-6)
        assert values[f"vx_{how}"] == pytest.approx(vx, rel=1e-5, abs=1e-6)
        assert values[f"vy_{how}"] == pytest.approx(vy, rel=1e-5, abs=1e-5)
    assert values["misfit"] < 1e-6


def test_pitching_camera_does_not_change_the_velocity() -> None:
    t = np.arange(-7, 1) / 10
    boxes = boxes_seen_by(CAMERA, GROUND, 40 + 2 * t, 0 * t, 1400 / 714, 1.5)
    boxes[:, [1, 3]] += np.array([1, -1, 1, -1, -1, 1, -1, 1])[:, None] * 2.0
    values = vector_of(boxes)
    assert values["vx_foot"] == pytest.approx(2.0, rel=0.02)
    assert values["vx_size"] == pytest.approx(2.0, rel=1e-6)
    assert values["x_foot"] == pytest.approx(40, rel=0.02)  # at the last frame alone the foot says 37


def test_lost_frames_are_ignored() -> None:
    t = np.arange(-7, 1) / 10
    boxes = boxes_seen_by(CAMERA, GROUND, 30 - 3 * t, 2 + 0.5 * t, 1400 / 714, 1.5)
    confidence = np.ones(8)
    boxes[[0, 3, 7]], confidence[[0, 3, 7]] = np.nan, 0
    values = vector_of(boxes, confidence)
    assert values["vx_foot"] == pytest.approx(-3, rel=1e-5)  # read at the window's end, though lost there
    assert values["x_foot"] == pytest.approx(30, rel=1e-6)
    assert (values["seen"], values["confidence"]) == (5 / 8, 1.0)


def test_uncertain_frame_has_little_weight() -> None:
    t = np.arange(-7, 1) / 10
    boxes = boxes_seen_by(CAMERA, GROUND, 30 - 3 * t, 0 * t, 1400 / 714, 1.5)
    boxes[0, 2] += 8  # 17 % too wide
    confidence = np.ones(8)
    confidence[0] = 0.6
    sure, unsure = vector_of(boxes)["vx_size"], vector_of(boxes, confidence)["vx_size"]
    assert abs(unsure + 3) < abs(sure + 3) / 10


def test_one_box_gives_positions_but_no_rates() -> None:
    values = vector_of([[math.nan] * 4, [640, 350, 710, 390]], [0.0, 1.0])
    rates = {"log_size_rate", "closing", "u_rate", "v_rate", "vx_foot", "vx_size", "vy_foot", "vy_size"}
    rates |= {"misfit", "closing_deviation", "vx", "vy", "vx_deviation", "vy_deviation"}
    assert {k for k, v in values.items() if math.isnan(v)} == rates
    assert (values["x_foot"], values["x_size"], values["seen"]) == pytest.approx((20, 20, 0.5))


def test_closing_deviation_by_hand() -> None:
    """Two boxes of 50 px, 0.1 s apart, sure: 0.05 / 50 in each size, so √2 · 0.001 / 0.1 in the rate."""
    box = [600, 340, 650, 390]
    assert vector_of([box, box])["closing_deviation"] == pytest.approx(math.sqrt(2) * 0.01)
    # correlation 0: 1 / (1.02 · 50) of the trust, so the variance of the first is 51 times as large
    assert vector_of([box, box], [0.0, 1.0])["closing_deviation"] == pytest.approx(math.sqrt(52) * 0.01)
    # a middle box 2 px too wide is off by 40 times what was to be expected, and so is the rate
    bent = [box, [599, 339, 651, 391], box]
    assert vector_of(bent)["closing_deviation"] > 10 * vector_of([box] * 3)["closing_deviation"]


def test_window_without_boxes_is_unknown() -> None:
    values = vector_of(np.full((4, 4), np.nan), np.zeros(4))
    assert {k for k, v in values.items() if not math.isnan(v)} == {"seen", "confidence"}
    assert values["seen"] == values["confidence"] == 0


def test_vector_has_one_value_per_name() -> None:
    assert (
        len(set(GEOMETRY_NAMES))
        == len(GEOMETRY_NAMES)
        == len(geometry_vector(np.full((2, 4), np.nan), np.zeros(2), np.zeros(2), GROUND, CAMERA))
    )


def test_wildly_changing_boxes_give_finite_values() -> None:
    shrinking = [[0, 0, 400, 400], [0, 0, 20, 20], [0, 0, 400, 400], [0, 0, 300, 300]]
    assert np.isfinite(list(vector_of(shrinking).values())).all()


def test_ground_is_fitted_despite_outliers() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(6, 90, 200)
    boxes = boxes_seen_by(CAMERA, Ground(345.7, 1012.7, 0.0), x, rng.uniform(-5, 5, 200), 2.1, 1.6)
    boxes[:, 3] += rng.normal(0, 1, 200)
    boxes[:12, 3] += 60  # wrong boxes
    values = fit_ground(boxes, np.stack([x, 0 * x], axis=1))
    assert values.horizon == pytest.approx(345.7, abs=0.5)
    assert values.scale == pytest.approx(1012.7, rel=0.02)
    assert values.span == pytest.approx(2.1 * 714, rel=1e-6)


def test_labels_without_box_or_position_are_ignored() -> None:
    x = np.array([10.0, 20.0, 40.0, np.nan, 50.0, -3.0])
    boxes = boxes_seen_by(CAMERA, GROUND, np.abs(np.nan_to_num(x, nan=7.0)), 0 * x, 2, 1.5)
    boxes[4] = np.nan
    values = fit_ground(boxes, np.stack([x, np.zeros(6)], axis=1))
    assert (values.horizon, values.scale) == pytest.approx((340, 1000))


@pytest.mark.parametrize(
    ("x", "message"),
    [([10.0, 20.0], "at least 3 labels"), ([20.0] * 5, "all at 20 m"), ([], "at least 3 labels")],
)
def test_too_few_labels_for_the_ground_are_refused(x: list[float], message: str) -> None:
    far = np.array(x)
    with pytest.raises(DataError, match=message):
        fit_ground(boxes_seen_by(CAMERA, GROUND, far, 0 * far, 2, 1.5), np.stack([far, 0 * far], axis=1))


def test_boxes_that_rise_as_vehicles_near_are_refused() -> None:
    x = np.array([10.0, 20.0, 40.0])
    boxes = np.stack([0 * x, 0 * x, 0 * x + 10, 300 + x], axis=1)
    with pytest.raises(DataError, match="flat ground"):
        fit_ground(boxes, np.stack([x, 0 * x], axis=1))


def simulated(count: int, seed: int) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Boxes, positions, velocities and closing rates of vehicles that a camera with its horizon at row 345.7 sees."""
    rng = np.random.default_rng(seed)
    x, y, vx = rng.uniform(6, 90, count), rng.uniform(-5, 5, count), rng.normal(0.5, 2.3, count)
    boxes = boxes_seen_by(CAMERA, Ground(345.7, 1012.7, 0.0), x, y, rng.normal(2.1, 0.2, count), 1.6)
    return boxes, np.stack([x, y], axis=1), vx, vx / x, rng.normal(0, 1, count)


def test_ground_is_fitted_to_velocities_without_positions() -> None:
    boxes, _, vx, closing, noise = simulated(300, 1)
    boxes[:, 3] += noise
    closing = closing + 0.005 * np.random.default_rng(2).normal(size=300)
    closing[:15] *= -3  # lost tracks
    vx[20:25] = np.nan
    values = fit_ground_from_motion(boxes, closing, vx)
    assert values.horizon == pytest.approx(345.7, abs=3)
    assert values.scale == pytest.approx(1012.7, rel=0.1)
    assert values.span == pytest.approx(2.1 * 714, rel=0.1)


def test_velocities_that_contradict_the_tracks_are_refused() -> None:
    boxes, _, vx, closing, _ = simulated(300, 1)
    with pytest.raises(DataError, match="contradict the tracks"):
        fit_ground_from_motion(boxes, -closing, vx)
    with pytest.raises(DataError, match="got 7 with a track and vx"):
        fit_ground_from_motion(boxes[:7], closing[:7], vx[:7])


def test_camera_is_fitted_to_positions() -> None:
    boxes, place, *_ = simulated(50, 3)
    boxes[:5] += 90  # wrong boxes
    values = fit_camera(boxes, place, (1280, 720))
    assert (values.fx, values.cx) == pytest.approx((714, 675), rel=0.01)


def test_camera_without_usable_positions_is_a_default() -> None:
    boxes, place, *_ = simulated(50, 3)
    place[:, 1] = 0  # all straight ahead
    for known in (place, np.full((50, 2), np.nan)):
        assert fit_camera(boxes, known, (1280, 720)) == Camera(0.56 * 1280, 0.56 * 1280, 639.5, 359.5)
