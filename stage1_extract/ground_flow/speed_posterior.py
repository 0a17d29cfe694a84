"""The probability of each speed in each pair of frames: what the road's tiles say, and that a car cannot jump."""

from __future__ import annotations

import numpy as np

from features._common.types import Floats

STEP = 0.25  # m/s
SPEEDS = np.arange(-3.0, 50.0, STEP)
LARGEST_ACCELERATION = 10.0  # m/s²
OUTLIER_SHARE = 0.3  # of tiles that show something else than the road
SHARPNESS = 18.0  # how much a tile prefers a distance whose correlation is higher by 1
USEFUL_CORRELATION = 0.25, 0.6  # a tile whose best correlation is in between counts in part
OVERLAP = 0.5  # tiles overlap, so that each counts by half


def log_likelihood(curves: Floats, distances: Floats, interval: float) -> Floats:
    """The log-likelihood of each of `SPEEDS` in one pair of frames, by a vote of the tiles.

    A tile prefers a distance by a softmax of its correlations, except for a share of outliers that prefer none. A tile
    that correlates equally with all of them (a lane line, bare asphalt) changes nothing.

    Args:
        curves: (tiles, distances) correlations.
        distances: (distances,) in m, ascending.
        interval: between the two frames, s.
    """
    if not len(curves):
        return np.zeros(len(SPEEDS))
    best = curves.max(axis=1, keepdims=True)
    preference = np.exp(SHARPNESS * (curves - best))
    preference /= preference.sum(axis=1, keepdims=True)
    low, high = USEFUL_CORRELATION
    weight = OVERLAP * np.clip((best - low) / (high - low), 0, 1)
    votes = weight * np.log(OUTLIER_SHARE + (1 - OUTLIER_SHARE) * preference * len(distances))
    return np.asarray(np.interp(SPEEDS, distances / interval, votes.sum(axis=0)))


def speed_posterior(likelihoods: Floats, steps: Floats, before: Floats | None = None) -> tuple[Floats, Floats]:
    """Probabilities of the speeds, given all pairs, by the forward-backward algorithm.

    Args:
        likelihoods: (pairs, speeds) logarithms.
        steps: (pairs,) s since the pair before.
        before: (speeds,) probabilities in the pair before the first one; None: all are equal.

    Returns:
        (pairs, speeds) probabilities given all pairs, and the same given each pair and those before it.
    """
    prior = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1]) if before is None else before
    forward = np.empty_like(likelihoods)
    weights = np.exp(likelihoods - likelihoods.max(axis=1, keepdims=True))
    for i, weight in enumerate(weights):
        prior = _normalised(_spread(prior, steps[i]) * weight)
        forward[i] = prior
    posterior = forward.copy()
    message = np.ones(likelihoods.shape[1])
    for i in range(len(weights) - 2, -1, -1):
        message = _normalised(_spread(message * weights[i + 1], steps[i + 1]))
        posterior[i] = _normalised(forward[i] * message)
    return posterior, forward


def _spread(probabilities: Floats, step: float) -> Floats:
    from scipy.ndimage import uniform_filter1d  # here, since it loads slowly and most extractions have no such stream

    reach = int(np.ceil(LARGEST_ACCELERATION * step / STEP))
    return np.asarray(uniform_filter1d(probabilities, 2 * reach + 1, mode="constant"))


def _normalised(values: Floats) -> Floats:
    floored = values + 1e-30 * max(float(values.max()), 1e-300)  # so that no speed is ruled out for good
    return np.asarray(floored / floored.sum())
