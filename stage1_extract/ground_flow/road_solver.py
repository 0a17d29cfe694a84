"""The motion of the camera in several pairs of frames, and the horizon that they share.

The strip round the horizon tells the rotation; tiles of the road, seen from above, vote for the distance driven; then
motions and horizon are fitted to the tiles' displacements.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from features._common.types import Floats, Image, Size
from features.sequences import Camera
from stage1_extract.ground_flow.motion_fit import fit_motions
from stage1_extract.ground_flow.road_view import CELL, CameraMotion, RoadGrid
from stage1_extract.ground_flow.rotation import find_rotation
from stage1_extract.ground_flow.speed_posterior import SPEEDS, log_likelihood, speed_posterior
from stage1_extract.ground_flow.surroundings import SLOW, doubt_slow_speeds
from stage1_extract.ground_flow.tile_matching import BACKWARDS, Displacements, distance_curves, tile_displacements

CALIBRATION_PAIRS = 8  # that choose between horizons
HORIZON_SEARCH = 0.1, 17  # reach as a share of fy, and number of rows that are tried
HORIZON_PRIOR = 0.06  # standard deviation of horizon − cy, as a share of fy
KNOWN_HORIZON = 0.003  # standard deviation of a horizon that is given or found, as a share of fy
HORIZON_DRIFT = 0.001  # the same of its change from chunk to chunk
FULL_AGREEMENT = 0.3  # share of tiles
LOW_CONFIDENCE = 0.5
LEAST_DRIVEN = 0.02  # camera heights per pair, on average
CANDIDATES = 3  # horizons that are compared closely, beside the one so far
MATCHING_ROUNDS = 2  # of matching and fitting


@dataclass(frozen=True)
class FramePair:
    """Two grey frames of one camera and when they were taken, in s."""

    earlier: Image
    later: Image
    start: float
    end: float
    full_size: Size  # width, height of the frames before they were reduced, px

    @property
    def interval(self) -> float:
        """Time between the two in s."""
        return self.end - self.start

    @property
    def middle(self) -> float:
        """The time halfway between the two in s."""
        return (self.start + self.end) / 2


@dataclass(frozen=True)
class Solution:
    """What a chunk of pairs tells."""

    grid: RoadGrid
    speeds: Floats  # (pairs,) m/s
    motions: list[CameraMotion]
    probability: Floats  # (pairs,) that the vote gives to speeds near these
    agreement: Floats  # (pairs,) share of the visible tiles that agree with the motion
    horizon_deviation: float  # px
    forward: Floats  # (pairs, speeds) probabilities given each pair and those before

    @property
    def confidence(self) -> Floats:
        """How far each speed is to be believed, from 0 to 1."""
        # vehicles that keep pace look like a standing road, which would agree nearly everywhere
        needed = np.where(np.abs(self.speeds) < SLOW, 2 * FULL_AGREEMENT, FULL_AGREEMENT)
        return np.clip(self.probability, 0, 1) * np.clip(self.agreement / needed, 0, 1)


class RoadSolver:
    """Solves chunks of pairs in order, and keeps what passes from one to the next: the horizon and the speed."""

    def __init__(self, camera: Camera, size: Size, threads: ThreadPoolExecutor | None = None) -> None:
        """Begin with a camera of known height, for grey frames of this width and height in px."""
        if camera.height is None:
            raise ValueError("the camera's height is needed")
        self.camera, self.size = camera, size
        self._map = map if threads is None else threads.map
        self.height = camera.height
        known = camera.horizon is not None
        self.horizon = camera.cy if camera.horizon is None else camera.horizon
        self.deviation = camera.fy * (KNOWN_HORIZON if known else HORIZON_PRIOR)
        self._lost = self._searched_in_vain = False
        self._forward: Floats | None = None
        self._last: float | None = None

    def solve(self, pairs: Sequence[FramePair], count: int) -> Solution:
        """Solve pairs, of which the first `count` belong to the chunk and the others only help."""
        unknown = self.deviation > self.camera.fy * KNOWN_HORIZON
        search = (unknown or self._lost) and not self._searched_in_vain
        horizon, deviation = self.horizon, self.deviation
        if search:
            horizon, deviation = self._calibrate(pairs)
        solution = self._solve(pairs, horizon, deviation)
        self._lost = float(np.median(solution.confidence)) < LOW_CONFIDENCE
        self._searched_in_vain = search and self._lost  # a search takes time, so do without it in the next chunk
        if not self._lost:
            self.horizon = solution.grid.horizon
            self.deviation = float(np.hypot(solution.horizon_deviation, self.camera.fy * HORIZON_DRIFT))
        self._forward, self._last = solution.forward[count - 1], pairs[count - 1].middle
        return solution

    def _calibrate(self, pairs: Sequence[FramePair]) -> tuple[float, float]:
        """Choose the horizon at which the road aligns best; return it with its standard deviation."""
        prior = max(self.deviation, HORIZON_PRIOR * self.camera.fy)
        chosen = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, CALIBRATION_PAIRS).astype(int))]
        reach, count = HORIZON_SEARCH
        rows = self.horizon + np.linspace(-reach, reach, count) * self.camera.fy
        rows = rows[rows < 0.8 * self.size[1]]
        few = chosen[:: max(1, len(chosen) // 4)]
        scores = []
        for row in rows:
            evidence = [log.max() - np.log(np.exp(log).mean()) for log in self._likelihoods(few, row)]
            scores.append(sum(evidence) - 0.5 * ((row - self.horizon) / prior) ** 2)
        # where other vehicles hide the road, they decide the scores, and the horizon is best looked for where it is now
        best = {*rows[np.argsort(scores)[::-1][:CANDIDATES]], self.horizon}
        spacing = 2 * reach / (count - 1) * self.camera.fy
        solutions = [self._solve(chosen, row, 2 * spacing, rounds=3) for row in best]
        solution = max(solutions, key=lambda s: float(s.agreement.sum()))
        if solution.horizon_deviation < spacing / 2:
            return solution.grid.horizon, spacing  # the same pairs will make it precise
        return self.horizon, self.deviation  # nothing moved

    def _likelihoods(self, pairs: Sequence[FramePair], horizon: float) -> list[Floats]:
        grid = RoadGrid(self.camera, self.size, horizon)
        return list(self._map(partial(self._likelihood, grid), pairs, map(partial(self._turn, grid), pairs)))

    def _turn(self, grid: RoadGrid, pair: FramePair) -> CameraMotion:
        return find_rotation(grid, pair.earlier, pair.later, pair.interval)

    def _likelihood(self, grid: RoadGrid, pair: FramePair, turn: CameraMotion) -> Floats:
        return pair_likelihood(grid, pair.earlier, pair.later, pair.interval, self.height, turn)

    def _displacements(self, grid: RoadGrid, pair: FramePair, motion: CameraMotion) -> Displacements:
        return tile_displacements(grid, grid.contrast(pair.later), grid.contrast(pair.earlier, motion), motion)

    def _solve(
        self, pairs: Sequence[FramePair], horizon: float, deviation: float, rounds: int = MATCHING_ROUNDS
    ) -> Solution:
        grid = RoadGrid(self.camera, self.size, horizon)
        turns = list(self._map(partial(self._turn, grid), pairs))
        logs = np.array(list(self._map(partial(self._likelihood, grid), pairs, turns)))
        middles = np.array([pair.middle for pair in pairs])
        steps = np.diff(middles, prepend=middles[0] if self._last is None else self._last)
        posterior, forward = speed_posterior(logs, np.maximum(steps, 0), self._forward)
        intervals = np.array([pair.interval for pair in pairs])
        speeds = SPEEDS[posterior.argmax(axis=1)]
        motions = [
            replace(turn, distance=float(speed * t / self.height))
            for turn, speed, t in zip(turns, speeds, intervals, strict=True)
        ]
        nods = _without_growth([turn.nod for turn in turns], [motion.distance for motion in motions])
        for _ in range(rounds):
            displacements = list(self._map(partial(self._displacements, grid), pairs, motions))
            fit = fit_motions(grid, displacements, motions, nods, (horizon - grid.horizon, deviation))
            motions = [motion.moved(change) for motion, change in zip(motions, fit.changes, strict=True)]
            step = float(np.clip(fit.horizon, -0.02 * self.camera.fy, 0.02 * self.camera.fy))
            grid = RoadGrid(self.camera, self.size, grid.horizon + step)
        speeds = np.array([motion.distance for motion in motions]) * self.height / intervals
        near = np.abs(SPEEDS - speeds[:, None]) < np.maximum(1.5, 0.08 * speeds)[:, None]
        probability = (posterior * near).sum(axis=1)
        agreement = fit.agreement / max(1, len(grid.tiles))
        return Solution(grid, speeds, motions, probability, agreement, fit.horizon_deviation, forward)


def pair_likelihood(
    grid: RoadGrid, before: Image, after: Image, interval: float, height: float, turn: CameraMotion
) -> Floats:
    """The log-likelihood of each of `SPEEDS`, given two grey frames `interval` s apart by a camera `height` m high."""
    extra = int(SPEEDS[-1] * interval / height / CELL) + 1
    later, earlier = grid.contrast(after), grid.contrast(before, turn, extra)
    curves = distance_curves(grid, later, earlier, turn)
    distances = np.arange(-BACKWARDS, extra + 1, dtype=np.float64) * CELL * height
    return doubt_slow_speeds(log_likelihood(curves, distances, interval), grid, before, after)


def _without_growth(nods: Sequence[float], distances: Sequence[float]) -> Floats:
    """Nods without what grows with the distance driven: things come nearer, but no car goes on nodding one way.

    Args:
        nods: of consecutive pairs of frames, as the strip round the horizon shows them, px.
        distances: driven in each pair, camera heights.
    """
    driven = np.maximum(distances, 0.0)
    growth = np.sum(nods) / driven.sum() if driven.mean() > LEAST_DRIVEN else 0.0
    return np.asarray(nods - growth * driven)
