"""Track boxes through frames as they arrive: each frame is read once, and only a window of frames is kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np

from features._common.types import Floats, Image
from features.sequences import Box
from stage1_extract.tracking.tracker import TemplateTracker, same_vehicle, start_tracker


class OnlineTracker:
    """Keeps the boxes of all vehicles in the last `length` frames.

    A vehicle is tracked from its first box, backwards through the kept frames and forwards from then on. A later box
    restarts it if it was lost, or if the box overlaps its track too little; otherwise it is ignored, because a
    detector's jitter would hide the growth. Nearer vehicles are tracked first and hide what they cover of the others.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        # by vehicle, the newest frame last; NaN and 0 where the vehicle is lost or not known yet
        self.boxes: dict[str, Floats] = {}  # (length, 4) left, top, right, bottom in px
        self.confidence: dict[str, Floats] = {}  # (length,) 0 to 1
        self._frames: deque[Image] = deque(maxlen=length)
        self._trackers: dict[str, TemplateTracker | None] = {}

    def step(self, frame: Image, known: Mapping[str, Box]) -> None:
        """Track all vehicles in the next frame, at full resolution; `known` are the known boxes in it, by vehicle.

        A vehicle lost in all kept frames is removed. DataError if a known box has no size, or lies outside the image.
        """
        self._frames.append(frame)
        nearer: list[Box] = []
        for name in sorted(self._trackers, key=lambda n: -np.nan_to_num(self.boxes[n][-1][3], nan=np.inf)):
            boxes, confidence, tracker = self.boxes[name], self.confidence[name], self._trackers[name]
            boxes[:-1], confidence[:-1] = boxes[1:], confidence[1:]
            boxes[-1], confidence[-1] = np.nan, 0.0
            if tracker is not None and (match := tracker.step(frame, nearer)):
                boxes[-1], confidence[-1] = match
                nearer.append(match[0])
        for name, box in sorted(known.items(), key=lambda item: -item[1][3]):
            # a lost box, which is NaN, is never the same
            if name not in self._trackers or not same_vehicle(self.boxes[name][-1].tolist(), box):
                self._start(name, box)
        for name in [n for n, boxes in self.boxes.items() if np.isnan(boxes).all()]:
            del self.boxes[name], self.confidence[name], self._trackers[name]

    def _start(self, name: str, box: Box) -> None:
        frames = list(self._frames)
        boxes, confidence = np.full((self.length, 4), np.nan), np.zeros(self.length)
        other_boxes = self._other_boxes(name, 1)
        backwards = start_tracker(frames[-1], box, other_boxes)
        for i, frame in enumerate(reversed(frames[:-1]), 2):
            if backwards is not None and (match := backwards.step(frame, self._other_boxes(name, i))):
                boxes[-i], confidence[-i] = match
        boxes[-1], confidence[-1] = box, 1.0
        self._trackers[name] = start_tracker(frames[-1], box, other_boxes)
        self.boxes[name], self.confidence[name] = boxes, confidence

    def _other_boxes(self, name: str, index: int) -> list[Box]:
        """The other vehicles' boxes in the frame at `index` from the end."""
        rows = (boxes[-index].tolist() for other, boxes in self.boxes.items() if other != name)
        return [tuple(row) for row in rows if not math.isnan(row[0])]
