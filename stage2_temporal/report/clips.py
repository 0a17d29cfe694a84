"""Which clips the report shows, and their frames."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Protocol

from features.sequences import Box, Sequence
from stage2_temporal.report.results import Example

STRIP = 8  # frames a filmstrip shows at most


class Rows(Protocol):
    """Whole numbers by position; an array of int64 is one."""

    def __getitem__(self, index: int, /) -> int: ...


class Frames(Protocol):
    """What the report needs of a store; `features.store.Store` has it."""

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """What is stored, in order."""

    @property
    def first(self) -> Rows:
        """Row of each sequence's first frame."""

    def index(self, sequence_id: str) -> int:
        """Position of a sequence in `sequences`."""

    def thumbnail(self, row: int) -> bytes:
        """A frame's small JPEG."""


@dataclass(frozen=True)
class Picture:
    """One frame of a filmstrip.

    Attributes:
        frame: 0-based in its sequence.
        uri: the JPEG as a data URI.
        box: left, top, width, height of the labelled vehicle in per cent of the frame, where it is known there.
    """

    frame: int
    uri: str
    box: Box | None


@dataclass(frozen=True)
class Clip:
    """An example with its frames; `labels` is how many its sequence has."""

    example: Example
    labels: int
    pictures: tuple[Picture, ...]


def pick(examples: Iterable[Example], count: int, *, worst: bool) -> list[Example]:
    """The `count` examples with the largest (or smallest) errors, no two of which share a frame.

    Neighbouring windows of one sequence are nearly one picture; the worst of them stands for all.
    """
    chosen: list[Example] = []
    taken: set[tuple[str, int]] = set()
    for example in sorted(examples, key=lambda e: e.error, reverse=worst):
        shown = {(example.sequence, frame) for frame in example.frames}
        if len(chosen) < count and not shown & taken:
            chosen.append(example)
            taken |= shown
    return chosen


def strip(frames: Listed[int]) -> list[int]:
    """At most `STRIP` of the frames, evenly spread, first and last among them."""
    if len(frames) <= STRIP:
        return list(frames)
    return [frames[round(i * (len(frames) - 1) / (STRIP - 1))] for i in range(STRIP)]


def clip(example: Example, store: Frames) -> Clip:
    """An example with its frames from the store's thumbnails."""
    index = store.index(example.sequence)
    first, sequence = int(store.first[index]), store.sequences[index]
    pictures = []
    for frame in strip(example.frames):
        uri = "data:image/jpeg;base64," + base64.b64encode(store.thumbnail(first + frame)).decode()
        pictures.append(Picture(frame, uri, _box(sequence, example.label) if frame == example.frame else None))
    return Clip(example, len(sequence.labels), tuple(pictures))


def _box(sequence: Sequence, label: int) -> Box | None:
    box = sequence.labels[label].box
    if box is None:
        return None
    (left, top, right, bottom), (width, height) = box, sequence.size
    return 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height
