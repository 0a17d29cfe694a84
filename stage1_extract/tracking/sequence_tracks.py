"""The tracks of a sequence's vehicles, from frames in memory or read on demand within bounded memory."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box, FrameSequence
from features.tracks import Track, track_keys, tracked_vehicles
from stage1_extract.datasets.clip import Clip
from stage1_extract.tracking.tracker import track_known_boxes

SHORT_SEQUENCE = 64  # frames: a sequence up to here is held whole while its vehicles are followed
FRAMES_PER_READ = 32  # frames read at a time from a longer one
MAX_GREY_BYTES = 256 << 20  # bytes of its grey frames that are held at most


def to_grey(image: Image) -> Image:
    """A BGR frame as the tracker takes it."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def track_vehicles(sequence: FrameSequence, frames: Sequence[Image]) -> dict[str, Track]:
    """Each vehicle's track by its key; all of them go through the frames in the order of the boxes.

    The nearer of two that are known in the same frame comes first, and hides of the other what its track covers.
    """
    tracks: dict[str, Track] = {}
    boxes: defaultdict[int, list[Box]] = defaultdict(list)
    named = dict(zip(track_keys(sequence), tracked_vehicles(sequence), strict=True))
    for name, vehicle in sorted(named.items(), key=lambda item: (item[1].known_boxes[0][0], -item[1].known_boxes[0][1][3])):
        track = tracks[name] = track_known_boxes(frames, dict(vehicle.known_boxes), boxes)
        for i in np.flatnonzero(found_in_frame(track)).tolist():
            left, top, right, bottom = track.boxes[i].tolist()
            boxes[i].append((left, top, right, bottom))
    return tracks


def track_clips(
    clips: Mapping[str, Clip], lost: Iterable[str], threads: int
) -> Iterator[tuple[str, dict[str, Track] | str]]:
    """Per sequence id the tracks of its vehicles, or what could not be decoded, in order; frames are read on demand."""
    pool = ThreadPoolExecutor(threads, "track")
    one = ThreadPoolExecutor(1, "track-in-order")  # a video must be read in order
    pending: deque[tuple[str, Future[dict[str, Track] | str]]] = deque()
    try:
        for name in lost:
            if len(pending) > 2 * threads:
                yield pending[0][0], pending.popleft()[1].result()
            executor = pool if clips[name].source.parallel else one
            pending.append((name, executor.submit(_tracked, clips[name])))
        while pending:
            yield pending[0][0], pending.popleft()[1].result()
    finally:
        for executor in (pool, one):
            executor.shutdown(wait=True, cancel_futures=True)


def _tracked(clip: Clip) -> dict[str, Track] | str:
    try:
        return track_vehicles(clip.sequence, LazyGreyFrames(clip))
    except DataError as e:
        return str(e)


def found_in_frame(track: Track) -> NDArray[np.bool_]:
    """(T,) whether the vehicle was found in a frame."""
    return np.asarray(np.isfinite(track.boxes[:, 0]))


def empty_track_notes(sequences: Sequence[FrameSequence], tracks: Mapping[str, Track]) -> list[str]:
    """A line on the vehicles that were found in no frame but those their boxes were given for, if there are any."""
    named = [(s, v, name) for s in sequences for name, v in zip(track_keys(s), tracked_vehicles(s), strict=True)]
    every = [(s, v, tracks[name]) for s, v, name in named if name in tracks]
    alone = [(s, v) for s, v, t in every if len(v.known_boxes) < s.length and found_in_frame(t).sum() <= len(v.known_boxes)]
    if not alone:
        return []
    s, v = alone[0]
    return [
        f"{len(alone)} of {len(every)} vehicles could not be followed, their tracks are empty but for the boxes given: "
        "outside the image, under 6 px, without contrast, or hidden by others "
        f"(the first: {s.id} frame {v.known_boxes[0][0]})"
    ]


def missing_frame_notes(sequences: Sequence[FrameSequence]) -> list[str]:
    """A line on the boxes that hold for frames outside their sequences, if there are any."""
    outside = [(s, x) for s in sequences for x in s.labels if x.box is not None and not 0 <= x.frame < s.length]
    if not outside:
        return []
    s, label = outside[0]
    return [
        f"{len(outside)} boxes hold for frames that aren't there, and have no tracks "
        f"(the first: {s.id} frame {label.frame} of {s.length})"
    ]


class LazyGreyFrames(Sequence[Image]):
    """A clip's grey frames, read in blocks when they are asked for; the blocks used last are held.

    Frames that nobody asks for are never read. A source that must be read in order goes back to its beginning for
    every step back, so it reads as many blocks before the one asked for as may be held.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        width, height = clip.sequence.size
        self._most = max(2, MAX_GREY_BYTES // (FRAMES_PER_READ * width * height))
        self._blocks: OrderedDict[int, list[Image]] = OrderedDict()
        self._last = -1

    def __len__(self) -> int:
        return self._clip.sequence.length

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...
    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        """Raises DataError where a frame can't be decoded."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = index // FRAMES_PER_READ
        if block not in self._blocks:
            back = block < self._last and not self._clip.source.parallel
            self._read(max(0, block - self._most + 2) if back else block, block)  # the newest one stays
        self._blocks.move_to_end(block)
        self._last = block
        return self._blocks[block][index % FRAMES_PER_READ]

    def _read(self, first: int, last: int) -> None:
        start, stop = first * FRAMES_PER_READ, min((last + 1) * FRAMES_PER_READ, len(self))
        for i, image in enumerate(self._clip.source.read(start, stop), start):
            if i % FRAMES_PER_READ == 0:
                self._blocks.pop(i // FRAMES_PER_READ, None)
                self._blocks[i // FRAMES_PER_READ] = []
                while len(self._blocks) > self._most:
                    self._blocks.popitem(last=False)
            self._blocks[i // FRAMES_PER_READ].append(to_grey(image))
