"""Lines and planes fitted to points: weighted, and robust. NumPy only."""

from __future__ import annotations

import numpy as np

from features._common.types import Floats

HUBER = 1.345  # Huber's constant: 95 % efficient on Gaussian residuals
HUBER_ITERATIONS = 30


def weighted_line(t: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    """Fit y ≈ level + slope · t by weighted least squares: (level, slope). The slope is 0 if all t are equal."""
    total = float(weight.sum())
    mean_t, mean_y = float((weight * t).sum()) / total, float((weight * y).sum()) / total
    variation = float((weight * (t - mean_t) ** 2).sum())
    slope = float((weight * (t - mean_t) * (y - mean_y)).sum()) / variation if variation > 0 else 0.0
    return mean_y - slope * mean_t, slope


def huber_regression(features: Floats, targets: Floats, penalty: float = 0.0) -> Floats:
    """Fit targets ≈ intercept + features · slopes by iteratively reweighted least squares (P. Huber, 1964).

    scikit-learn's HuberRegressor minimises the same but takes seconds on features as correlated as a box's estimates.
    Features (n, F), targets (n,) and a ridge penalty on the slopes, per example, give (1 + F,): intercept and slopes.
    """
    design = np.c_[np.ones(len(features)), features]
    ridge = penalty * len(features) * np.diag([0.0, *np.ones(features.shape[1])])
    weight = np.ones(len(features))
    for _ in range(HUBER_ITERATIONS):
        weighted = weight[:, None] * design
        coefficients: Floats = np.linalg.solve(design.T @ weighted + ridge, weighted.T @ targets)
        residual = np.abs(targets - design @ coefficients)
        scale = max(1.4826 * float(np.median(residual)), 1e-9)
        weight = np.minimum(1, HUBER * scale / np.maximum(residual, 1e-12))
    return coefficients
