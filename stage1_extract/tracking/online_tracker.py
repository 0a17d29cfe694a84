"""Boxes followed through frames as they come: each frame is read once, and only a window's are held."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.sequences import Box
from stage1_extract.tracking.follower import Follower, box_at_pose, box_size, same_vehicle
from stage1_extract.tracking.tracker import start_follower


class OnlineTracker:
    """The last `length` boxes of every vehicle, after each frame.

    A vehicle's first box is followed backwards through the frames held and forwards from there on. A later one starts
    it anew where it was lost, or where the two have less than half of their union in common; else it changes nothing:
    a path keeps one box's proportions, and what a detector wavers by from frame to frame would hide its growth.
    The nearer vehicles come first in each frame, and hide of the others what they cover.

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
        found: list[Box] = []  # in this frame
        for name in sorted(self._followers, key=lambda n: -np.nan_to_num(self.boxes[n][-1][3], nan=np.inf)):
            follower, box = self._followers[name]
            seen = None if follower is None else follower.step(frame, found)
            here = None if seen is None else box_at_pose(seen.pose, box_size(box))
            self._push(name, here, 0.0 if seen is None else seen.correlation)
            found += [here] if here else []
        for name, box in sorted(known.items(), key=lambda item: -item[1][3]):
            if name not in self._followers or not _same(self.boxes[name][-1], box):
                self._begin(name, box)
        for name in [n for n, path in self.boxes.items() if np.isnan(path).all()]:
            del self.boxes[name], self.confidence[name], self._followers[name]

    def _begin(self, name: str, box: Box) -> None:
        frames = list(self._frames)
        boxes, confidence = np.full((self.length, 4), np.nan), np.zeros(self.length)
        beside = self._others(name, 1)
        back = start_follower(frames[-1], box, beside)
        for i, frame in enumerate(reversed(frames[:-1]), 2):
            seen = None if back is None else back.step(frame, self._others(name, i))
            if seen is not None:
                boxes[-i], confidence[-i] = box_at_pose(seen.pose, box_size(box)), seen.correlation
        boxes[-1], confidence[-1] = box, 1.0
        self._followers[name] = start_follower(frames[-1], box, beside), box
        self.boxes[name], self.confidence[name] = boxes, confidence

    def _others(self, name: str, back: int) -> list[Box]:
        """The other vehicles' boxes, `back` frames from the end."""
        paths = (path[-back].tolist() for n, path in self.boxes.items() if n != name)
        return [(left, top, right, bottom) for left, top, right, bottom in paths if not math.isnan(left)]

    def _push(self, name: str, box: Box | None, confidence: float) -> None:
        for values, new in ((self.boxes[name], np.nan if box is None else box), (self.confidence[name], confidence)):
            values[:-1] = values[1:]
            values[-1] = new


def _same(path: NDArray[np.float64], box: Box) -> bool:
    if np.isnan(path).any():
        return False
    left, top, right, bottom = path.tolist()
    return same_vehicle((left, top, right, bottom), box)
