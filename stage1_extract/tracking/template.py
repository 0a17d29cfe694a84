"""Templates: what a vehicle looks like in one frame, and how it is found in another."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from stage1_extract.tracking.boxes import area_inside, occluding_boxes

GRID_POINTS = (24, 64)  # points along the longer side of the coarse grid for searching, and the fine one for aligning
SEARCH_RADIUS = (20.0, 0.3)  # px, and in box sides, around the last position (the larger counts), because cameras shake
MIN_CORRELATION = 0.7  # a vehicle with less counts as lost
MIN_SIDE = 6.0  # px; smaller boxes count as lost
MIN_SHARE_IN_FRAME = 0.5  # of the box; one further outside counts as lost
MIN_UNHIDDEN_SHARE = 0.1  # of the box in the template's frame; a more hidden one cannot be tracked


@dataclass(frozen=True)
class TemplateLayer:
    """A template on one grid: grey levels, and how much each point counts."""

    grid: PointGrid
    patch: Grey
    trust: Grey


@dataclass(frozen=True)
class Template:
    """What a vehicle looks like in one frame."""

    scale: float  # in that frame, relative to the known box
    layers: tuple[TemplateLayer, ...]  # coarse for searching, and fine for aligning; a small box has only one
    partly_hidden: bool  # by another vehicle

    @classmethod
    def from_frame(
        cls, frame: Image, pose: Pose, size: tuple[float, float], other_boxes: Sequence[Box] = ()
    ) -> Template:
        """Take the template from a frame, at a pose relative to the known box of `size` (width, height in px)."""
        position = Pose(1.0, pose.x, pose.y)
        hidden = occluding_boxes(box_at_pose(pose, size), other_boxes, frame)
        layers: list[TemplateLayer] = []
        for points in GRID_POINTS:
            grid = make_grid(size[0] * pose.scale, size[1] * pose.scale, points)
            if not layers or grid.step < layers[-1].grid.step:  # a small box has one grid, with a point per pixel
                view = crop_view(frame, position, grid, 0.0)
                layers.append(TemplateLayer(grid, *sample_patch(view, grid, position, hidden)))
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
    view = crop_view(frame, start, coarse.grid, radius)
    # points that are hidden at the expected position count as hidden at all positions
    masked = hidden or template.partly_hidden
    mask = coarse.trust * sample_patch(view, coarse.grid, start, hidden)[1] if masked else None
    pose = search_template(view, coarse, start, radius, mask)
    if fine is not coarse:  # otherwise the view is blurred for this grid already
        view = crop_view(frame, pose, fine.grid, 0.2 * side)
    aligned = align_patch(view, fine.grid, fine.patch, fine.trust, pose, hidden)
    if aligned is None:
        return None
    pose, values, weight = aligned
    correlation = min(patch_correlation(values, fine.patch, weight), 1.0)
    if correlation < MIN_CORRELATION or not fits_in_frame(pose, fine.grid, frame):
        return None
    return Pose(pose.scale * template.scale, pose.x, pose.y), correlation


def search_template(view: FrameCrop, layer: TemplateLayer, expected: Pose, radius: float, mask: Grey | None) -> Pose:
    """Find the position of the highest correlation, at the expected scale, to a fraction of a grid step.

    Args:
        radius: how far from the expected position to search, px.
        mask: how much each of the layer's points counts; None: all the same, which takes half the time.
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
