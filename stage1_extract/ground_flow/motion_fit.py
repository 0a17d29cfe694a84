"""The motions of several pairs of frames and the one horizon they share, from the displacements of the road's tiles.

To first order, a tile at (X, Z), which was at Z′ = Z + distance, is displaced by

    forward: distance − X·yaw − Z′²/fy·nod − X·Z′·roll − (Z′² − Z²)/fy·horizon
    right: slip + Z·yaw − X·Z′/fy·nod − (1 + X²)·roll − X·(Z′ − Z)/fy·horizon

for small errors of distance, slip, yaw, nod, roll and horizon, where fx and fy are about equal. Tiles that disagree
(other vehicles, kerbs) lose their weight: iteratively reweighted least squares. The five unknowns of each pair are
eliminated, which leaves the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features._common.types import Floats
from stage1_extract.ground_flow.road_view import CameraMotion, RoadGrid
from stage1_extract.ground_flow.tile_matching import Displacements

FIT_ROUNDS = 6
TILE_NOISE = 0.012  # standard deviation of a displacement, camera heights
PIXEL_NOISE = 0.15  # the same, px
DISAGREEMENT = 1.5  # standard deviations from which on a tile loses weight
LEAST_TILES = 3
# standard deviations of what is known beforehand of distance, slip, yaw, nod and roll, around what they are so far, but
# of the nod around what the strip at the horizon says: those of a standing car, and their growth per height driven
PRIOR = np.array([30.0, 0.01, 0.002, 0.1, 0.0003])
PRIOR_GROWTH = np.array([0.0, 0.2, 0.05, 1.5, 0.0003])
ROLL_PER_YAW = 0.05  # standard deviation: a car rolls where it turns


@dataclass(frozen=True)
class MotionFit:
    """Changes to the motions and to the horizon."""

    changes: Floats  # (pairs, 5) of distance, slip, yaw, nod, roll
    horizon: float  # change of its row, px
    horizon_deviation: float  # standard deviation of the horizon, px
    agreement: Floats  # (pairs,) tiles that agree with the motion, each weighted from 0 to 1


@dataclass(frozen=True)
class _Equations:
    terms: Floats  # (2n, 6)
    values: Floats  # (2n,)
    deviation: Floats  # (2n,)


def fit_motions(
    grid: RoadGrid,
    displacements: Sequence[Displacements],
    motions: Sequence[CameraMotion],
    nods: Floats,
    horizon_prior: tuple[float, float],
) -> MotionFit:
    """Fit the changes that displacements of the tiles ask for.

    Args:
        grid: with the horizon so far.
        displacements: one for each pair of frames, of tiles after `motions`.
        motions: of each pair, so far.
        nods: what the strip round the horizon says, px.
        horizon_prior: mean and standard deviation of the horizon's change, px.
    """
    count = len(displacements)
    mean, deviation = horizon_prior
    equations = [_equations(grid, d, motion) for d, motion in zip(displacements, motions, strict=True)]
    nod_changes = nods - [motion.nod for motion in motions]
    priors = [_prior(motion) for motion in motions]
    changes, agreement, horizon, information = np.zeros((count, 5)), np.zeros(count), 0.0, 1.0
    for fit_round in range(FIT_ROUNDS):
        information = deviation**-2
        moment = mean * information
        solved: dict[int, tuple[Floats, Floats, Floats]] = {}
        for i, e in enumerate(equations):
            tiles = len(e.values) // 2
            if tiles < LEAST_TILES:
                continue
            residual = (e.values - e.terms[:, :5] @ changes[i] - e.terms[:, 5] * horizon) / e.deviation
            size = np.hypot(residual[:tiles], residual[tiles:])
            # gentle at first, when most tiles may be far off
            trust = (1 + (size / DISAGREEMENT) ** 2) ** -1.5 if fit_round else 1 / (1 + size / (2 * DISAGREEMENT))
            agreement[i] = trust.sum()
            weighted = e.terms * (np.tile(trust, 2) / e.deviation**2)[:, None]
            matrix, vector = weighted.T @ e.terms, weighted.T @ e.values
            matrix[:5, :5] += np.diag(priors[i] ** -2)
            vector[3] += nod_changes[i] / priors[i][3] ** 2
            inverse: Floats = np.asarray(np.linalg.inv(matrix[:5, :5]), np.float64)
            solved[i] = inverse, matrix[:5, 5], vector[:5]
            information += matrix[5, 5] - matrix[:5, 5] @ inverse @ matrix[:5, 5]
            moment += vector[5] - matrix[:5, 5] @ inverse @ vector[:5]
        horizon = float(moment / information)
        for i, (inverse, coupling, vector) in solved.items():
            changes[i] = inverse @ (vector - coupling * horizon)
    return MotionFit(changes, horizon, float(information**-0.5), agreement)


def _prior(motion: CameraMotion) -> Floats:
    deviations = PRIOR + PRIOR_GROWTH * abs(motion.distance)
    deviations[4] += ROLL_PER_YAW * abs(motion.yaw)
    return deviations


def _equations(grid: RoadGrid, displacements: Displacements, motion: CameraMotion) -> _Equations:
    x, z = displacements.centres.T
    before = z + motion.distance - x * motion.yaw
    one, zero, fy = np.ones_like(x), np.zeros_like(x), grid.camera.fy
    forward = np.stack([one, zero, -x, -(before**2) / fy, -x * before, -(before**2 - z**2) / fy], axis=1)
    right = np.stack([zero, one, z, -x * before / fy, -one - x**2, -x * (before - z) / fy], axis=1)
    noise = np.concatenate([before**2 / fy, before / grid.camera.fx]) * PIXEL_NOISE + TILE_NOISE
    return _Equations(
        np.concatenate([forward, right]),
        np.concatenate([displacements.forward, displacements.right]),
        noise / np.tile(displacements.correlation, 2),
    )
