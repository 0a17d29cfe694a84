"""Metrics against values computed by hand and by Keras."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap

from stage2_temporal.evaluation.metrics import scores, skill_interval, verdict
from stage2_temporal.evaluation.tusimple import ByDistance
from stage2_temporal.runs.results import SplitMetrics

TRUE = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]])
PREDICTED = np.array([[2.0, 0.0], [3.0, 1.0], [4.0, 4.0]])
CONSTANT = np.array([3.0, 2.0])
COLUMNS = ("vx", "vy")


def test_scores_match_values_computed_by_hand() -> None:
    s = scores(TRUE, PREDICTED, CONSTANT, COLUMNS)
    assert s.rmse == pytest.approx(math.sqrt(7 / 6))  # errors 1, 0, -1 and 0, 1, -2
    assert s.mae == pytest.approx(5 / 6)
    assert s.skill == pytest.approx(1 - 7 / 32)  # the constant's squares: 4 + 0 + 4 and 4 + 4 + 16
    vx, vy = s.components["vx"], s.components["vy"]
    assert (vx.rmse, vx.mae, vx.skill) == pytest.approx((math.sqrt(2 / 3), 2 / 3, 1 - 2 / 8))
    assert (vy.rmse, vy.mae, vy.skill) == pytest.approx((math.sqrt(5 / 3), 1, 1 - 5 / 24))
    assert vx.spread_ratio == pytest.approx(0.5)  # deviations of 2, 3, 4 and 1, 3, 5
    assert s.spread_ratio == pytest.approx(math.sqrt((2 / 3 + 26 / 9) / (8 / 3 + 8)))
    assert s.ev is None


def test_constant_predictor_has_no_skill_and_no_spread() -> None:
    s = scores(TRUE, np.broadcast_to(TRUE.mean(axis=0), TRUE.shape), TRUE.mean(axis=0), COLUMNS)
    assert s.skill == 0
    assert s.spread_ratio == 0
    assert verdict("test", s) == ("No better than a constant on the test split: the predictions barely vary "
                                  "(spread ratio 0.00, skill 0.00).", True)  # fmt: skip


@settings(max_examples=20)
@given(arrays(np.float64, (7, 2), elements=st.floats(-50, 50)))
def test_rmse_equals_that_of_keras(predicted: np.ndarray) -> None:
    true = np.linspace(-3, 9, 14).reshape(7, 2)
    metric = keras.metrics.RootMeanSquaredError()
    for batch in (slice(0, 4), slice(4, 7)):
        metric.update_state(true[batch].astype(np.float32), predicted[batch].astype(np.float32))
    ours = scores(true, predicted, true.mean(axis=0), COLUMNS).rmse
    assert ours == pytest.approx(float(metric.result()), rel=1e-5)


def test_ev_matches_values_computed_by_hand() -> None:
    """Squared errors summed over the components: 1 near, 1 medium, 5 far; the distance is the position's length."""
    s = scores(TRUE, PREDICTED, CONSTANT, COLUMNS, np.array([[19.9, 0], [19.9, 3], [45.0, 0]]))
    assert s.ev == ByDistance(1, 1, 5, pytest.approx(7 / 3))
    near = scores(TRUE, PREDICTED, CONSTANT, COLUMNS, np.array([[5, 0], [9, 3], [math.nan, math.nan]]))
    assert near.ev is not None
    assert near.ev.near == 1
    assert all(map(math.isnan, (near.ev.medium, near.ev.far, near.ev.mean)))


def test_ev_needs_positions_and_velocities() -> None:
    unknown = np.full((3, 2), math.nan)
    assert scores(TRUE, PREDICTED, CONSTANT, COLUMNS, unknown).ev is None
    assert scores(TRUE[:, :1], PREDICTED[:, :1], CONSTANT[:1], ("ego_speed",), np.ones((3, 2))).ev is None


def test_scores_of_velocity_and_position_match_values_computed_by_hand() -> None:
    """Columns in any order; each is weighted by its labels' variance, since m/s and m have no sum."""
    columns = ("x", "vx", "y", "vy")
    true = np.array([[10.0, 1, 0, 0], [30.0, 3, 2, 0], [50.0, 5, 4, 6]])
    predicted = true + np.array([[3.0, 1, 4, 0], [0, 0, 0, 1], [2.0, -1, 0, -2]])
    s = scores(true, predicted, true.mean(axis=0), columns, true[:, [0, 2]])
    assert s.ev == ByDistance(1, 1, 5, pytest.approx(7 / 3))
    assert s.ep == ByDistance(25, 0, 4, pytest.approx(29 / 3))
    # squared errors over summed squares around the mean: x 13 / 800, vx 2 / 8, y 16 / 8, vy 5 / 24
    assert s.skill == pytest.approx(1 - (13 / 800 + 2 / 8 + 16 / 8 + 5 / 24) / 4)
    metres = scores(true[:, [0]], predicted[:, [0]], true[:, 0].mean(keepdims=True), ("x",), true[:, [0, 2]])
    assert (metres.ev, metres.ep) == (None, None)
    assert metres.skill == pytest.approx(1 - 13 / 800)


def test_skill_interval_is_that_of_scipys_bootstrap_over_sequences() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(60, 2)) * 5
    predicted, constant, groups = true + rng.normal(size=true.shape), np.zeros_like(true), np.repeat(np.arange(20), 3)
    interval = skill_interval(true, predicted, constant, ("vx", "vy"), groups)
    errors, references = (((p - true) ** 2).sum(axis=1).reshape(20, 3).sum(axis=1) for p in (predicted, constant))
    expected = bootstrap(
        (errors, references), lambda e, r, axis: 1 - e.sum(axis=axis) / r.sum(axis=axis), paired=True,
        method="percentile", n_resamples=2000, rng=1,
    ).confidence_interval  # fmt: skip
    assert interval == pytest.approx(tuple(expected), abs=0.003)
    assert interval[1] - interval[0] > 0.01
    assert skill_interval(true, predicted, constant, ("vx", "vy"), np.zeros(60)) is None  # a single sequence
    assert skill_interval(true, predicted, true, ("vx", "vy"), groups) is None


def test_skill_interval_leaves_out_draws_in_which_the_constant_is_exact() -> None:
    """Of three sequences drawn, k err by 2 with the constant: a skill of 1 − 3 / 4k, and none if k is 0."""
    true, groups = np.array([[0.0], [0.0], [2.0]]), np.arange(3)
    interval = skill_interval(true, true + 1, np.zeros_like(true), ("ego_speed",), groups)
    assert interval == pytest.approx((0.25, 0.75))


def test_labels_that_do_not_vary_give_neither_skill_nor_verdict() -> None:
    s = scores(np.ones((3, 1)), np.array([[1.0], [2], [3]]), np.ones(1), ("ego_speed",))
    assert math.isnan(s.skill)
    assert math.isnan(s.components["ego_speed"].spread_ratio)
    assert verdict("validation", s)[1] is False


def test_unknown_scores_are_null_in_json() -> None:
    s = scores(np.ones((3, 1)), np.array([[1.0], [2], [3]]), np.ones(1), ("ego_speed",))
    text = SplitMetrics(examples=3, model=s, constant=s).model_dump_json()
    assert '"skill":null' in text and "NaN" not in text
    assert math.isnan(SplitMetrics.model_validate_json(text).model.skill)


@pytest.mark.parametrize(
    ("scale", "expected", "no_better"),
    [(0.19, "barely vary", True), (0.9, "Better than a constant", False), (-1.0, "not smaller", True)],
)
def test_verdict_by_spread_and_skill(scale: float, expected: str, no_better: bool) -> None:
    mean = TRUE.mean(axis=0)
    sentence, flag = verdict("test", scores(TRUE, mean + scale * (TRUE - mean), mean, COLUMNS))
    assert expected in sentence
    assert flag is no_better
