"""Crops: each labelled vehicle as a sequence of its own, of whose frames the network sees the region of its box.

The region stays where it is over the sequence, so that the vehicle grows and moves within it. Frames far from the label
are left out of long sequences, in which the vehicle would leave the region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from features._common.types import Image
from features.recipe import json_digest
from features.sequences import Box, Label
from stage1_extract.datasets.clip import Catalogue, Clip, FrameSource

MAX_FRAMES = 64  # of a crop's sequence; a longer one ends at the label's frame


@dataclass(frozen=True)
class PartialSource:
    """The frames of a source from `first` on, always at full size, since a crop needs every pixel."""

    source: FrameSource
    first: int

    @property
    def parallel(self) -> bool:
        return self.source.parallel

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        return self.source.read(self.first + start, self.first + stop)


def crop_vehicles(catalogue: Catalogue, scale: float) -> Catalogue:
    """Replace each clip by one for each label with a box in it, whose region is `scale` times as large as the box.

    Their ids end in the label's number, counted from 1: `Train/12/1`. Labels of other vehicles keep only their boxes,
    which tell the tracker what may hide a vehicle.
    """
    clips = tuple(
        _crop(clip, i, frame, scale, box)
        for clip in catalogue.clips
        for i, frame, box in clip.sequence.labels_with_boxes()
    )
    return replace(catalogue, clips=clips)


def _crop(clip: Clip, index: int, frame: int, scale: float, box: Box) -> Clip:
    sequence = clip.sequence
    stop = sequence.length if sequence.length <= MAX_FRAMES else frame + 1
    first = max(0, stop - MAX_FRAMES)
    left, top, right, bottom = box
    x, y, width, height = (left + right) / 2, (top + bottom) / 2, scale * (right - left), scale * (bottom - top)
    corner = round(x - width / 2), round(y - height / 2)
    region = (*corner, corner[0] + max(1, round(width)), corner[1] + max(1, round(height)))

    def in_crop(i: int, other: Label) -> Label:
        moved = replace(other, frame=other.frame - first)
        return moved if i == index else replace(moved, targets={}, position=None)

    cropped = replace(
        sequence,
        id=f"{sequence.id}/{index + 1}",
        length=stop - first,
        digest=json_digest([sequence.digest, region, first]),
        labels=tuple(in_crop(i, other) for i, other in enumerate(sequence.labels)),
        region=region,
    )
    return Clip(cropped, PartialSource(clip.source, first))
