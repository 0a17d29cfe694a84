"""The stream `ground_flow`: how well the road of a frame and the one before it matches at each own speed.

The tiles of the road, seen from above, are correlated with the earlier frame for each distance that may have been
driven, and vote for the distances (`speed_posterior.log_likelihood`). The votes, as probabilities that sum to 1, are
the entry. Its axis is the own speed in m/s. So it is alike for all cameras whose focal length and height are known. Of
others, the height is taken as 1.5 m and the focal length as usual: the axis is then off by a constant factor.

An unknown horizon is looked for in each block of `FRAMES_PER_HORIZON` frames, which takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Image
from features.recipe import json_digest
from features.sequences import Camera, FrameSequence
from features.store_tables import StreamInfo
from stage1_extract.ground_flow.ground_flow import LARGEST_WIDTH
from stage1_extract.ground_flow.road_solver import FramePair, RoadSolver, pair_likelihood
from stage1_extract.ground_flow.road_view import RoadGrid
from stage1_extract.ground_flow.rotation import find_rotation
from stage1_extract.ground_flow.speed_posterior import SPEEDS

AXIS = np.arange(-3.0, 50.0)  # m/s: one channel each
SHAPE = (1, 1, len(AXIS))  # of an entry: one cell
FRAMES_PER_HORIZON = 8  # frames that share a horizon if it is unknown
HORIZON_STEP = 3  # every third pair of a block tells its horizon; all would be no better, and three times as slow
VERSION = 1  # increase it whenever the same frames give different numbers


def curve_info(sequences: Iterable[FrameSequence]) -> StreamInfo:
    """Shape, type and origin of the stream, whose numbers depend on the sequences' cameras and frame rates."""
    cameras = sorted({repr((s.camera, s.size, s.fps)) for s in sequences})
    axis = [AXIS[0], AXIS[-1], len(AXIS)]
    origin = {"kind": "road", "version": VERSION, "width": LARGEST_WIDTH, "axis": axis, "cameras": json_digest(cameras)}
    return StreamInfo(SHAPE, "float16", origin)


def curve_frames(sequence: FrameSequence, start: int, stop: int) -> tuple[int, int]:
    """The first frame, and the one after the last, that the entries of frames `start` … `stop` − 1 need."""
    first, last = max(start - 1, 0), min(max(stop, 2), sequence.length)
    if sequence.camera is None or sequence.camera.horizon is None:
        first = min(first, _block(sequence, start).start)
        last = max(last, _block(sequence, stop - 1).stop)
    return first, last


def _block(sequence: FrameSequence, frame: int) -> range:
    """The frames that share a frame's horizon: `FRAMES_PER_HORIZON` of them, if the sequence has as many."""
    start = min(frame // FRAMES_PER_HORIZON * FRAMES_PER_HORIZON, max(sequence.length - FRAMES_PER_HORIZON, 0))
    return range(start, min(start + FRAMES_PER_HORIZON, sequence.length))


def curve_entries(
    images: Sequence[Image], first: int, sequence: FrameSequence, start: int, stop: int
) -> NDArray[np.float16]:
    """Compute the entries of frames `start` … `stop` − 1: (n, 1, 1, speeds).

    The entry of a sequence's first frame is that of the second, or zero if there is none.

    Args:
        images: in grey, at most `LARGEST_WIDTH` wide, of frame `first` and those after it, see `curve_frames`.
    """
    entries, intervals = np.zeros((stop - start, *SHAPE), np.float16), sequence.frame_intervals
    if sequence.length == 1:
        return entries
    size = images[0].shape[1], images[0].shape[0]
    camera = sequence.known_camera.resized(sequence.size, size)
    horizons: dict[range, float] = {}
    for frame in range(start, stop):
        horizon = camera.horizon
        if horizon is None:
            block = _block(sequence, frame)
            if block not in horizons:
                part = images[block.start - first : block.stop - first]
                horizons[block] = _find_horizon(part, camera, float(intervals[block.start]))
            horizon = horizons[block]
        later = max(frame, 1)
        before, after = images[later - 1 - first], images[later - first]
        entries[frame - start] = speed_curve(before, after, replace(camera, horizon=horizon), float(intervals[later]))
    return entries


def speed_curve(before: Image, after: Image, camera: Camera, interval: float) -> Floats:
    """The probability of each speed of `AXIS`, given two grey frames `interval` s apart.

    The camera's height and horizon must be known.
    """
    assert camera.height is not None and camera.horizon is not None
    grid = RoadGrid(camera, (after.shape[1], after.shape[0]), camera.horizon)
    turn = find_rotation(grid, before, after, interval)
    log = pair_likelihood(grid, before, after, interval, camera.height, turn)
    probability = np.exp(log - log.max())
    return _on_axis(probability / probability.sum())


def _find_horizon(images: Sequence[Image], camera: Camera, interval: float) -> float:
    """The horizon of consecutive frames; the principal row where nothing tells it, as while standing."""
    size = images[0].shape[1], images[0].shape[0]
    pairs = [
        FramePair(before, after, i * interval, (i + 1) * interval, size)
        for i, (before, after) in enumerate(pairwise(images))
    ][::HORIZON_STEP]
    solver = RoadSolver(camera, size)
    if pairs:
        solver.solve(pairs, len(pairs))
    return solver.horizon


def _on_axis(probability: Floats) -> Floats:
    """Divide the probability of each of `SPEEDS` between its neighbours on `AXIS`, which keeps the mean."""
    place = np.clip((SPEEDS - AXIS[0]) / (AXIS[1] - AXIS[0]), 0, len(AXIS) - 1)
    lower = np.minimum(place.astype(int), len(AXIS) - 2)
    share = place - lower
    curve = np.zeros(len(AXIS))
    np.add.at(curve, lower, probability * (1 - share))
    np.add.at(curve, lower + 1, probability * share)
    return curve
