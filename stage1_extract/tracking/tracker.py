"""A box followed through a sequence from the one frame it is known for, to sub-pixel accuracy in place and scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box
from features.tracks import Track
from stage1_extract.tracking.alignment import Pose
from stage1_extract.tracking.follower import CONTRAST, Follower, Template, box_at_pose, box_size, follow_frames, overlap


def track_box(frames: Sequence[Image], box: Box, at: int) -> Track:
    """Follow a box backwards and forwards from frame `at`.

    The box is lost, and NaN, where nothing like it is near where it is expected, where more than half of it is outside
    the image, and where a side is under 6 px; three such frames in a row it may come back from, not more. A box
    without contrast can't be followed: all frames but `at` are NaN. A box over the whole image follows the scene.

    Args:
        frames: images in order at full resolution, uint8, grey (height, width) or BGR (height, width, 3). Each is read
            once (the one at `at` first), so they may be decoded on demand.
        box: left, top, right, bottom in px, the centre of the first pixel at (0, 0), known at frame `at`; may reach
            out of the image.
        at: 0-based index into `frames`.

    Raises:
        DataError: `at` is not among the frames, or the box is not finite, has no size or lies outside its image.
    """
    if not 0 <= at < len(frames):
        raise DataError("the box's frame is not among those given", expected=f"0 to {len(frames) - 1}", got=at)
    frame = frames[at]
    _check(box, frame)
    found = Track(np.full((len(frames), 4), np.nan), np.zeros(len(frames)))
    _follow_both(frames, frame, box, (range(at - 1, -1, -1), range(at + 1, len(frames))), found, {}, at)
    found.boxes[at], found.confidence[at] = box, 1.0
    return found


def track_known_boxes(
    frames: Sequence[Image], known: Mapping[int, Box], others: Mapping[int, Sequence[Box]] = MappingProxyType({})
) -> Track:
    """Follow a vehicle whose box is known in one or several frames; the others are followed from the nearest of them.

    A known box is kept as it is, with confidence 1. One that can't be followed (without contrast, outside its image)
    leaves its neighbours lost, and one that is no box at all (not finite, no size) is passed over.

    Args:
        frames: as for `track_box`; frames between known neighbours are never looked at.
        known: 0-based index into `frames` → box.
        others: index → boxes of other vehicles in that frame, which may hide this one.
    """
    found = Track(np.full((len(frames), 4), np.nan), np.zeros(len(frames)))
    at = sorted(i for i, box in known.items() if _is_box(box))
    for before, here, after in zip([None, *at], at, [*at[1:], None], strict=False):
        box = known[here]
        first = 0 if before is None else (before + here) // 2 + 1
        last = len(frames) if after is None else (here + after) // 2 + 1
        ways = [way for way in (range(here - 1, first - 1, -1), range(here + 1, last)) if way]
        if ways and _inside(box, frame := frames[here]):
            _follow_both(frames, frame, box, ways, found, others, here)
        found.boxes[here], found.confidence[here] = box, 1.0
    return found


def _follow_both(
    frames: Sequence[Image],
    frame: Image,
    box: Box,
    ways: Iterable[range],
    found: Track,
    others: Mapping[int, Sequence[Box]],
    at: int,
) -> None:
    """Note in `found` where a box known in `frame`, the one `at`, goes each way from there."""
    for way in ways:
        follower = start_follower(frame, box, others.get(at, ()))
        for i, seen in (follow_frames(frames, way, follower, others) if follower else {}).items():
            found.boxes[i], found.confidence[i] = box_at_pose(seen.pose, box_size(box)), seen.correlation


def start_follower(frame: Image, box: Box, others: Sequence[Box] = ()) -> Follower | None:
    """What follows a box away from the frame it is known in, beside `others`; None where it has no contrast.

    Raises:
        DataError: the box is not finite, has no size or lies outside its image.
    """
    _check(box, frame)
    left, top, right, bottom = box
    home = Pose(1.0, (left + right) / 2, (top + bottom) / 2)
    look = Template.of(frame, home, box_size(box), others)
    return Follower(home, look) if look.contrast >= CONTRAST else None


def _is_box(box: Box) -> bool:
    return all(map(math.isfinite, box)) and box[2] > box[0] and box[3] > box[1]


def _inside(box: Box, frame: Image) -> bool:
    height, width = frame.shape[:2]
    return overlap(box[0], box[2], width) > 0 and overlap(box[1], box[3], height) > 0


def _check(box: Box, frame: Image) -> None:
    if not _is_box(box):
        raise DataError("the box has no size", expected="finite left < right and top < bottom", got=box)
    if not _inside(box, frame):
        height, width = frame.shape[:2]
        raise DataError("the box lies outside its image", expected=f"some of it within {width}x{height}", got=box)
