"""Recognise footage unlike the training's: the distance of a window's vector from the training examples' vectors.

The distance is Mahalanobis' in the covariance of probabilistic principal component analysis (M. Tipping, C. Bishop,
1999): the leading components with their own variances, all other directions with one variance. A covariance of all
directions could not be estimated from a few hundred examples. What counts as far is read from examples whose sequences
were left out of a fit, fold by fold, since the components fit those that they know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.decomposition import PCA

from features._common.blas import blas_threads
from features._common.types import Floats

MAX_COMPONENTS = 40
EXAMPLES_PER_COMPONENT = 4
MIN_EXAMPLES, MIN_SEQUENCES = 16, 20  # to learn from; a limit from fewer sequences would be a guess
NOVELTY_FOLDS = 5  # of sequences, each of which is compared with the others
CONFIDENCE = 0.995  # of the limit: a window like the training's is within it with about this probability
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


def fit_novelty(vectors: Floats, groups: NDArray[np.int64]) -> NoveltyModel | None:
    """Fit vectors (n, F) of training and validation sequences `groups` (n,), and the limit to those left out of a fit.

    Logarithms of distances are taken as normal: the limit is the one-sided prediction limit of another one for as many
    observations as there are sequences, each of the same weight. None if there are too few examples or sequences.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    spread = vectors.var(axis=0).sum()
    if len(vectors) < MIN_EXAMPLES or len(counts) < MIN_SEQUENCES or not (np.isfinite(spread) and spread > 0):
        return None
    fold = np.random.default_rng(0).permutation(len(counts))[group] % NOVELTY_FOLDS
    smallest = len(vectors) - int(np.bincount(fold).max())
    count = min(MAX_COMPONENTS, smallest // EXAMPLES_PER_COMPONENT, vectors.shape[1])
    with blas_threads(min(vectors.shape)):
        logs, rotated = np.empty(len(vectors)), _rotated(vectors)
        for k in range(NOVELTY_FOLDS):
            model = _fit(rotated[fold != k], count)
            logs[fold == k] = np.log(np.maximum(model.distances(rotated[fold == k]), 1e-12))
        # the first fold's model again: others would be nearer to one that was fitted to more examples
        model = _fit(vectors[fold != 0], count)
    weights = 1 / counts[group]
    mean = float(np.average(logs, weights=weights))
    deviation = math.sqrt(float(np.average((logs - mean) ** 2, weights=weights)))
    limit = mean + float(student.ppf(CONFIDENCE, len(counts) - 1)) * deviation * math.sqrt(1 + 1 / len(counts))
    return replace(model, limit=math.exp(limit))


def _fit(vectors: Floats, count: int) -> NoveltyModel:
    """The distribution of vectors (n, F) with `count` components, without a limit."""
    spread = vectors.var(axis=0).sum()
    pca = PCA(count, random_state=0).fit(vectors.astype(np.float64))
    variances = np.maximum(pca.explained_variance_, 1e-9 * spread)
    precision = 0.0 if count == vectors.shape[1] else 1 / max(float(pca.noise_variance_), 1e-9 * spread)
    return NoveltyModel(pca.mean_, pca.components_, variances, precision, math.inf)


def _rotated(vectors: Floats) -> Floats:
    """The same vectors (n, F), up to a rotation, in at most n dimensions, so that many components cost little."""
    if vectors.shape[1] <= len(vectors):
        return vectors
    values, directions = np.linalg.eigh(vectors @ vectors.T)
    return np.asarray(directions * np.sqrt(np.maximum(values, 0)))


def flag_majority(unlike: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Flag all windows (n,) of footage of which most are unlike the training's: one camera filmed them all."""
    return np.ones_like(unlike) if len(unlike) and unlike.mean() > MAJORITY else unlike
