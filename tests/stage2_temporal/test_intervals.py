"""Conformal intervals: coverage, the finite-sample quantile, sequences of many windows, and probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Floats
from stage2_temporal.evaluation.intervals import (
    ConformalScores,
    ErrorScale,
    calibrate,
    interval_scores,
    sequence_weights,
    sequences_needed,
    weighted_quantile,
)

UNLIMITED = np.array([np.inf])
UNIT = ErrorScale(np.ones((1, 1)), UNLIMITED)


def unscaled(error: Floats, groups: NDArray[np.int64]) -> ConformalScores:
    """The scores of errors (n, 1) in their own unit."""
    return ConformalScores(UNIT, np.abs(error), sequence_weights(groups))


def coverage(rng: np.random.Generator, sequences: int, windows: int, level: float, repetitions: int) -> float:
    """Mean coverage over repetitions; windows of a sequence share most of their error, whose tails are heavy."""
    hits = []
    for _ in range(repetitions):
        shared = rng.standard_t(3, sequences + 1).repeat(windows)
        error = (shared + 0.1 * rng.normal(size=shared.shape))[:, None]
        groups = np.arange(sequences + 1).repeat(windows)
        known, new = slice(None, -windows), slice(-windows, None)
        inputs = np.zeros((len(error), 0))
        scores = unscaled(error[known], groups[known])
        hits.append(np.abs(error[new]) <= scores.half_widths(inputs[new], level))
    return float(np.mean(hits))


@pytest.mark.parametrize(("sequences", "windows", "level"), [(60, 1, 0.9), (19, 1, 0.8), (30, 25, 0.9)])
def test_intervals_cover_new_sequences(sequences: int, windows: int, level: float) -> None:
    rng = np.random.default_rng(1)
    assert level - 0.015 < coverage(rng, sequences, windows, level, 2000) < level + 1 / (sequences + 1) + 0.015


def test_rank_of_the_quantile_counts_the_new_sequence() -> None:
    scores = np.arange(1.0, 61.0)
    assert weighted_quantile(scores, np.full(60, 1 / 61), 0.9) == 55  # ⌈61 · 0.9⌉, not 54
    assert weighted_quantile(scores[:9], np.full(9, 0.1), 0.9) == 9
    assert weighted_quantile(scores[:8], np.full(8, 1 / 9), 0.9) == math.inf
    assert [sequences_needed(level) for level in (0.5, 0.9, 0.95)] == [1, 9, 19]


def test_sequence_with_many_windows_counts_like_any_other() -> None:
    error = np.array([[1.0]] * 1000 + [[2.0], [3.0], [4.0]])
    groups = np.array([0] * 1000 + [1, 2, 3])
    scores = unscaled(error, groups)
    assert scores.half_widths(np.zeros((1, 0)), 0.6)[0, 0] == 3.0


def test_no_sequence_gives_no_interval() -> None:
    scores = calibrate(np.zeros((0, 1)), np.zeros((0, 2)), np.zeros(0, int), UNLIMITED)
    assert scores.sequences == 0
    assert np.isinf(scores.half_widths(np.zeros((3, 2)), 0.5)).all()


def test_scale_makes_intervals_wide_where_errors_are_large() -> None:
    rng = np.random.default_rng(2)
    distance = rng.uniform(5, 90, (4000, 1))
    error = rng.normal(size=(4000, 1)) * (0.05 + 0.01 * distance)
    scores = calibrate(error, distance, np.arange(4000), UNLIMITED)
    fresh = rng.normal(size=(4000, 1)) * (0.05 + 0.01 * distance)
    hit = np.abs(fresh) <= scores.half_widths(distance, 0.9)
    for low, high in ((5, 20), (20, 45), (45, 90)):
        assert 0.87 < hit[(distance >= low) & (distance < high)].mean() < 0.93


def test_head_that_knows_nothing_is_expected_to_err_as_a_constant_does() -> None:
    rng = np.random.default_rng(4)
    deviation = rng.uniform(0.1, 1.0, (500, 1))
    error = rng.normal(size=(500, 1)) * deviation
    deviation[:10], error[:10] = 20.0, rng.normal(size=(10, 1)) * 2.0  # without any measurement: a typical value
    scores = calibrate(error, deviation, np.arange(500), np.array([1.6]))
    assert scores.sequences == 500
    half = scores.half_widths(np.array([[0.1], [1.0], [20.0]]), 0.9)[:, 0]
    assert half[0] < 0.3 and half[1] == pytest.approx(1.65, abs=0.25)
    assert half[2] == pytest.approx(2 * half[1], rel=0.1)


def test_intervals_of_fast_cars_are_wide_if_errors_grow_with_speed() -> None:
    rng = np.random.default_rng(0)
    speed = rng.uniform(5, 30, (400, 1))
    scores = calibrate(rng.normal(size=(400, 1)) * speed / 10, speed, np.arange(400), UNLIMITED)
    slow, fast = scores.half_widths(np.array([[5.0], [30.0]]), 0.9)[:, 0]
    assert fast > 4 * slow


def test_scale_that_was_fitted_to_few_errors_does_not_make_intervals_narrow() -> None:
    """Fitted to all errors of 20 sequences, a scale with four inputs would fit them better than any new ones."""
    rng, hits = np.random.default_rng(5), []
    for _ in range(400):
        inputs = rng.uniform(0, 1, (220, 4))
        error = rng.normal(size=(220, 1)) * (0.1 + inputs[:, :1])
        scores = calibrate(error[:20], inputs[:20], np.arange(20), UNLIMITED)
        hits.append((np.abs(error[20:]) <= scores.half_widths(inputs[20:], 0.9)).mean())
    assert 0.88 < np.mean(hits) < 0.96


def test_scale_of_an_older_run_reads_fewer_inputs() -> None:
    assert UNIT.sizes(np.ones((3, 2))).tolist() == [[1.0]] * 3


def test_probability_agrees_with_the_interval_and_with_what_happens() -> None:
    rng = np.random.default_rng(3)
    error = rng.normal(size=(999, 1))
    scores = unscaled(error, np.arange(999))
    half = scores.half_widths(np.zeros((1, 0)), 0.9)[0, 0]
    speed = np.array([[20.0]])
    at_low, at_middle, at_high = (
        scores.probability_above(speed, np.zeros((1, 0)), value)[0, 0] for value in (20 - half, 20.0, 20 + half)
    )
    assert at_low == pytest.approx(0.95, abs=0.002)
    assert at_middle == pytest.approx(0.5, abs=0.002)
    assert at_high == pytest.approx(0.05, abs=0.002)
    predicted = rng.uniform(-2, 2, (5000, 1))
    above = scores.probability_above(predicted, np.zeros((5000, 0)), 0.0)
    happened = predicted + rng.normal(size=(5000, 1)) > 0
    for low in (0.1, 0.4, 0.7):
        chosen = (above >= low) & (above < low + 0.2)
        assert happened[chosen].mean() == pytest.approx(above[chosen].mean(), abs=0.05)


def test_interval_score_punishes_width_and_misses() -> None:
    true = np.array([0.0, 0.0, 3.0])
    scored = interval_scores(true, np.full(3, -1.0), np.full(3, 1.0), 0.8)
    assert (scored.coverage, scored.width) == (pytest.approx(2 / 3), 2.0)
    assert scored.score == pytest.approx(2 + 2 / 0.2 * 2 / 3)
