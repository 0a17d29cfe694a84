"""Frames decoded in threads ahead of the network, in order, with a bounded number in memory.

Each frame is decoded once: the trunk's input, the thumbnail, optical flow and vehicle tracks all come from that pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.config import FramesConfig
from features.errors import DataError
from features.frame_ranges import FrameRange
from features.streams import GROUND_FLOW
from features.tracks import Track
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.image_sequence import with_digest
from stage1_extract.frame_pairs import PairInputs, blank_entries, needed_frames, pair_entries, pair_inputs
from stage1_extract.ground_flow import speed_curve
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE, to_grey, track_vehicles

FRAMES_PER_JOB = 4
MAX_JOBS_PER_THREAD = 16  # decoded or being decoded, ahead of the network
MAX_COLOUR_FRAMES = 16  # longer sequences are kept in grey while their vehicles are tracked, to save memory
THUMBNAIL_WIDTH, THUMBNAIL_QUALITY = 160, 80
INTERPOLATION = {"cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}

# tracking is many short steps in Python: two threads that do it compete for the interpreter's lock and take twice the
# CPU time
_TRACKING_LOCK = threading.Lock()

LastInputs = Future[PairInputs | None]  # of a job's last frame; None if that could not be decoded


@dataclass(frozen=True)
class LoadedFrames:
    """Consecutive frames of a range; blank if there is a fault."""

    range_index: int
    frames: Image  # (n, height, width, 3), the trunk's input
    thumbnails: list[bytes]  # n JPEGs
    fault: str | None = None  # why they could not be decoded
    pairs: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # (n, …) entries of the requested pair streams
    tracks: dict[str, Track] = field(default_factory=dict)  # of the requested vehicles, by their keys


@dataclass(frozen=True)
class DecodeJob:
    """Frames `start` … `stop` − 1 of a clip, and what to compute from them."""

    range_index: int
    clip: Clip
    start: int
    stop: int
    frames: FramesConfig
    pair_streams: Sequence[str]
    tracked: bool
    inputs_before: LastInputs | None  # of frame `start` − 1, from the previous job
    last_inputs: LastInputs = field(default_factory=Future)


def load_frames(
    ranges: Sequence[FrameRange],
    clips: Mapping[str, Clip],
    frames: FramesConfig,
    threads: int,
    *,
    pair_streams: Sequence[str] = (),
    tracked: Collection[str] = (),
    in_turns: bool = False,
) -> Iterator[LoadedFrames]:
    """Decode the ranges' frames, in order; frames that cannot be decoded come as blanks with a fault.

    Args:
        clips: sequence id → its clip.
        pair_streams: names of streams to compute from each frame and the one before it, see `frame_pairs`.
        tracked: ids of sequences whose vehicles are tracked, if a range is a whole one up to `SHORT_SEQUENCE`.
        in_turns: decode as many images as may wait before the first is returned. Decoding and a network that runs on
            the same processor then take turns, instead of displacing each other's data from its caches.
    """
    last_inputs: dict[str, tuple[int, LastInputs]] = {}  # sequence id → the next frame, and inputs of the one before

    def jobs() -> Iterator[DecodeJob]:
        for i, r in enumerate(ranges):
            clip = clips[r.sequence]
            track = r.sequence in tracked and len(r) == clip.sequence.length <= SHORT_SEQUENCE
            step = speed_curve.FRAMES_PER_HORIZON if GROUND_FLOW in pair_streams else FRAMES_PER_JOB
            starts = [r.start, *range((r.start // step + 1) * step, r.stop, step), r.stop]
            for start, stop in pairwise([r.start, r.stop] if track else starts):
                next_frame, inputs = last_inputs.pop(r.sequence, (0, None))
                inputs_before = inputs if next_frame == start else None
                job = DecodeJob(i, clip, start, stop, frames, pair_streams, track, inputs_before)
                if job.stop < clip.sequence.length:
                    last_inputs[r.sequence] = job.stop, job.last_inputs
                yield job

    parallel = ThreadPoolExecutor(threads, "decode")
    in_order = ThreadPoolExecutor(1, "decode-in-order")  # for videos, whose frames must be read in order
    max_frames = MAX_JOBS_PER_THREAD * threads * FRAMES_PER_JOB
    pending: deque[tuple[int, Future[LoadedFrames]]] = deque()
    try:
        for job in jobs():
            count = job.stop - job.start
            limit = max_frames - count
            if in_turns and job.clip.source.parallel and sum(n for n, _ in pending) > limit:
                wait([future for _, future in pending])
                limit = 0
            while len(pending) >= threads and sum(n for n, _ in pending) > limit:
                yield pending.popleft()[1].result()
            executor = parallel if job.clip.source.parallel else in_order
            pending.append((count, executor.submit(_decode, job)))
        while pending:
            yield pending.popleft()[1].result()
    finally:
        for executor in (parallel, in_order):
            executor.shutdown(wait=True, cancel_futures=True)


def resize_frame(image: Image, frames: FramesConfig, region: tuple[int, int, int, int] | None = None) -> Image:
    """Resize a BGR image, or a region of it, to (height, width, 3) in the recipe's size and colour order.

    Beyond the image's edges, the pixels at the edge are repeated.
    """
    size = (frames.width, frames.height)
    if region is not None:
        height, width = image.shape[:2]
        columns = np.clip(np.arange(region[0], region[2]), 0, width - 1)
        rows = np.clip(np.arange(region[1], region[3]), 0, height - 1)
        image = image[rows[:, None], columns]
    if image.shape[1::-1] != size:
        image = cv2.resize(image, size, interpolation=INTERPOLATION[frames.interpolation])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if frames.colour == "rgb" else image


def encode_thumbnail(image: Image, colour: str) -> bytes:
    """Make a small JPEG of a resized frame."""
    height = max(1, round(THUMBNAIL_WIDTH * image.shape[0] / image.shape[1]))
    small = cv2.resize(image, (THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    if colour == "rgb":
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])[1].tobytes()


def _decode(job: DecodeJob) -> LoadedFrames:
    out = np.zeros((job.stop - job.start, job.frames.height, job.frames.width, 3), np.uint8)
    try:
        inputs, first, images = _read(job, out)
    except DataError as e:
        return _blank(job, str(e))
    finally:
        if not job.last_inputs.done():
            job.last_inputs.set_result(None)
    pairs = {}
    if job.pair_streams:
        if job.inputs_before is not None:
            # no deadlock: the previous job started earlier, and always sets its result
            before = job.inputs_before.result()
            if before is None:
                return _blank(job, f"{job.clip.sequence.id}: the frame before frame {job.start} could not be decoded")
            if first == job.start:
                inputs, first = [before, *inputs], first - 1
        pairs = pair_entries(job.pair_streams, inputs, first, job.clip.sequence, job.start, job.stop)
    thumbnails = [encode_thumbnail(image, job.frames.colour) for image in out]
    tracks = {}
    if job.tracked:
        with _TRACKING_LOCK:
            tracks = track_vehicles(with_digest(job.clip).sequence, images)
    return LoadedFrames(job.range_index, out, thumbnails, None, pairs, tracks)


def _read(job: DecodeJob, out: Image) -> tuple[list[PairInputs], int, list[Image]]:
    """Fill `out` with the trunk's input; return the inputs of pairs from which frame on, and the frames to track in."""
    start, stop = needed_frames(job.pair_streams, job.clip.sequence, job.start, job.stop)
    if start == job.start - 1 and job.inputs_before is not None:
        start = job.start
    inputs: list[PairInputs] = []
    images = []
    source, min_size, filled, region = job.clip.source, job.frames.min_size, False, job.clip.sequence.region
    if job.pair_streams or job.tracked:
        # the trunk's input must be the same whatever else is computed; videos are always decoded at full size
        if min_size is not None and source.parallel:
            out[:] = [resize_frame(image, job.frames, region) for image in source.read(job.start, job.stop, min_size)]
            filled = True
        min_size = None
    for i, image in enumerate(source.read(start, stop, min_size), start):
        if job.start <= i < job.stop and not filled:
            out[i - job.start] = resize_frame(image, job.frames, region)
        if job.tracked:
            # short clips stay in colour: the tracker then converts only what surrounds a vehicle
            images.append(to_grey(image) if job.stop - job.start > MAX_COLOUR_FRAMES else image)
        if job.pair_streams:
            inputs.append(pair_inputs(job.pair_streams, image))
            if i == job.stop - 1:
                job.last_inputs.set_result(inputs[-1])
    return inputs, start, images


def _blank(job: DecodeJob, fault: str) -> LoadedFrames:
    shape = (job.stop - job.start, job.frames.height, job.frames.width, 3)
    pairs = blank_entries(job.pair_streams, shape[0])
    return LoadedFrames(job.range_index, np.zeros(shape, np.uint8), [b""] * shape[0], fault, pairs)
