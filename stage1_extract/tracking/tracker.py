"""Track a vehicle through a sequence from a frame where its box is known, with sub-pixel position and scale.

Each frame is compared with the one where the box is known, so that small errors do not accumulate as they do from
frame to frame. Once the vehicle has grown or shrunk by a quarter and shows other detail, a newer frame takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box
from features.tracks import Track
from stage1_extract.tracking.alignment import Pose
from stage1_extract.tracking.boxes import area_inside, box_size, occluding_boxes
from stage1_extract.tracking.template import Template, box_at_pose, locate_template

MIN_CONTRAST = 1.5  # standard deviation of grey levels; a vehicle with less cannot be tracked
# greatest deviation of the log of its size from what is expected: until its motion is known, and afterwards
MAX_SCALE_ERROR = (0.25, 0.07)
MAX_MISSED_FRAMES = 3  # in a row, after which a vehicle is given up
RENEWAL_GROWTH = 1.25  # growth, or shrinkage by its inverse, that renews the template …
RENEWAL_CORRELATION = 0.8  # … if the correlation is at least this


class TemplateTracker:
    """Tracks a vehicle from frame to frame, forwards or backwards from the one where its box is known."""

    def __init__(self, start: Pose, template: Template) -> None:
        """Begin at the known pose, of scale 1, with the template taken there."""
        self._size = template.layers[0].grid.width, template.layers[0].grid.height
        self._template, self._last, self._missed = template, start, 0
        self._change: float | None = None  # of 1/scale, per frame

    @property
    def given_up(self) -> bool:
        """Whether it was lost in more than `MAX_MISSED_FRAMES` frames in a row, which ends the tracking."""
        return self._missed > MAX_MISSED_FRAMES

    def step(self, frame: Image, other_boxes: Sequence[Box] = ()) -> tuple[Box, float] | None:
        """Find the vehicle's box in the next frame, and its correlation with the template; None if it is lost there.

        Of the boxes of other vehicles in the frame, those in front of this one hide what they cover.
        """
        if self.given_up:
            return None
        # at constant velocity the distance, 1/scale, changes linearly; the position is not extrapolated, because the
        # camera shakes too much
        last, steps = self._last, self._missed + 1
        inverse = max(1 / last.scale + steps * (self._change or 0.0), 0.5 / last.scale)
        expected = Pose(1 / inverse, last.x, last.y)
        hidden = occluding_boxes(box_at_pose(expected, self._size), other_boxes, frame)
        match = locate_template(frame, self._template, expected, hidden)
        max_error = MAX_SCALE_ERROR[0] if self._change is None else MAX_SCALE_ERROR[1]
        if match is None or abs(math.log(match[0].scale / expected.scale)) > max_error:
            self._missed += 1
            return None
        pose, correlation = match
        change = (1 / pose.scale - 1 / last.scale) / steps
        # the mean of the old and the new value, so that one noisy frame does not throw it off
        self._change = change if self._change is None else (self._change + change) / 2
        self._last, self._missed = pose, 0
        growth = pose.scale / self._template.scale
        if max(growth, 1 / growth) > RENEWAL_GROWTH and correlation >= RENEWAL_CORRELATION:
            self._template = Template.from_frame(frame, pose, self._size, other_boxes)
        return box_at_pose(pose, self._size), correlation


def start_tracker(frame: Image, box: Box, other_boxes: Sequence[Box] = ()) -> TemplateTracker | None:
    """Begin to track a box in the frame where it is known; None if it has no contrast.

    Raises:
        DataError: the box is not finite, has no size, or lies outside its image.
    """
    if not _is_box(box):
        raise DataError("the box has no size", expected="finite left < right and top < bottom", got=box)
    if not area_inside(box, frame):
        height, width = frame.shape[:2]
        raise DataError("the box lies outside its image", expected=f"part of it within {width}x{height}", got=box)
    left, top, right, bottom = box
    pose = Pose(1.0, (left + right) / 2, (top + bottom) / 2)
    template = Template.from_frame(frame, pose, box_size(box), other_boxes)
    return TemplateTracker(pose, template) if template.contrast >= MIN_CONTRAST else None


def track_known_boxes(
    frames: Sequence[Image], known: Mapping[int, Box], other_boxes: Mapping[int, Sequence[Box]] = MappingProxyType({})
) -> Track:
    """Track a vehicle backwards and forwards from the frames where its box is known, each frame from the nearest.

    The box is lost, and NaN, in a frame where nothing similar is near the expected position, more than half of it is
    outside the image, or a side is under 6 px. It may be found again after at most three such frames in a row. A box
    over the whole image follows the scene.

    A known box stays as it is, with confidence 1. If it cannot be tracked (without contrast, outside its image), the
    frames around it are lost. If it is not a box (not finite, without size), it is ignored.

    Args:
        frames: images in order at full resolution, uint8, grey (height, width) or BGR (height, width, 3). They may be
            decoded on demand: a known frame is read first, then its neighbours in both directions, each once; frames
            between adjacent known ones are not read.
        known: 0-based index into `frames` → left, top, right, bottom in px, the centre of the first pixel at (0, 0);
            boxes may reach out of the image.
        other_boxes: index → boxes of other vehicles in that frame, which may hide this one.
    """
    track = Track(np.full((len(frames), 4), np.nan), np.zeros(len(frames)))
    known_indices = sorted(i for i, box in known.items() if _is_box(box))
    for previous, at, following in zip([None, *known_indices], known_indices, [*known_indices[1:], None], strict=False):
        box = known[at]
        first = 0 if previous is None else (previous + at) // 2 + 1
        stop = len(frames) if following is None else (at + following) // 2 + 1
        directions = [d for d in (range(at - 1, first - 1, -1), range(at + 1, stop)) if d]
        if directions and area_inside(box, frame := frames[at]):
            for indices in directions:
                tracker = start_tracker(frame, box, other_boxes.get(at, ()))
                for i in indices:
                    if tracker is None or tracker.given_up:
                        break
                    if match := tracker.step(frames[i], other_boxes.get(i, ())):
                        track.boxes[i], track.confidence[i] = match
        track.boxes[at], track.confidence[at] = box, 1.0
    return track


def _is_box(box: Box) -> bool:
    return all(map(math.isfinite, box)) and box[2] > box[0] and box[3] > box[1]
