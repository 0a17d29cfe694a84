"""Rounding weights to 8 bits with the inputs' covariance."""

from __future__ import annotations

import numpy as np
import pytest

from stage1_extract.engines.weight_rounding import LEVELS, InputStatistics, round_weights


def layer(correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (2, 5, 24) of two groups, and samples (4000, 2, 24) of inputs that share a part."""
    random = np.random.default_rng(0)
    shared = random.normal(size=(4000, 2, 1))
    samples = correlation * shared + (1 - correlation) * random.normal(size=(4000, 2, 24))
    return random.normal(size=(2, 5, 24)), samples.astype(np.float32)


def outputs(weights: np.ndarray, samples: np.ndarray) -> np.ndarray:
    return np.einsum("goi,ngi->ngo", weights, samples)


def nearest(weights: np.ndarray) -> np.ndarray:
    scale = np.abs(weights).max(-1, keepdims=True) / LEVELS
    return np.asarray(np.round(weights / scale) * scale)


@pytest.mark.parametrize(("correlation", "factor"), [(0.9, 0.35), (0.0, 1.05)])
def test_outputs_change_less_than_with_nearest_values(correlation: float, factor: float) -> None:
    weights, samples = layer(correlation)
    statistics = InputStatistics()
    for batch in np.split(samples, 4):
        statistics.add(batch)
    np.testing.assert_allclose(statistics.covariance[1], np.cov(samples[:, 1].T, bias=True), atol=1e-4)
    rounded = round_weights(weights, statistics.covariance)
    error, error_of_nearest = (np.square(outputs(w - weights, samples)).mean() for w in (rounded, nearest(weights)))
    assert error < factor * error_of_nearest


def test_weights_are_on_the_grid_of_each_output() -> None:
    weights, samples = layer(0.9)
    weights[0, 3] = 0
    statistics = InputStatistics()
    statistics.add(samples)
    rounded = round_weights(weights, statistics.covariance)
    np.testing.assert_array_equal(np.abs(rounded).max(-1), np.abs(weights).max(-1))
    np.testing.assert_allclose(nearest(rounded[:, :3]), rounded[:, :3], atol=1e-12)
    assert not rounded[0, 3].any()
