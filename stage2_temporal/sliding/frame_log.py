"""What a prediction notes of the frames that it saw: their profiles, which tell whether another camera filmed them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.console import progress_bar
from features._common.types import Floats, Image
from stage1_extract.datasets.clip import Clip
from stage2_temporal.data.row_profile import UNKNOWN_PROFILE, row_profile, window_profiles

PICTURE_WIDTH, PICTURE_QUALITY = 480, 75  # of the JPEGs on a drive's page


class FrameLog:
    """The profiles of the frames of a stream, in its order."""

    def __init__(self) -> None:
        self._profiles: list[NDArray[np.float32]] = []

    def add(self, thumbnail: bytes) -> None:
        """Note the stream's next frame; one that could not be decoded has no thumbnail."""
        self._profiles.append(row_profile(thumbnail) if thumbnail else UNKNOWN_PROFILE)

    def profiles(self, rows: NDArray[np.int64]) -> Floats | None:
        """The mean profiles (n, F) of windows `rows` (n, T); None if no frame was seen."""
        return window_profiles(np.array(self._profiles), rows) if self._profiles else None


def read_pictures(
    clip: Clip, frames: Collection[int], draw: Callable[[int, Image, float], None] | None = None
) -> dict[int, bytes]:
    """Small JPEGs of some frames of a clip; a DataError if one cannot be read.

    `draw` draws on a small picture, given the frame's number, the picture, and its width relative to the frame's.
    """
    pictures: dict[int, bytes] = {}
    count = max(frames) + 1
    with progress_bar(count, "pictures", "frames") as progress:
        for i, image in enumerate(clip.source.read(0, count)):
            if i in frames:
                height = max(1, round(PICTURE_WIDTH * image.shape[0] / image.shape[1]))
                resized = cv2.resize(image, (PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
                small = np.asarray(resized, np.uint8)
                if draw is not None:
                    draw(i, small, PICTURE_WIDTH / image.shape[1])
                pictures[i] = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])[1].tobytes()
            progress.update()
    return pictures
