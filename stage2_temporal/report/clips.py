"""Which clips the report shows, and what is known of each of their frames."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from features.sequences import FrameSequence
from features.tracks import Track
from stage2_temporal.runs.results import PredictedExample

STRIP = 8  # frames a filmstrip shows at most
WIDTH = 160  # units across a frame in every drawing on it
BoxRectangle = tuple[float, float, float, float]


class RowNumbers(Protocol):
    """Whole numbers by position; an array of int64 is one."""

    def __getitem__(self, index: int, /) -> int: ...


class ReportStore(Protocol):
    """What the report needs of a store; `features.store.Store` has it."""

    @property
    def sequences(self) -> tuple[FrameSequence, ...]:
        """What is stored, in order."""

    @property
    def first(self) -> RowNumbers:
        """Row of each sequence's first frame."""

    def index(self, sequence_id: str) -> int:
        """Position of a sequence in `sequences`."""

    def thumbnail(self, row: int) -> bytes:
        """A frame's small JPEG."""

    @property
    def track_keys(self) -> Collection[str]:
        """Keys of the tracks that are there."""

    def track(self, sequence: int, label: int) -> Track | None:
        """The path of the vehicle that a sequence's label is about, where it is known."""


@dataclass(frozen=True)
class ReportClip:
    """An example as the report shows it.

    Attributes:
        labels: how many its sequence has.
        rows: its frames' rows in the store, every one of its window's.
        boxes: left, top, width, height of the labelled vehicle in each of them, `WIDTH` units being the frame's
            width; None where it is not known.
        height: the frame's, in these units.
        seconds: between two of its frames.
    """

    example: PredictedExample
    labels: int
    rows: tuple[int, ...]
    boxes: tuple[BoxRectangle | None, ...]
    height: float
    seconds: float

    @property
    def strip(self) -> list[int]:
        """Positions of the frames its filmstrip shows: at most `STRIP`, evenly spread, first and last among them."""
        return spread_evenly(len(self.rows), STRIP)


def pick_clips(examples: Iterable[PredictedExample], count: int, *, worst: bool) -> list[PredictedExample]:
    """The `count` examples with the largest (or smallest) errors, no two of which share a frame.

    Neighbouring windows of one sequence are nearly one picture; the worst of them stands for all.
    """
    chosen: list[PredictedExample] = []
    taken: set[tuple[str, int]] = set()
    for example in sorted(examples, key=lambda e: e.error, reverse=worst):
        shown = {(example.sequence, frame) for frame in example.frames}
        if len(chosen) < count and not shown & taken:
            chosen.append(example)
            taken |= shown
    return chosen


def spread_evenly(length: int, count: int) -> list[int]:
    """At most `count` of `length` positions, evenly spread, the last among them and, of two or more, the first."""
    if length <= count:
        return list(range(length))
    return [round(i * (length - 1) / (count - 1)) for i in range(count)] if count > 1 else [length - 1]


def report_clip(example: PredictedExample, store: ReportStore) -> ReportClip:
    """An example with what the store knows of its frames.

    Raises:
        StoreError: the store lacks its sequence.
    """
    index = store.index(example.sequence)
    first, sequence = int(store.first[index]), store.sequences[index]
    return ReportClip(
        example,
        len(sequence.labels),
        tuple(first + frame for frame in example.frames),
        tuple(_boxes(store, index, example)),
        WIDTH * sequence.size[1] / sequence.size[0],
        example.stride / sequence.fps,
    )


def _boxes(store: ReportStore, index: int, example: PredictedExample) -> Iterable[BoxRectangle | None]:
    """The tracked box in each frame; without a track the label's own, on its frame."""
    sequence = store.sequences[index]
    track = store.track(index, example.label) if store.track_keys else None  # to look is slow in a long video
    given = sequence.labels[example.label].box
    for frame in example.frames:
        box: Sequence[float] | None = given if frame == example.frame else None
        if track is not None:
            box = track.boxes[frame].tolist()
        if box is None or not all(map(math.isfinite, box)):
            yield None
        else:
            left, top, right, bottom = (WIDTH * v / sequence.size[0] for v in box)
            yield round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)
