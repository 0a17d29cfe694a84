"""Boxes followed through frames as they come: each frame is read once, and only a window's are held."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from features.sequences import Box
from stage1_extract.clips import Image
from stage1_extract.track import placed, start
from stage1_extract.tracking.follow import Follower

SAME = 0.5  # share of their union that two boxes of one vehicle have in common


class Trails:
    """The last `length` boxes of every vehicle, after each frame.

    A vehicle's first box is followed backwards through the frames held and forwards from there on. A later one starts
    it anew where it was lost, or where the two have less than half of their union in common; else it changes nothing:
    a path keeps one box's proportions, and what a detector wavers by from frame to frame would hide its growth.

    Attributes:
        boxes: vehicle → (length, 4) left, top, right, bottom in px, the newest last; NaN where lost or not seen yet.
        confidence: vehicle → (length,), 0 where lost.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.boxes: dict[str, NDArray[np.float64]] = {}
        self.confidence: dict[str, NDArray[np.float64]] = {}
        self._frames: deque[Image] = deque(maxlen=length)
        self._followers: dict[str, tuple[Follower | None, Box]] = {}

    def step(self, frame: Image, known: Mapping[str, Box]) -> None:
        """Take in the next frame, uint8 BGR at full resolution, with the boxes that are given for it.

        Raises:
            DataError: a box of no size, or outside the image.
        """
        self._frames.append(frame)
        for name, (follower, box) in self._followers.items():
            seen = None if follower is None else follower.step(frame)
            self._push(name, *((None, 0.0) if seen is None else (placed(box, seen.pose), seen.like)))
        for name, box in known.items():
            if name not in self._followers or not _same(self.boxes[name][-1], box):
                self._begin(name, box)
        for name in [n for n, path in self.boxes.items() if np.isnan(path).all()]:
            del self.boxes[name], self.confidence[name], self._followers[name]

    def _begin(self, name: str, box: Box) -> None:
        frames = list(self._frames)
        boxes, confidence = np.full((self.length, 4), np.nan), np.zeros(self.length)
        back = start(frames[-1], box)
        for i, frame in enumerate(reversed(frames[:-1]), 2):
            seen = None if back is None else back.step(frame)
            if seen is not None:
                boxes[-i], confidence[-i] = placed(box, seen.pose), seen.like
        boxes[-1], confidence[-1] = box, 1.0
        self.boxes[name], self.confidence[name] = boxes, confidence
        self._followers[name] = start(frames[-1], box), box

    def _push(self, name: str, box: Box | None, confidence: float) -> None:
        for values, new in ((self.boxes[name], np.nan if box is None else box), (self.confidence[name], confidence)):
            values[:-1] = values[1:]
            values[-1] = new


def _same(path: NDArray[np.float64], box: Box) -> bool:
    if np.isnan(path).any():
        return False
    left, top, right, bottom = path.tolist()
    common = max(0.0, min(right, box[2]) - max(left, box[0])) * max(0.0, min(bottom, box[3]) - max(top, box[1]))
    together = (right - left) * (bottom - top) + (box[2] - box[0]) * (box[3] - box[1]) - common
    return bool(common >= SAME * together)
