"""Tracks of all vehicles of a sequence, from frames in memory or read on demand within bounded memory."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box, FrameSequence
from features.tracks import Track, track_keys, tracked_vehicles
from stage1_extract.datasets.clip import Clip
from stage1_extract.tracking.tracker import track_known_boxes

SHORT_SEQUENCE = 64  # frames; a sequence up to this length is kept in memory while its vehicles are tracked
FRAMES_PER_READ = 32  # of a longer sequence
MAX_GREY_BYTES = 256 << 20  # of a longer sequence's grey frames, kept at most


def to_grey(image: Image) -> Image:
    """Convert a BGR frame to grey, for the tracker."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def track_vehicles(sequence: FrameSequence, frames: Sequence[Image]) -> dict[str, Track]:
    """Track all vehicles of a sequence, by their keys. A track hides what it covers of the vehicles after it.

    They are tracked in order of the first frame with a known box, and of two in the same frame the nearer first.
    """
    tracks: dict[str, Track] = {}
    boxes: defaultdict[int, list[Box]] = defaultdict(list)
    known = {key: v.known_boxes for key, v in zip(track_keys(sequence), tracked_vehicles(sequence), strict=True)}
    for key in sorted(known, key=lambda k: (known[k][0][0], -known[k][0][1][3])):
        track = tracks[key] = track_known_boxes(frames, dict(known[key]), boxes)
        for i in np.flatnonzero(found_in_frame(track)).tolist():
            boxes[i].append(tuple(track.boxes[i].tolist()))
    return tracks


def track_clips(
    clips: Mapping[str, Clip], ids: Iterable[str], threads: int
) -> Iterator[tuple[str, dict[str, Track] | str]]:
    """Yield each id, in order, with its vehicles' tracks by key, or with the error if a frame cannot be decoded."""
    # by whether clips may be read in parallel; videos must be read in order
    pools = {True: ThreadPoolExecutor(threads, "track"), False: ThreadPoolExecutor(1, "track-in-order")}
    try:
        for id, future in [(id, pools[clips[id].source.parallel].submit(_track_clip, clips[id])) for id in ids]:
            yield id, future.result()
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)


def _track_clip(clip: Clip) -> dict[str, Track] | str:
    try:
        return track_vehicles(clip.sequence, LazyGreyFrames(clip))
    except DataError as e:
        return str(e)


def found_in_frame(track: Track) -> NDArray[np.bool_]:
    """Whether the vehicle was found in each frame, (T,)."""
    return np.asarray(np.isfinite(track.boxes[:, 0]))


def empty_track_notes(sequences: Sequence[FrameSequence], tracks: Mapping[str, Track]) -> list[str]:
    """Describe in one line the vehicles that were found in no frame but those with known boxes; empty if none."""
    vehicles = [
        (s, vehicle.known_boxes, found_in_frame(tracks[key]).sum())
        for s in sequences
        for key, vehicle in zip(track_keys(s), tracked_vehicles(s), strict=True)
        if key in tracks
    ]
    empty = [(s, known) for s, known, frames in vehicles if len(known) < s.length and frames <= len(known)]
    if not empty:
        return []
    s, known = empty[0]
    return [
        f"{len(empty)} of {len(vehicles)} vehicles could not be tracked beyond their known boxes: outside the image, "
        f"under 6 px, without contrast, or hidden by others (the first: {s.id} frame {known[0][0]})"
    ]


def missing_frame_notes(sequences: Sequence[FrameSequence]) -> list[str]:
    """Describe in one line the boxes of frames outside their sequences; empty if there are none."""
    outside = [(s, x) for s in sequences for x in s.labels if x.box is not None and not 0 <= x.frame < s.length]
    if not outside:
        return []
    s, label = outside[0]
    boxes = "1 box is for a frame" if len(outside) == 1 else f"{len(outside)} boxes are for frames"
    return [f"{boxes} outside the sequence, and not tracked (the first: {s.id} frame {label.frame} of {s.length})"]


class LazyGreyFrames(Sequence[Image]):
    """The grey frames of a clip, read in blocks on demand; the blocks used last are kept."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        width, height = clip.sequence.size
        self._max_blocks = max(2, MAX_GREY_BYTES // (FRAMES_PER_READ * width * height))
        self._blocks: OrderedDict[int, list[Image]] = OrderedDict()
        self._last = -1

    def __len__(self) -> int:
        return self._clip.sequence.length

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]  # no slices
        """Raises DataError if a frame cannot be decoded."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        block = index // FRAMES_PER_READ
        if block not in self._blocks:
            backwards = block < self._last and not self._clip.source.parallel
            # a source read in order starts again at its beginning for a step back, which therefore reads as many blocks
            # as may be kept; + 2: the block used last stays too
            self._read(max(0, block - self._max_blocks + 2) if backwards else block, block)
        self._blocks.move_to_end(block)
        self._last = block
        return self._blocks[block][index % FRAMES_PER_READ]

    def _read(self, first: int, last: int) -> None:
        start, stop = first * FRAMES_PER_READ, min((last + 1) * FRAMES_PER_READ, len(self))
        for i, image in enumerate(self._clip.source.read(start, stop), start):
            if i % FRAMES_PER_READ == 0:
                self._blocks.pop(i // FRAMES_PER_READ, None)
                self._blocks[i // FRAMES_PER_READ] = []
                while len(self._blocks) > self._max_blocks:
                    self._blocks.popitem(last=False)
            self._blocks[i // FRAMES_PER_READ].append(to_grey(image))
