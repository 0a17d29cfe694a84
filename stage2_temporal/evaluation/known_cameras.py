"""Whether footage is of another camera than the training's, by what is known of both: frame shapes and calibrations.

A picture cannot tell a longer lens with the horizon in the same place: on the road, widths and rows depend on the
camera's height only, and lengths and speeds could be other lengths and speeds. Its calibration can.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from features._common.types import Floats
from features.sequences import SAME_ASPECT, FrameSequence

# by how much each quantity may be beyond the training's: the log of the frames' width over their height, the log of the
# focal length, the log of the height above the road, and the direction of the horizon in radians
CAMERA_TOLERANCE = np.array([SAME_ASPECT, 0.03, 0.05, 0.01])


@dataclass(frozen=True)
class KnownCameras:
    """The least and greatest values of what is known of the training's cameras: (4,) each, NaN where unknown."""

    low: Floats
    high: Floats

    def excludes(self, sequence: FrameSequence) -> bool:
        """Whether a sequence is of another camera; False where too little is known."""
        values = _quantities(sequence)
        return bool(((values < self.low - CAMERA_TOLERANCE) | (values > self.high + CAMERA_TOLERANCE)).any())


def known_cameras(sequences: Iterable[FrameSequence]) -> KnownCameras | None:
    """What is known of the cameras of training sequences; None without any."""
    rows = np.array([_quantities(sequence) for sequence in sequences]).reshape(-1, len(CAMERA_TOLERANCE))
    return KnownCameras(np.fmin.reduce(rows), np.fmax.reduce(rows)) if len(rows) else None


def _quantities(sequence: FrameSequence) -> Floats:
    (width, height), camera = sequence.size, sequence.camera
    if camera is None:
        return np.array([math.log(width / height), math.nan, math.nan, math.nan])
    above_road = math.nan if camera.height is None else math.log(camera.height)
    horizon = math.nan if camera.horizon is None else math.atan2(camera.horizon - camera.cy, camera.fy)
    return np.array([math.log(width / height), math.log(camera.fx / width), above_road, horizon])
