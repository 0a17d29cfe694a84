"""What left-out examples say: the ridge's penalty, and how much of a model is used beside the constant."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from stage2_temporal.heads.correlation import CorrelationLSTM
from stage2_temporal.heads.held_out import Folds, RidgePath, cross_validated_ridge, stack


def test_sequences_are_left_out_as_a_whole() -> None:
    groups = np.repeat(np.arange(7), 3)
    folds = Folds.divide(np.arange(21)[:, None], groups, 3)
    assert (folds.left_out.sum(axis=0) == 1).all()
    for left_out, fitted in zip(folds.left_out, folds.fitted, strict=True):
        assert left_out.any() and not set(groups[left_out]) & set(groups[fitted])
        assert (left_out | fitted).all()
    assert folds.twice().left_out.shape == (3, 42)


def test_windows_that_share_frames_with_left_out_ones_are_not_fitted() -> None:
    rows = np.arange(30)[:, None] + np.arange(8)
    folds = Folds.divide(rows, np.zeros(30, np.int64), 3)
    for k, (left_out, fitted) in enumerate(zip(folds.left_out, folds.fitted, strict=True)):
        assert np.flatnonzero(left_out).tolist() == list(range(10 * k, 10 * k + 10))
        assert not set(rows[left_out].flat) & set(rows[fitted].flat)
    assert folds.fitted.sum(axis=1).tolist() == [13, 3 + 3, 13]


@pytest.mark.parametrize("shape", [(20, 6), (6, 20)])
def test_ridge_for_any_penalty_equals_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 1, shape), rng.normal(-2, 5, (shape[0], 2))
    path = RidgePath(x, y)
    for penalty in (0.5, 50.0):
        expected = Ridge(penalty).fit(x, y)
        weights, bias = path.solve(penalty)
        np.testing.assert_allclose(weights.T, expected.coef_, atol=1e-8)
        np.testing.assert_allclose(bias, expected.intercept_)
        np.testing.assert_allclose(path.predict(x, np.array([penalty]))[0], expected.predict(x))
    np.testing.assert_array_equal(path.solve(np.inf)[0], 0)


def test_windows_of_one_clip_do_not_vouch_for_each_other() -> None:
    """Forty clips with a speed and a look each: knowing the look of one tells nothing about others."""
    rng = np.random.default_rng(0)
    clip, frames = np.repeat(np.arange(40), 4), np.arange(160)[:, None]
    x, y = rng.normal(size=(40, 60))[clip] + 0.1 * rng.normal(size=(160, 60)), rng.normal(size=(40, 1))[clip]
    weights, bias, left_out = cross_validated_ridge(x, y, Folds.divide(frames, clip, 5))
    assert np.square(x @ weights + bias - y).mean() > 0.8 * y.var()
    assert stack((left_out, left_out), y - y.mean()) == (0.0, 0.0)
    # it is the folds that make the difference
    weights, bias, left_out = cross_validated_ridge(x, y, Folds.divide(frames, np.arange(160), 5))
    assert np.square(x @ weights + bias - y).mean() < 0.05 * y.var()
    assert sum(stack((left_out, left_out), y - y.mean())) > 0.9


def test_penalty_is_low_if_there_is_much_to_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 20))
    y = x @ rng.normal(size=(20, 1)) + 0.1 * rng.normal(size=(100, 1))
    weights, bias, left_out = cross_validated_ridge(x, y, Folds.divide(np.arange(100)[:, None], np.arange(100), 5))
    assert np.square(x @ weights + bias - y).mean() < 0.02
    assert 0.005 < np.square(left_out - y).mean() < 0.05


def test_models_are_weighted_by_what_they_predict_for_left_out_examples() -> None:
    rng = np.random.default_rng(0)
    y, noise, other = rng.normal(size=(3, 1000, 1))
    assert stack((y + 0.1 * noise, y + 0.1 * other), y) == pytest.approx((0.5, 0.5), abs=0.01)
    assert stack((y + 0.1 * noise, noise), y) == pytest.approx((0.99, 0.0), abs=0.01)
    a, b = stack((y + noise, y + noise), y)
    assert a + b == pytest.approx(0.5, abs=0.05)
    assert stack((-y, noise - y), y) == (0.0, 0.0)
    assert stack((0 * y, 0 * y), y) == (0.0, 0.0)


@pytest.mark.parametrize(("validated", "standardise"), [(True, True), (False, False)])
def test_head_predicts_the_constant_if_there_is_nothing_to_learn(validated: bool, standardise: bool) -> None:
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(24, 4, 6, 6, 3)), 11.5 + 0.1 * rng.normal(size=24)
    head = CorrelationLSTM(
        streams=("appearance",), grid=(2, 2), search=(1, 1), lags=(1,), units=2, dense=2, members=2, epochs=3,
        standardise=standardise,
    )  # fmt: skip
    head.fit(X[:16], y[:16], validation=(X[16:], y[16:]) if validated else None)
    error, constant = (float(np.square(p - y[16:]).mean()) for p in (head.predict(X[16:]), y[:16].mean()))
    assert error <= 1.01 * constant
