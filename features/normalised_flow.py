"""The stream `motion` in a form that is alike for all cameras: the own speed that each cell's flow stands for.

A point of a flat road that appears d rows below the horizon lies fy · height / d ahead. So while the car drives s m, it
moves down by d² · s / (fy · height) rows and, c columns from the middle, outwards by c · d · s / (fy · height) columns.
A turn or a nod of the camera moves everything alike, also what lies near the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.sequences import Camera, FrameSequence

# the strip of each frame on which optical flow is computed, and its cells
BAND = (0.4, 0.82)  # top and bottom, as shares of the image's height
SIZE = (512, 120)  # width and height to which it is resized, px
FLOW_GRID = (12, 8)  # rows and columns of cells
ANGLES = np.geomspace(0.035, 0.3, FLOW_GRID[0])  # of the rows of the result below the horizon, as tangents
HORIZON_ROWS = 3  # rows of cells nearest to the horizon, whose median flow is that of turning and nodding
LEAST_DEPTH = 0.006  # of a row below the horizon, as a share of fy
LEAST_LEVER = 0.03  # c · d / fy² of columns that tell the speed
LARGEST_DISTANCE = 8.0  # m per frame step, to which values are limited


def normalise_flow(flow: NDArray[Any], sequence: FrameSequence) -> NDArray[Any]:
    """Turn entries of the stream `motion` into metres driven per frame step.

    Args:
        flow: (n, rows, columns, channels) entries of one sequence, px of the strip per frame step.
        sequence: its camera; usual values stand for what is not known, and the principal row for the horizon.

    Returns:
        In the same shape and type: rows are at `ANGLES` below the horizon, whatever the camera. Channels 0 to 2 are the
        distances that the quantiles of the flow to the right stand for, 3 to 5 those of the flow down, and the last one
        is the share of texture as before.
    """
    camera, values = sequence.known_camera, flow.astype(np.float64)
    rows, columns, scale = _cells(sequence.size)
    horizon = camera.cy if camera.horizon is None else camera.horizon
    depth = rows - horizon
    nearest = np.argsort(np.abs(depth))[:HORIZON_ROWS]
    turn = np.median(values[:, nearest][..., (1, 4)], axis=(1, 2))  # (n, 2) to the right and down
    below = np.maximum(depth, LEAST_DEPTH * camera.fy)
    range_scale = camera.fy * (camera.height or 1.0)
    right, down = values[..., :3] - turn[:, None, None, None, 0], values[..., 3:6] - turn[:, None, None, None, 1]
    lever = _lever(columns, below, camera)
    distance_right = right * scale[0] * range_scale / lever[..., None]
    distance_down = down * scale[1] * range_scale / below[:, None, None] ** 2
    distances = np.clip(np.concatenate([distance_right, distance_down], axis=-1), -LARGEST_DISTANCE, LARGEST_DISTANCE)
    result = np.concatenate([distances, values[..., 6:]], axis=-1)
    place = np.interp(ANGLES, depth / camera.fy, np.arange(len(rows)))  # of each angle among the rows of cells
    upper = np.minimum(place.astype(int), len(rows) - 2)
    share = (place - upper)[:, None, None]
    return np.asarray((1 - share) * result[:, upper] + share * result[:, upper + 1], flow.dtype)


def unknown_horizons(sequences: Sequence[FrameSequence]) -> str:
    """A warning about sequences whose horizon is not known; empty if there is none."""
    count = sum(s.camera is None or s.camera.horizon is None for s in sequences)
    of = f"{count} of {len(sequences)} sequences" if len(sequences) > 1 else sequences[0].id
    text = "no row of the horizon, so flow is normalised by the principal row. Try: horizon = ROW in the camera file"
    return f"{of}: {text}" if count else ""


def _cells(size: tuple[int, int]) -> tuple[Floats, Floats, tuple[float, float]]:
    """Row and column of the cells' middles in a frame, and how many of its px are one of the strip, each way."""
    width, height = size
    top, bottom = (round(share * height) for share in BAND)
    rows = top + (np.arange(FLOW_GRID[0]) + 0.5) * (bottom - top) / FLOW_GRID[0] - 0.5
    columns = (np.arange(FLOW_GRID[1]) + 0.5) * width / FLOW_GRID[1] - 0.5
    return rows, columns, (width / SIZE[0], (bottom - top) / SIZE[1])


def _lever(columns: Floats, below: Floats, camera: Camera) -> Floats:
    """(rows, columns) of cells: columns from the middle times rows below the horizon, but not too near to zero."""
    lever = (columns - camera.cx) * below[:, None]
    least = LEAST_LEVER * camera.fy**2
    return np.where(np.abs(lever) < least, np.copysign(least, lever), lever)
