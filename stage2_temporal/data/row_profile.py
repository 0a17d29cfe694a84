"""The profile of a frame: how bright and how rich in edges each row is, which tells where a camera has its horizon.

It is computed from the thumbnail, which extraction stores and prediction makes alike, for every head.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats

PROFILE_SIZE = (160, 90)  # width and height at which thumbnails are compared
UNKNOWN_PROFILE = np.full(3 * PROFILE_SIZE[1] - 1, np.nan, np.float32)  # of a frame that could not be decoded
FLAT = 0.01  # added to the edges of each row, in units of the frame's contrast


def row_profile(thumbnail: bytes) -> NDArray[np.float32]:
    """Describe a JPEG by (F,): logarithms of the rows' mean horizontal and vertical gradients, and their brightness.

    Brightness is relative to the frame's mean and contrast, so that exposure does not count.
    """
    grey = cv2.imdecode(np.frombuffer(thumbnail, np.uint8), cv2.IMREAD_GRAYSCALE)
    image = cv2.resize(grey, PROFILE_SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
    image = (image - image.mean()) / (image.std() + 1e-3)
    across = np.abs(np.diff(image, axis=1)).mean(axis=1)
    down = np.abs(np.diff(image, axis=0)).mean(axis=1)
    return np.concatenate([np.log(across + FLAT), np.log(down + FLAT), image.mean(axis=1)])


def window_profiles(profiles: NDArray[np.float32], rows: Iterable[NDArray[np.int64]]) -> Floats:
    """The mean profiles (n, F) of windows `rows` (n, T) of frames with profiles (frames, F)."""
    return np.array([profiles[row].mean(axis=0) for row in rows], np.float64)
