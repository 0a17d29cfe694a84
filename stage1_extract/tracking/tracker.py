"""Track a vehicle from a frame where its box is known, with sub-pixel position and scale. Frames are compared with that
one, so that small errors do not accumulate; a newer one replaces it once the vehicle has grown or shrunk by a quarter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import cv2
import numpy as np

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box
from features.tracks import Track
from stage1_extract.tracking import alignment
from stage1_extract.tracking.alignment import FrameCrop, Grey, PointGrid, Pose

SAME_VEHICLE_IOU = 0.5  # intersection over union from which two boxes count as one vehicle's
SCENE_SHARE = 0.9  # share of the image from which a box counts as the whole scene's
GRID_POINTS = (24, 64)  # points along the longer side of the coarse grid for searching, and the fine one for aligning
SEARCH_RADIUS = (20.0, 0.3)  # px, and in box sides, around the last position (the larger counts), because cameras shake
MIN_CORRELATION = 0.7  # a vehicle with less counts as lost
MIN_SIDE = 6.0  # px; smaller boxes count as lost
MIN_SHARE_IN_FRAME = 0.5  # of the box; one further outside counts as lost
MIN_UNHIDDEN_SHARE = 0.1  # of the box in the template's frame; a more hidden one cannot be tracked
MIN_CONTRAST = 1.5  # standard deviation of grey levels; a vehicle with less cannot be tracked
# greatest deviation of the log of its size from what is expected: until its motion is known, and afterwards
MAX_SCALE_ERROR = (0.25, 0.07)
MAX_MISSED_FRAMES = 3  # in a row, after which a vehicle is given up
RENEWAL_GROWTH = 1.25  # growth, or shrinkage by its inverse, that renews the template …
RENEWAL_CORRELATION = 0.8  # … if the correlation is at least this


def box_area(box: Box) -> float:
    """The area of a box, px²."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection_area(box: Box, other: Box) -> float:
    """The area that two boxes share, px²."""
    width, height = (max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    return width * height


def area_inside(box: Box, frame: Image) -> float:
    """The area of a box inside its image, px²."""
    height, width = frame.shape[:2]
    return intersection_area(box, (-0.5, -0.5, width - 0.5, height - 0.5))


def same_vehicle(box: Box, other: Box) -> bool:
    """Whether two boxes overlap so much that they count as one vehicle's."""
    shared = intersection_area(box, other)
    return shared >= SAME_VEHICLE_IOU * (box_area(box) + box_area(other) - shared)


def occluding_boxes(box: Box, other_boxes: Sequence[Box], frame: Image) -> list[Box]:
    """Those of the other vehicles' boxes that hide part of a box: on flat ground, a nearer box reaches further down."""
    # a box of the same vehicle, or over nearly the whole image, hides nothing
    limit = SCENE_SHARE * frame.shape[0] * frame.shape[1]
    nearer = [o for o in other_boxes if o[3] > box[3] and intersection_area(box, o) > 0 and not same_vehicle(box, o)]
    return [o for o in nearer if box_area(o) < limit]


class TemplateLayer(NamedTuple):
    """A template on one grid."""

    grid: PointGrid
    patch: Grey  # grey levels
    trust: Grey  # how much each point counts


@dataclass(frozen=True)
class Template:
    """What a vehicle looks like in one frame."""

    scale: float  # in that frame, relative to the known box
    layers: tuple[TemplateLayer, ...]  # coarse for searching, and fine for aligning; a small box has only one
    partly_hidden: bool  # by another vehicle

    @classmethod
    def from_frame(cls, frame: Image, pose: Pose, size: tuple[float, float], other_boxes: Sequence[Box]) -> Template:
        """Take the template from a frame, at a pose relative to the known box of `size` (width, height in px)."""
        position = Pose(1.0, pose.x, pose.y)
        hidden = occluding_boxes(box_at_pose(pose, size), other_boxes, frame)
        layers: list[TemplateLayer] = []
        for points in GRID_POINTS:
            grid = alignment.make_grid(size[0] * pose.scale, size[1] * pose.scale, points)
            if not layers or grid.step < layers[-1].grid.step:  # a small box has one grid, with a point per pixel
                view = alignment.crop_view(frame, position, grid, 0.0)
                layers.append(TemplateLayer(grid, *alignment.sample_patch(view, grid, position, hidden)))
        return cls(pose.scale, tuple(layers), bool(hidden))

    @property
    def contrast(self) -> float:
        """Standard deviation of the finest layer's grey levels; 0 if nearly all of it is hidden."""
        layer = self.layers[-1]
        total = float(layer.trust.sum())
        if total <= MIN_UNHIDDEN_SHARE * float(layer.grid.weight.sum()):
            return 0.0
        mean = float((layer.trust * layer.patch).sum()) / total
        return math.sqrt(float((layer.trust * (layer.patch - mean) ** 2).sum()) / total)


def locate_template(
    frame: Image, template: Template, expected: Pose, hidden: Sequence[Box] = ()
) -> tuple[Pose, float] | None:
    """Find a template in a frame near the expected pose, and its correlation there, up to 1; None if it is not there.

    Both poses are relative to the known box. `hidden` are the boxes, in px, of vehicles in front of it.
    """
    coarse, fine = template.layers[0], template.layers[-1]
    side = math.sqrt(coarse.grid.width * coarse.grid.height) * expected.scale / template.scale
    # from here on, poses are relative to the template's frame
    start = Pose(expected.scale / template.scale, expected.x, expected.y)
    if not fits_in_frame(start, coarse.grid, frame):
        return None
    radius = max(SEARCH_RADIUS[0], SEARCH_RADIUS[1] * side)
    view = alignment.crop_view(frame, start, coarse.grid, radius)
    # points that are hidden at the expected position count as hidden at all positions
    masked = hidden or template.partly_hidden
    mask = coarse.trust * alignment.sample_patch(view, coarse.grid, start, hidden)[1] if masked else None
    pose = search_template(view, coarse, start, radius, mask)
    if fine is not coarse:  # otherwise the view is blurred for this grid already
        view = alignment.crop_view(frame, pose, fine.grid, 0.2 * side)
    aligned = alignment.align_patch(view, fine.grid, fine.patch, fine.trust, pose, hidden)
    if aligned is None:
        return None
    pose, values, weight = aligned
    correlation = min(alignment.patch_correlation(values, fine.patch, weight), 1.0)
    if correlation < MIN_CORRELATION or not fits_in_frame(pose, fine.grid, frame):
        return None
    return Pose(pose.scale * template.scale, pose.x, pose.y), correlation


def search_template(view: FrameCrop, layer: TemplateLayer, expected: Pose, radius: float, mask: Grey | None) -> Pose:
    """Find the position of the highest correlation within `radius` px, at the expected scale, to a part of a grid step.

    `mask` is how much each of the layer's points counts; None: all the same, which takes half the time.
    """
    grid = layer.grid
    if not view.pixels.size:
        return expected
    step = expected.scale * grid.step
    n = math.ceil(radius / step)
    size = len(grid.u) - 2 + 2 * n, len(grid.v) - 2 + 2 * n
    x0, y0 = expected.x - step * (size[0] - 1) / 2, expected.y - step * (size[1] - 1) / 2
    matrix = np.array([[step, 0, x0 - view.left], [0, step, y0 - view.top]], np.float64) / view.shrink
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(view.pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = np.s_[1:-1, 1:-1]  # without the ring around the box
    mask = None if mask is None else mask[inner]
    scores = np.asarray(cv2.matchTemplate(field, layer.patch[inner], cv2.TM_CCOEFF_NORMED, mask=mask))
    if mask is not None:
        scores[~np.isfinite(scores) | (scores > 1.001)] = -1  # no contrast under the mask
    row, column = np.unravel_index(int(np.argmax(scores)), scores.shape)
    dx, dy = (_peak_offset(line, int(i)) for line, i in ((scores[row], column), (scores[:, column], row)))
    return Pose(expected.scale, expected.x + step * (int(column) - n + dx), expected.y + step * (int(row) - n + dy))


def _peak_offset(line: Grey, index: int) -> float:
    """Offset of the peak from the highest value, −0.5 to 0.5, by a parabola through it and its neighbours."""
    if not 0 < index < len(line) - 1:
        return 0.0
    before, here, after = line[index - 1 : index + 2].tolist()
    curvature = before - 2 * here + after
    return 0.5 * (before - after) / curvature if curvature < 0 else 0.0


def box_at_pose(pose: Pose, size: tuple[float, float]) -> Box:
    """The known box of `size` (width, height in px) moved to a pose."""
    w, h = size[0] * pose.scale / 2, size[1] * pose.scale / 2
    return pose.x - w, pose.y - h, pose.x + w, pose.y + h


def fits_in_frame(pose: Pose, grid: PointGrid, frame: Image) -> bool:
    """Whether the box is large enough, and enough of it inside the image."""
    box = box_at_pose(pose, (grid.width, grid.height))
    w, h = grid.width * pose.scale, grid.height * pose.scale
    return min(w, h) >= MIN_SIDE and area_inside(box, frame) >= MIN_SHARE_IN_FRAME * w * h


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
        """Find the vehicle's box in the next frame, and its correlation with the template; None if it is lost there."""
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

    A DataError if the box is not finite, has no size, or lies outside its image.
    """
    if not _is_box(box):
        raise DataError("the box has no size", expected="finite left < right and top < bottom", got=box)
    if not area_inside(box, frame):
        height, width = frame.shape[:2]
        raise DataError("the box lies outside its image", expected=f"part of it within {width}x{height}", got=box)
    left, top, right, bottom = box
    pose = Pose(1.0, (left + right) / 2, (top + bottom) / 2)
    template = Template.from_frame(frame, pose, (right - left, bottom - top), other_boxes)
    return TemplateTracker(pose, template) if template.contrast >= MIN_CONTRAST else None


def track_known_boxes(
    frames: Sequence[Image], known: Mapping[int, Box], other_boxes: Mapping[int, Sequence[Box]] = MappingProxyType({})
) -> Track:
    """Track a vehicle backwards and forwards from the frames where its box is known, each frame from the nearest.

    The box is lost, and NaN, where nothing similar is near the expected position, more than half of it is outside the
    image, or a side is under 6 px. It may be found again after at most three such frames in a row. A known box stays as
    it is, with confidence 1; frames around one without contrast or outside its image are lost; one that is not finite,
    or has no size, is ignored. A box over the whole image follows the scene.

    Args:
        frames: images in order at full resolution, uint8, grey (height, width) or BGR (height, width, 3), which may be
            decoded on demand: a known one is read first, then its neighbours in both directions, each once.
        known: 0-based index → left, top, right, bottom in px, the first pixel's centre at (0, 0); may reach outside.
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
