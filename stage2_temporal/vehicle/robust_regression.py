"""Linear regression that outliers hardly move."""

from __future__ import annotations

import numpy as np

from features._common.types import Floats

HUBER = 1.345  # Huber's constant: 95 % efficient on Gaussian residuals
ITERATIONS = 30


def huber_regression(features: Floats, targets: Floats, penalty: float = 0.0) -> Floats:
    """Fit targets ≈ intercept + features · slopes by iteratively reweighted least squares (P. Huber, 1964).

    scikit-learn's HuberRegressor minimises the same but takes seconds on features as correlated as a box's estimates.

    Args:
        features: (n, F).
        targets: (n,).
        penalty: ridge penalty on the slopes, per example.

    Returns:
        (1 + F,): the intercept, then the slopes.
    """
    design = np.c_[np.ones(len(features)), features]
    ridge = penalty * len(features) * np.diag([0.0, *np.ones(features.shape[1])])
    weight = np.ones(len(features))
    for _ in range(ITERATIONS):
        weighted = weight[:, None] * design
        coefficients: Floats = np.linalg.solve(design.T @ weighted + ridge, weighted.T @ targets)
        residual = np.abs(targets - design @ coefficients)
        scale = max(1.4826 * float(np.median(residual)), 1e-9)
        weight = np.minimum(1, HUBER * scale / np.maximum(residual, 1e-12))
    return coefficients
