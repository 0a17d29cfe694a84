"""Geometry of boxes in a frame: left, top, right, bottom in px, with the centre of the first pixel at (0, 0)."""

from __future__ import annotations

from collections.abc import Sequence

from features._common.types import Image
from features.sequences import Box

SAME_VEHICLE_IOU = 0.5  # intersection over union from which two boxes count as one vehicle's
SCENE_SHARE = 0.9  # share of the image from which a box counts as the whole scene's


def box_size(box: Box) -> tuple[float, float]:
    """Width and height, px."""
    return box[2] - box[0], box[3] - box[1]


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
    (w, h), (w0, h0), shared = box_size(box), box_size(other), intersection_area(box, other)
    return shared >= SAME_VEHICLE_IOU * (w * h + w0 * h0 - shared)


def occluding_boxes(box: Box, other_boxes: Sequence[Box], frame: Image) -> list[Box]:
    """Those of the other vehicles' boxes that hide part of a box.

    On flat ground, a box that reaches further down is nearer. A box of the same vehicle, or over nearly the whole
    image, hides nothing.
    """
    (width, height), bottom = frame.shape[1::-1], box[3]
    nearer = [o for o in other_boxes if o[3] > bottom and intersection_area(box, o) > 0 and not same_vehicle(box, o)]
    return [o for o in nearer if (o[2] - o[0]) * (o[3] - o[1]) < SCENE_SHARE * width * height]
