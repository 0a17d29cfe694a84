"""Track boxes through frames as they arrive: each frame is read once, and only a window of frames is kept."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np

from features._common.types import Floats, Image
from features.sequences import Box
from stage1_extract.tracking.boxes import box_size, same_vehicle
from stage1_extract.tracking.template import box_at_pose
from stage1_extract.tracking.tracker import TemplateTracker, start_tracker


class OnlineTracker:
    """Keeps the boxes of all vehicles in the last `length` frames.

    A vehicle is tracked from its first box, backwards through the kept frames and forwards from then on. A later box
    restarts it if it was lost, or if the box overlaps its track too little to be the same vehicle's. Otherwise the
    later box is ignored: a track keeps the proportions of one box, and a detector's jitter would hide the growth.
    In each frame, nearer vehicles are tracked first and hide what they cover of the others.

    Attributes:
        length: number of frames.
        boxes: vehicle → (length, 4) left, top, right, bottom in px, the newest last; NaN where the vehicle is lost or
            not known yet.
        confidence: vehicle → (length,) 0 to 1; 0 where it is lost or not known yet.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.boxes: dict[str, Floats] = {}
        self.confidence: dict[str, Floats] = {}
        self._frames: deque[Image] = deque(maxlen=length)
        self._trackers: dict[str, tuple[TemplateTracker | None, Box]] = {}

    def step(self, frame: Image, known: Mapping[str, Box]) -> None:
        """Track all vehicles in the next frame.

        A vehicle that is lost in all kept frames is removed.

        Args:
            frame: uint8, grey or BGR, at full resolution.
            known: vehicle → its known box in this frame.

        Raises:
            DataError: a known box has no size, or lies outside the image.
        """
        self._frames.append(frame)
        nearer: list[Box] = []
        for name in sorted(self._trackers, key=lambda n: -np.nan_to_num(self.boxes[n][-1][3], nan=np.inf)):
            tracker, known_box = self._trackers[name]
            match = None if tracker is None else tracker.step(frame, nearer)
            box = None if match is None else box_at_pose(match.pose, box_size(known_box))
            self._append(name, box, 0.0 if match is None else match.correlation)
            nearer += [box] if box else []
        for name, box in sorted(known.items(), key=lambda item: -item[1][3]):
            if name not in self._trackers or not _is_at(self.boxes[name][-1], box):
                self._start(name, box)
        for name in [n for n, boxes in self.boxes.items() if np.isnan(boxes).all()]:
            del self.boxes[name], self.confidence[name], self._trackers[name]

    def _start(self, name: str, box: Box) -> None:
        frames = list(self._frames)
        boxes, confidence = np.full((self.length, 4), np.nan), np.zeros(self.length)
        other_boxes = self._other_boxes(name, 1)
        backwards = start_tracker(frames[-1], box, other_boxes)
        for i, frame in enumerate(reversed(frames[:-1]), 2):
            match = None if backwards is None else backwards.step(frame, self._other_boxes(name, i))
            if match is not None:
                boxes[-i], confidence[-i] = box_at_pose(match.pose, box_size(box)), match.correlation
        boxes[-1], confidence[-1] = box, 1.0
        self._trackers[name] = start_tracker(frames[-1], box, other_boxes), box
        self.boxes[name], self.confidence[name] = boxes, confidence

    def _other_boxes(self, name: str, index: int) -> list[Box]:
        """The other vehicles' boxes in the frame at `index` from the end."""
        rows = (boxes[-index].tolist() for other, boxes in self.boxes.items() if other != name)
        return [(left, top, right, bottom) for left, top, right, bottom in rows if not math.isnan(left)]

    def _append(self, name: str, box: Box | None, confidence: float) -> None:
        for values, new in ((self.boxes[name], np.nan if box is None else box), (self.confidence[name], confidence)):
            values[:-1] = values[1:]
            values[-1] = new


def _is_at(tracked: Floats, box: Box) -> bool:
    """Whether a tracked box (4,) is not lost, and the same vehicle's as another box."""
    if np.isnan(tracked).any():
        return False
    left, top, right, bottom = tracked.tolist()
    return same_vehicle((left, top, right, bottom), box)
