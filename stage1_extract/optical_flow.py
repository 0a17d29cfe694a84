"""The motion stream: dense optical flow to each frame from the one before it, pooled on a grid.

On flat ground a camera that moves straight on shows a point d rows under the horizon, from one frame to the next,
d² · speed · dt / (fy · camera height) rows further down: a few pixels close under the horizon, dozens at the image's
foot, where no flow can follow. So the flow is computed of a strip round the horizon, at twice the resolution that the
trunk sees, and a cell keeps quantiles: where half of it is bare asphalt, the upper ones are those of what has texture.

Flow is per frame step: who wants it per second multiplies by the sequence's frame rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.store import StreamInfo

BAND = (0.4, 0.82)  # share of the image's height where the strip begins and ends
SIZE = (512, 120)  # width, height the strip is resized to, px
FLOW_GRID = (12, 8)  # rows and columns of cells
QUANTILES = (0.1, 0.5, 0.9)
EDGE = 40  # Sobel gradient, |∂x| + |∂y| in grey levels, from which on a pixel has texture
CHANNELS = (*(f"u{q}" for q in QUANTILES), *(f"v{q}" for q in QUANTILES), "texture")
ORIGIN = {
    "kind": "flow",
    "version": 2,  # raise it whenever the same frames give other numbers
    "method": "DIS medium",
    "band": BAND,
    "size": SIZE,
    "grid": FLOW_GRID,
    "channels": CHANNELS,
    "edge": EDGE,
}
FLOW_INFO = StreamInfo((*FLOW_GRID, len(CHANNELS)), "float16", ORIGIN)


def flow_strip(image: Image) -> Image:
    """The grey strip of a frame of any size, grey or BGR, as flow is computed of it: (height, width) uint8."""
    top, bottom = (round(share * image.shape[0]) for share in BAND)
    part = image[top : max(bottom, top + 1)]
    if part.ndim == 3:  # before it is resized, which takes a third of the time so
        part = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.resize(part, SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def flow_entries(strips: Sequence[Image], *, begins: bool = False) -> NDArray[np.float16]:
    """The stream's entries, (n − 1, rows, columns, channels), for all strips but the first; strip px a frame step.

    Channels are `CHANNELS`: quantiles of the flow to the right (u) and down (v) over the cell, and which share of its
    pixels has texture. The method is DIS (Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016), whose
    numbers depend on OpenCV's number of threads: set it to 1.

    Args:
        strips: of neighbouring frames, in order.
        begins: the first is a sequence's first frame. It then has the second's entry, and zeros where there is none,
            so that n entries are returned.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found = np.zeros((len(strips), *FLOW_INFO.shape), np.float16)
    for i, (before, after) in enumerate(pairwise(strips), 1):
        found[i] = pool_flow(np.asarray(flow.calc(before, after, None), np.float32), before)
    if not begins:
        return found[1:]
    found[0] = found[min(1, len(found) - 1)]
    return found


def pool_flow(flow: NDArray[np.float32], strip: Image) -> NDArray[np.float32]:
    """Flow (height, width, 2) and the strip it starts from → (rows, columns, channels)."""
    # the flow is smooth over more than 2 px: a quarter of it has the same quantiles
    sides = [np.sort(_cells(flow[::2, ::2, i]), axis=-1) for i in (0, 1)]
    at = [round(q * (sides[0].shape[-1] - 1)) for q in QUANTILES]
    across, down = (cv2.convertScaleAbs(cv2.Sobel(strip, cv2.CV_16S, *d)) for d in ((1, 0), (0, 1)))
    texture = _cells(cv2.add(across, down) >= EDGE).mean(axis=-1, dtype=np.float32)
    return np.concatenate([*(side[..., at] for side in sides), texture[..., None]], axis=-1)


def _cells(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """(height, width) → (rows, columns, pixels of the cell)."""
    (rows, columns), (height, width) = FLOW_GRID, values.shape
    cells = values.reshape(rows, height // rows, columns, width // columns)
    return cells.transpose(0, 2, 1, 3).reshape(rows, columns, -1)
