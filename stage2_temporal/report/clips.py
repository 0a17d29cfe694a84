"""The clips that the report shows, and their frames, each embedded once and within a budget."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from features._common.plain_text import one_line
from features.errors import DataError
from features.store import Store
from stage2_temporal.runs.results import PredictedExample

STRIP_LENGTH = 8  # frames that a filmstrip shows at most
FRAME_WIDTH = 160  # drawing units across a frame
BUDGET = 5_000_000  # characters for frames; the rest of the page stays well below 3 MB
Rectangle = tuple[float, float, float, float]  # left, top, width, height in drawing units


@dataclass(frozen=True)
class ReportClip:
    """An example as the report shows it."""

    example: PredictedExample
    label_count: int  # number of labels in its sequence
    rows: tuple[int, ...]  # the store rows of its window's frames
    boxes: tuple[Rectangle | None, ...]  # the labelled vehicle's, in each of these frames; None where unknown
    height: float  # a frame's height in drawing units
    seconds: float  # from one of its frames to the next

    @property
    def strip(self) -> list[int]:
        """Positions of the filmstrip's frames: at most `STRIP_LENGTH`, evenly spread, with the first and the last."""
        return spread_evenly(len(self.rows), STRIP_LENGTH)


def pick_clips(examples: Iterable[PredictedExample], count: int, *, worst: bool) -> list[PredictedExample]:
    """Pick the examples with the largest (or smallest) errors, no two of which share a frame.

    Neighbouring windows of one sequence look nearly the same, so one of them is enough.
    """
    picked: list[PredictedExample] = []
    used_frames: set[tuple[str, int]] = set()
    for example in sorted(examples, key=lambda e: e.error, reverse=worst):
        if len(picked) == count:
            break
        frames = {(example.sequence, frame) for frame in example.frames}
        if not frames & used_frames:
            picked.append(example)
            used_frames |= frames
    return picked


def spread_evenly(length: int, count: int) -> list[int]:
    """At most `count` of `length` positions, evenly spread; the last is one of them, and the first if count > 1."""
    positions: list[int] = np.linspace(length - 1, 0, min(length, count)).round().astype(int).tolist()
    return positions[::-1]


def report_clip(example: PredictedExample, store: Store) -> ReportClip:
    """Look up an example's frames and boxes in the store.

    Raises:
        StoreError: the store lacks the sequence.
        DataError: the sequence has no such label or frames.
    """
    index = store.index(example.sequence)
    first, sequence = int(store.first[index]), store.sequences[index]
    if example.label >= len(sequence.labels) or example.frames[-1] >= sequence.length:
        name, last = one_line(example.sequence), example.frames[-1]
        what = f"predictions.csv: {name} has no label {example.label} or frame {last}"
        got = f"{len(sequence.labels)} labels, {sequence.length} frames"
        raise DataError(what, got=got, hint="train again with framebank train")
    left, top, right, bottom = sequence.visible_region
    return ReportClip(
        example=example,
        label_count=len(sequence.labels),
        rows=tuple(first + frame for frame in example.frames),
        boxes=tuple(_boxes(store, index, example)),
        height=FRAME_WIDTH * (bottom - top) / (right - left),
        seconds=example.stride / sequence.fps,
    )


def _boxes(store: Store, index: int, example: PredictedExample) -> Iterator[Rectangle | None]:
    """The tracked box in each frame, or without a track the label's box in its frame."""
    sequence = store.sequences[index]
    track = store.track(index, example.label) if store.track_keys else None  # looking it up is slow in a long video
    label_box = sequence.labels[example.label].box
    for frame in example.frames:
        box: Sequence[float] | None = label_box if frame == example.frame else None
        if track is not None:
            box = track.boxes[frame].tolist()
        if box is None or not all(map(math.isfinite, box)):
            yield None
        else:
            first_column, first_row, last_column, _ = sequence.visible_region
            scale = FRAME_WIDTH / (last_column - first_column)
            left, right = (scale * (v - first_column) for v in box[::2])
            top, bottom = (scale * (v - first_row) for v in box[1::2])
            yield round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)


def embed_frames(rows: Iterable[int], store: Store, budget: int = BUDGET) -> dict[int, str]:
    """Frames of a store as data URIs by row, in this order until the budget is used up."""
    uris: dict[int, str] = {}
    for row in dict.fromkeys(rows):
        uri = "data:image/jpeg;base64," + base64.b64encode(store.thumbnail(row)).decode()
        budget -= len(uri)
        if budget < 0:
            break
        uris[row] = uri
    return uris


def frames_by_turns(clips: Sequence[ReportClip]) -> Iterator[int]:
    """Rows of all frames of the clips: the last of each clip, then more of each, evenly spread, at last all of them."""
    longest = max((len(c.rows) for c in clips), default=0)
    for doublings in range(longest.bit_length() + 1):
        for c in clips:
            yield from (c.rows[position] for position in spread_evenly(len(c.rows), 2**doublings))
