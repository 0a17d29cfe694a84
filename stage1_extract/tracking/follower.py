"""Following a vehicle away from a frame in which it is known, each frame compared with that one.

Comparing with one frame keeps small errors from adding up, as they do from neighbour to neighbour. Only where the
vehicle has grown or shrunk by a quarter, so that it shows other detail, is it compared with a newer frame from then on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from features._common.types import Image
from features.sequences import Box
from stage1_extract.tracking.alignment import (
    FrameCrop,
    Grey,
    PointGrid,
    Pose,
    align_patch,
    crop_view,
    make_grid,
    patch_correlation,
    sample_patch,
)

GRID_POINTS = (24, 64)  # grid points along the longer side, to search on and to align on
MARGIN = 0.0  # of the box's sides on each side: beyond it is background, which moves otherwise
SEARCH = (20.0, 0.3)  # px, and in box sides: how far from where it was last a vehicle is looked for; cameras shake
MIN_CORRELATION = 0.7  # correlation under which a vehicle counts as lost
JUMP = (0.25, 0.07)  # the most the log of its size may differ from what is expected: at first, and once motion is known
MAX_MISSED_FRAMES = 3  # frames it may stay lost before it is given up
RENEW = (1.25, 0.8)  # growth from which on a newer frame is compared with, if it is at least this much alike
SMALLEST = 6.0  # px: narrower or lower boxes are given up
VISIBLE = 0.5  # share of the box that must be inside the image
SEEN = 0.1  # share of the box that must not be hidden in the frame it is known in
SAME = 0.5  # share of their union from which on two boxes are taken for one vehicle's
SCENE = 0.9  # share of the image from which on a box is taken for the scene's
CONTRAST = 1.5  # grey levels' deviation under which there is nothing to follow


@dataclass(frozen=True)
class Match:
    """A pose relative to the known box, and the correlation (0 to 1) with what was compared."""

    pose: Pose
    correlation: float


@dataclass(frozen=True)
class TemplateLayer:
    """What the vehicle looks like on one grid, and how much each point counts."""

    grid: PointGrid
    patch: Grey
    trust: Grey


@dataclass(frozen=True)
class Template:
    """What the vehicle looks like in one frame.

    Attributes:
        scale: there, relative to the known box.
        layers: the coarse one it is searched on, and the fine one it is aligned on; one where the box is small.
        partly: whether another vehicle hides some of it.
    """

    scale: float
    layers: tuple[TemplateLayer, ...]
    partly: bool

    @classmethod
    def of(cls, frame: Image, pose: Pose, size: tuple[float, float], others: Sequence[Box] = ()) -> Template:
        """The look at a pose of the known box of `size` (width, height in px), beside the boxes of `others`."""
        here = Pose(1.0, pose.x, pose.y)
        hidden = occluding_boxes(box_at_pose(pose, size), others, frame)
        layers: list[TemplateLayer] = []
        for points in GRID_POINTS:
            g = make_grid(size[0] * pose.scale, size[1] * pose.scale, points, MARGIN)
            if not layers or g.step < layers[-1].grid.step:  # a small box has one grid, a point a pixel
                layers.append(TemplateLayer(g, *sample_patch(crop_view(frame, here, g, 0.0), g, here, hidden)))
        return cls(pose.scale, tuple(layers), bool(hidden))

    @property
    def contrast(self) -> float:
        """Deviation of the finest layer's grey levels; 0 where less than `SEEN` of it is there to be seen."""
        layer = self.layers[-1]
        total = float(layer.trust.sum())
        if total <= SEEN * float(layer.grid.weight.sum()):
            return 0.0
        mean = float((layer.trust * layer.patch).sum()) / total
        return math.sqrt(float((layer.trust * (layer.patch - mean) ** 2).sum()) / total)


class Follower:
    """Follows a vehicle from frame to frame, away from the one it is known in.

    Attributes:
        given_up: whether it was lost for more than `MAX_MISSED_FRAMES` frames in a row; it isn't looked for any more.
    """

    def __init__(self, home: Pose, look: Template) -> None:
        """From the known pose, scale 1, and what the vehicle looks like there."""
        self._size = look.layers[0].grid.width, look.layers[0].grid.height
        self._look, self._last, self._missed = look, home, 0
        self._motion: float | None = None  # of 1/scale, a frame

    @property
    def given_up(self) -> bool:
        return self._missed > MAX_MISSED_FRAMES

    def step(self, frame: Image, others: Sequence[Box] = ()) -> Match | None:
        """Where the vehicle is in the next frame; None where it isn't found.

        Args:
            frame: uint8, grey or BGR.
            others: boxes of other vehicles in it, px; those that stand before this one hide what they cover.
        """
        if self.given_up:
            return None
        ahead = _ahead(self._last, self._motion, self._missed + 1)
        hidden = occluding_boxes(box_at_pose(ahead, self._size), others, frame)
        seen = locate_template(frame, self._look, ahead, hidden)
        allowed = JUMP[0] if self._motion is None else JUMP[1]
        if seen is None or abs(math.log(seen.pose.scale / ahead.scale)) > allowed:
            self._missed += 1
            return None
        pose = seen.pose
        new = (1 / pose.scale - 1 / self._last.scale) / (self._missed + 1)
        # halfway to the newest: one noisy frame doesn't throw it off
        self._motion = new if self._motion is None else (self._motion + new) / 2
        self._last, self._missed = pose, 0
        growth = pose.scale / self._look.scale
        if max(growth, 1 / growth) > RENEW[0] and seen.correlation >= RENEW[1]:
            self._look = Template.of(frame, pose, self._size, others)
        return seen


def follow_frames(
    frames: Sequence[Image], way: range, follower: Follower, others: Mapping[int, Sequence[Box]]
) -> dict[int, Match]:
    """Where the vehicle is in the frames of `way`, which leads away from the frame it is known in.

    Frames where it isn't found are left out.

    Args:
        frames: uint8, grey or BGR.
        way: indices into `frames`, the first one next to the known frame.
        follower: as it starts from the known frame.
        others: index → boxes of other vehicles in that frame.
    """
    found: dict[int, Match] = {}
    for i in way:
        seen = follower.step(frames[i], others.get(i, ()))
        if seen is not None:
            found[i] = seen
        elif follower.given_up:
            break
    return found


def _ahead(last: Pose, motion: float | None, steps: int) -> Pose:
    """Where to start looking `steps` frames on: at constant velocity the distance, 1/scale, changes evenly.

    The place is the last one: what a camera's shaking adds to it isn't worth continuing.
    """
    inverse = max(1 / last.scale + steps * (motion or 0.0), 0.5 / last.scale)
    return Pose(1 / inverse, last.x, last.y)


def locate_template(frame: Image, look: Template, ahead: Pose, hidden: Sequence[Box] = ()) -> Match | None:
    """Where the vehicle is in a frame, near where it is expected; None where it isn't.

    Args:
        hidden: boxes in the frame, px, of what stands before it.
    """
    first, fine = look.layers[0], look.layers[-1]
    side = math.sqrt(first.grid.width * first.grid.height) * ahead.scale / look.scale
    # poses relative to the look's own frame from here on
    start = Pose(ahead.scale / look.scale, ahead.x, ahead.y)
    if not fits_in_frame(start, first.grid, frame):
        return None
    reach = max(SEARCH[0], SEARCH[1] * side)
    part = crop_view(frame, start, first.grid, reach)
    # points hidden where it is expected are taken for hidden all round
    mask = first.trust * sample_patch(part, first.grid, start, hidden)[1] if hidden or look.partly else None
    pose = search_template(part, first, start, reach, mask)
    if fine is not first:  # else it was blurred for this grid already
        part = crop_view(frame, pose, fine.grid, 0.2 * side)
    closer = align_patch(part, fine.grid, fine.patch, fine.trust, pose, hidden)
    if closer is None or not fits_in_frame(closer.pose, fine.grid, frame):
        return None
    like = min(patch_correlation(closer.values, fine.patch, closer.weight), 1.0)
    pose = Pose(closer.pose.scale * look.scale, closer.pose.x, closer.pose.y)
    return Match(pose, like) if like >= MIN_CORRELATION else None


def search_template(part: FrameCrop, layer: TemplateLayer, ahead: Pose, reach: float, mask: Grey | None) -> Pose:
    """The place of the highest correlation within `reach` px, at the expected scale, to a part of a grid step.

    Args:
        mask: how much each of the layer's points counts; None: all alike, which takes half the time.
    """
    g = layer.grid
    if not part.pixels.size:
        return ahead
    k = ahead.scale * g.step
    n = math.ceil(reach / k)
    size = len(g.u) - 2 + 2 * n, len(g.v) - 2 + 2 * n
    x0, y0 = ahead.x - k * (size[0] - 1) / 2, ahead.y - k * (size[1] - 1) / 2
    matrix = np.array([[k, 0, x0 - part.left], [0, k, y0 - part.top]], np.float64) / part.shrink
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    field = cv2.warpAffine(part.pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inner = np.s_[1:-1, 1:-1]  # without the ring round the box
    mask = None if mask is None else mask[inner]
    like = np.asarray(cv2.matchTemplate(field, layer.patch[inner], cv2.TM_CCOEFF_NORMED, mask=mask))
    if mask is not None:
        like[~np.isfinite(like) | (like > 1.001)] = -1  # where there is no contrast under the mask
    row, column = np.unravel_index(int(np.argmax(like)), like.shape)
    dx, dy = (_peak(line, int(at)) for line, at in ((like[row], column), (like[:, column], row)))
    return Pose(ahead.scale, ahead.x + k * (int(column) - n + dx), ahead.y + k * (int(row) - n + dy))


def _peak(line: Grey, at: int) -> float:
    """How far from a line's highest value its peak is, −0.5 to 0.5, by the parabola through it and its neighbours."""
    if not 0 < at < len(line) - 1:
        return 0.0
    before, here, after = line[at - 1 : at + 2].tolist()
    bend = before - 2 * here + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def box_at_pose(pose: Pose, size: tuple[float, float]) -> Box:
    """The known box of `size` (width, height in px) at a pose."""
    w, h = size[0] * pose.scale / 2, size[1] * pose.scale / 2
    return pose.x - w, pose.y - h, pose.x + w, pose.y + h


def occluding_boxes(box: Box, others: Sequence[Box], frame: Image) -> list[Box]:
    """Those of the others' boxes that hide some of a box: on flat ground, what reaches further down is nearer.

    One that has more than half of the union in common is taken for the same vehicle's, and one over nearly the whole
    image for the scene's: these hide nothing.
    """
    (width, height), bottom = frame.shape[1::-1], box[3]
    lower = [o for o in others if o[3] > bottom and intersection_area(box, o) > 0 and not same_vehicle(box, o)]
    return [o for o in lower if (o[2] - o[0]) * (o[3] - o[1]) < SCENE * width * height]


def same_vehicle(box: Box, other: Box) -> bool:
    """Whether two boxes have at least half of their union in common, and are taken for one vehicle's."""
    (w, h), (w0, h0), shared = box_size(box), box_size(other), intersection_area(box, other)
    return shared >= SAME * (w * h + w0 * h0 - shared)


def intersection_area(box: Box, other: Box) -> float:
    """The area that two boxes share, px²."""
    across, down = (max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    return across * down


def box_size(box: Box) -> tuple[float, float]:
    """A box's width and height, px."""
    return box[2] - box[0], box[3] - box[1]


def fits_in_frame(pose: Pose, grid: PointGrid, frame: Image) -> bool:
    """Whether the box is large enough and enough of it inside the image."""
    height, width = frame.shape[:2]
    w, h = grid.width * pose.scale, grid.height * pose.scale
    if min(w, h) < SMALLEST:
        return False
    inside = overlap(pose.x - w / 2, pose.x + w / 2, width) * overlap(pose.y - h / 2, pose.y + h / 2, height)
    return inside >= VISIBLE * w * h


def overlap(low: float, high: float, size: int) -> float:
    """How much of low … high lies on `size` pixels, the centre of the first at 0."""
    return max(0.0, min(high, size - 0.5) - max(low, -0.5))
