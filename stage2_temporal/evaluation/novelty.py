"""Recognise footage unlike the training's: the distance of a window's vector from the training examples' vectors.

The distance is Mahalanobis' in the covariance of probabilistic principal component analysis (M. Tipping, C. Bishop,
1999): the leading components with their own variances, all other directions with one variance. A covariance of all
directions could not be estimated from a few hundred examples. What counts as far is read from the validation examples,
which the components do not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.decomposition import PCA

from features._common.types import Floats

MAX_COMPONENTS = 40
EXAMPLES_PER_COMPONENT = 4
MIN_TRAINING, MIN_SEQUENCES = 16, 5  # examples to learn from, and validation sequences
CONFIDENCE = 0.99  # of the limit: a window like the training's is within it with about this probability
MAJORITY = 0.5


@dataclass(frozen=True)
class NoveltyModel:
    """The training vectors' distribution, and the distance up to which others are like them."""

    mean: Floats  # (F,)
    components: Floats  # (P, F) orthonormal
    variances: Floats  # (P,) along the components
    residual_precision: float  # 1 / variance in every other direction; 0 if there is none
    limit: float

    def distances(self, vectors: Floats) -> Floats:
        """The distances (n,) of vectors (n, F)."""
        centred = vectors - self.mean
        projected = centred @ self.components.T
        residual = np.maximum((centred**2).sum(axis=1) - (projected**2).sum(axis=1), 0)
        return np.asarray(np.sqrt((projected**2 / self.variances).sum(axis=1) + self.residual_precision * residual))


def fit_novelty(training: Floats, validation: Floats, groups: NDArray[np.int64]) -> NoveltyModel | None:
    """Fit training vectors (n, F), and the limit to validation vectors (m, F) of sequences `groups` (m,).

    Logarithms of distances are taken as normal: the limit is the one-sided prediction limit of another one for as many
    observations as there are sequences, each of the same weight. None if there are too few examples or sequences.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    count = min(MAX_COMPONENTS, len(training) // EXAMPLES_PER_COMPONENT, training.shape[1])
    spread = training.var(axis=0).sum()
    if len(training) < MIN_TRAINING or len(counts) < MIN_SEQUENCES or not (np.isfinite(spread) and spread > 0):
        return None
    pca = PCA(count, random_state=0).fit(training.astype(np.float64))
    variances = np.maximum(pca.explained_variance_, 1e-9 * spread)
    precision = 0.0 if count == training.shape[1] else 1 / max(float(pca.noise_variance_), 1e-9 * spread)
    model = NoveltyModel(pca.mean_, pca.components_, variances, precision, math.inf)
    logs = np.log(np.maximum(model.distances(validation), 1e-12))
    weights = 1 / counts[group]
    mean = float(np.average(logs, weights=weights))
    deviation = math.sqrt(float(np.average((logs - mean) ** 2, weights=weights)))
    limit = mean + float(student.ppf(CONFIDENCE, len(counts) - 1)) * deviation * math.sqrt(1 + 1 / len(counts))
    return NoveltyModel(pca.mean_, pca.components_, variances, precision, math.exp(limit))


def flag_majority(unlike: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flag all windows (n,) of footage of which most are unlike the training's: one camera filmed them all."""
    return np.ones_like(unlike) if len(unlike) and unlike.mean() > MAJORITY else unlike
