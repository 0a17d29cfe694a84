"""The motion stream: dense optical flow per frame step, pooled on a grid.

With flat ground, a point d rows below the horizon moves down by d² · speed · dt / (fy · camera height) rows per frame:
dozens near the image's lower edge, too many for the flow method. So flow is computed on a strip around the horizon.
Each cell stores quantiles: where half of it is bare asphalt, the upper ones still come from textured pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.normalised_flow import BAND, FLOW_GRID, SIZE
from features.store_tables import StreamInfo

QUANTILES = (0.1, 0.5, 0.9)
EDGE = 40  # pixels with a Sobel gradient |∂x| + |∂y| of at least this, in grey levels, count as textured
CHANNELS = (*(f"u{q}" for q in QUANTILES), *(f"v{q}" for q in QUANTILES), "texture")
ORIGIN = {
    "kind": "flow",
    "version": 2,  # increase it whenever the same frames give different numbers
    "method": "DIS medium",
    "band": BAND,
    "size": SIZE,
    "grid": FLOW_GRID,
    "channels": CHANNELS,
    "edge": EDGE,
}
FLOW_INFO = StreamInfo((*FLOW_GRID, len(CHANNELS)), "float16", ORIGIN)


def flow_strip(image: Image) -> Image:
    """Cut the strip that flow is computed on from a frame of any size, grey or BGR: (height, width) uint8, grey."""
    top, bottom = (round(share * image.shape[0]) for share in BAND)
    part = image[top : max(bottom, top + 1)]
    if part.ndim == 3:  # before resizing, which then takes a third of the time
        part = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.resize(part, SIZE, interpolation=cv2.INTER_AREA), np.uint8)


def flow_entries(strips: Sequence[Image], *, starts_sequence: bool = False) -> NDArray[np.float16]:
    """Compute the stream's entries for all strips but the first, in px of the strip per frame step.

    The flow method is DIS (Kroeger et al., Fast Optical Flow using Dense Inverse Search, 2016). Its numbers depend on
    OpenCV's number of threads, which must be 1.

    Returns:
        (n − 1, rows, columns, channels), or n entries if the first strip starts a sequence; the first one then equals
        the second, or is zero if there is none. The channels are `CHANNELS`: quantiles of the flow to the right (u) and
        down (v) within the cell, and the share of its pixels with texture.
    """
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    entries = np.zeros((len(strips), *FLOW_INFO.shape), np.float16)
    for i, (before, after) in enumerate(pairwise(strips), 1):
        entries[i] = pool_flow(np.asarray(method.calc(before, after, None), np.float32), before)
    if not starts_sequence:
        return entries[1:]
    entries[0] = entries[min(1, len(entries) - 1)]
    return entries


def pool_flow(flow: NDArray[np.float32], strip: Image) -> NDArray[np.float32]:
    """Pool flow (height, width, 2) from a strip to the next one: (rows, columns, channels)."""
    # every second row and column: flow varies so smoothly that the quantiles stay the same
    u, v = (np.sort(_cells(flow[::2, ::2, i]), axis=-1) for i in (0, 1))
    ranks = [round(q * (u.shape[-1] - 1)) for q in QUANTILES]
    dx, dy = (cv2.convertScaleAbs(cv2.Sobel(strip, cv2.CV_16S, *order)) for order in ((1, 0), (0, 1)))
    texture = _cells(cv2.add(dx, dy) >= EDGE).mean(axis=-1, dtype=np.float32)
    return np.concatenate([u[..., ranks], v[..., ranks], texture[..., None]], axis=-1)


def _cells(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Split (height, width) into cells: (rows, columns, pixels per cell)."""
    (rows, columns), (height, width) = FLOW_GRID, values.shape
    cells = values.reshape(rows, height // rows, columns, width // columns)
    return cells.transpose(0, 2, 1, 3).reshape(rows, columns, -1)
