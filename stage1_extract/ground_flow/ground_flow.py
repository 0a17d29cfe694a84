"""Own speed from the road, for a camera with known focal length, principal point and height. Nothing is trained.

A point of the road at distance Z was at Z + d one frame before, when the car has driven d since. Each pair of frames is
about 0.1 s apart. The strip round the horizon tells the rotation; tiles of the road, seen from above, vote for the
distance driven; then the motion and the horizon that the pairs share are fitted to the tiles' displacements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from features._common.types import Floats, Image, Size
from features.sequences import Camera
from stage1_extract.ground_flow.road_solver import FramePair, RoadSolver

INTERVAL = 0.1  # s between the frames of a pair, as nearly as the frames allow
LARGEST_WIDTH = 1280  # px; larger frames are reduced
CHUNK, LOOKAHEAD = 48, 8  # pairs that are solved together, and further ones that help to


@dataclass(frozen=True)
class SpeedEstimates:
    """Own speed at each frame."""

    times: Floats  # (frames,) s
    speeds: Floats  # (frames,) m/s
    confidence: Floats  # (frames,) 0 to 1
    horizon: float  # row in full-size frames at the end, px


def estimate_speeds(
    frames: Iterable[Image], times: Iterable[float], camera: Camera, threads: int = 2
) -> SpeedEstimates:
    """Estimate the own speed at each frame, holding no more than about 60 of them at a time.

    Args:
        frames: at least two, in order, each uint8 of shape (height, width) or (height, width, 3) BGR.
        times: when they were taken, in s.
        camera: with its height; without a horizon, that is found as well.
        threads: that work on the pairs.
    """
    frame_times: list[float] = []
    middles, speeds, confidence = [], [], []
    horizon = camera.cy if camera.horizon is None else camera.horizon
    solver: RoadSolver | None = None
    with ThreadPoolExecutor(threads) as pool:
        for pairs, count in _chunks(
            _pairs(((road_image(f), (f.shape[1], f.shape[0])) for f in frames), times, frame_times)
        ):
            if solver is None:
                full, size = pairs[0].full_size, pairs[0].later.shape[1::-1]
                solver = RoadSolver(camera.resized(full, size), size, pool)
            solution = solver.solve(pairs, count)
            middles += [pair.middle for pair in pairs[:count]]
            speeds += solution.speeds[:count].tolist()
            confidence += solution.confidence[:count].tolist()
            horizon = (solution.grid.horizon + 0.5) * full[1] / size[1] - 0.5
            del pairs  # lest two chunks of frames are in memory
    at = np.array(frame_times)
    return SpeedEstimates(at, np.interp(at, middles, speeds), np.interp(at, middles, confidence), horizon)


def road_image(frame: Image) -> Image:
    """A frame, BGR or grey, in grey and at most `LARGEST_WIDTH` wide."""
    height, width = frame.shape[:2]
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if frame.ndim == 3 else frame
    if width > LARGEST_WIDTH:
        size = LARGEST_WIDTH, round(height * LARGEST_WIDTH / width)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.asarray(grey, np.uint8)


def _pairs(
    frames: Iterable[tuple[Image, Size]], times: Iterable[float], frame_times: list[float]
) -> Iterator[FramePair]:
    """Pair each frame with the earlier one that is nearest to `INTERVAL` before it; note the times of all frames."""
    recent: deque[tuple[Image, float]] = deque()
    for (image, size), time in zip(frames, times, strict=True):
        frame_times.append(float(time))
        while len(recent) > 1 and abs(time - recent[1][1] - INTERVAL) <= abs(time - recent[0][1] - INTERVAL):
            recent.popleft()
        if recent:
            yield FramePair(recent[0][0], image, recent[0][1], float(time), size)
        recent.append((image, float(time)))


def _chunks(pairs: Iterable[FramePair]) -> Iterator[tuple[list[FramePair], int]]:
    """Chunks of pairs with `LOOKAHEAD` further ones, and how many of the pairs belong to the chunk."""
    waiting: list[FramePair] = []
    for pair in pairs:
        waiting.append(pair)
        if len(waiting) == CHUNK + LOOKAHEAD:
            yield waiting, CHUNK
            waiting = waiting[CHUNK:]
    if waiting:
        yield waiting, len(waiting)
