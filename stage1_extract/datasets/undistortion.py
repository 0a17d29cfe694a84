"""Frames as a lens that does not bend straight lines would show them, with the same focal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from cv2.typing import MatLike

from features._common.types import Floats, Image, Size
from features.sequences import Camera
from stage1_extract.datasets.clip import FrameSource


@dataclass(frozen=True)
class UndistortedFrames:
    """A `FrameSource` of another one's frames without their distortion; what the lens did not show repeats its edge."""

    source: FrameSource
    camera: Camera
    size: Size  # of the frames, px
    distortion: tuple[float, ...]  # OpenCV's coefficients

    @property
    def parallel(self) -> bool:
        return self.source.parallel

    @cached_property
    def _maps(self) -> tuple[MatLike, MatLike]:
        matrix, terms = _matrix(self.camera), np.array(self.distortion)
        rows_and_columns, fractions = cv2.initUndistortRectifyMap(matrix, terms, None, matrix, self.size, cv2.CV_16SC2)
        return rows_and_columns, fractions

    def read(self, start: int, stop: int, min_size: Size | None = None) -> Iterator[Image]:
        """Read frames at full resolution, whatever `min_size` says."""
        for frame in self.source.read(start, stop):
            yield np.asarray(cv2.remap(frame, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def corner_shift(camera: Camera, size: Size, distortion: Sequence[float]) -> float:
    """How far a lens moves the frame's upper left corner outwards, as a share of its distance from the middle."""
    ray = np.array([[-camera.cx / camera.fx, -camera.cy / camera.fy, 1.0]])
    seen, _ = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), _matrix(camera), np.array(distortion, np.float64))
    middle = np.array([camera.cx, camera.cy])
    return float(np.linalg.norm(seen.ravel() - middle) / np.linalg.norm(middle)) - 1


def _matrix(camera: Camera) -> Floats:
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
