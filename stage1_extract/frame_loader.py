"""Frames decoded in threads, ahead of the network, in order and within bounded memory; all that needs their pixels.

A frame is decoded once: resized for the trunk, its thumbnail, its flow and its vehicles' boxes come from the same pass.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.config import FramesConfig
from features.errors import DataError
from features.frame_ranges import FrameRange
from features.tracks import Track
from stage1_extract import optical_flow
from stage1_extract.datasets.clip import Clip
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE, to_grey, track_vehicles

FRAMES_PER_JOB = 4  # frames a job: long enough to keep the threads busy, short enough that they end a turn together
AHEAD, TURN = 8, 16  # ranges a thread in flight; where decoding and what follows take turns, ranges a thread and turn
TURN_FOLLOWING = 32  # where vehicles are followed a job is a whole clip, and a turn's end is waited for longer
COLOUR = 16  # frames: a sequence up to here is held as it was decoded while its vehicles are followed
THUMBNAIL_WIDTH, THUMBNAIL_QUALITY = 160, 80
INTERPOLATION = {"cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}

# following is many short steps in Python: two threads at it hand its lock to and fro, and take twice the CPU time
_FOLLOWING = threading.Lock()

FlowStrip = Future[
    Image | None
]  # what flow is computed from, of a job's last frame; None where it could not be decoded


@dataclass(frozen=True)
class LoadedFrames:
    """Some frames of a piece, (n, height, width, 3) uint8, with their thumbnails; blank where there is a fault.

    Attributes:
        motion: (n, …) entries of the motion stream, where asked for.
        tracks: of the vehicles asked for, by their keys.
    """

    range_index: int
    frames: Image
    thumbnails: list[bytes]
    fault: str | None = None
    motion: NDArray[Any] | None = None
    tracks: dict[str, Track] = field(default_factory=dict)


@dataclass
class DecodeOptions:
    """What is wanted of frames besides their resized pixels.

    Attributes:
        motion: entries of the motion stream.
        followed: ids of sequences whose vehicles are followed where a piece is a whole one of at most `SHORT_SEQUENCE` frames.
        strips: by sequence id, the frame after the last one decoded and the strip of that: pieces of one sequence
            may follow each other over several calls of `load_frames`, and no frame need be decoded again.
    """

    motion: bool = False
    followed: Collection[str] = ()
    strips: dict[str, tuple[int, FlowStrip]] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodeJob:
    """Frames start … stop − 1 of a piece's clip, and all that is to be made of them."""

    range_index: int
    clip: Clip
    start: int
    stop: int
    frames: FramesConfig
    motion: bool
    followed: bool
    before: FlowStrip | None  # of the frame before `start`, from the job before this one
    last: FlowStrip = field(default_factory=Future)


def load_frames(
    pieces: Sequence[FrameRange],
    clips: Mapping[str, Clip],
    frames: FramesConfig,
    threads: int,
    extras: DecodeOptions | None = None,
    *,
    turns: bool = False,
) -> Iterator[LoadedFrames]:
    """The pieces' frames in order, `FRAMES_PER_JOB` at a time. A frame that cannot be decoded gives a fault in its place.

    Args:
        threads: that decode.
        turns: whether they decode all that may wait before the first is given out, so that decoding and what is done
            with the frames take turns at the cores and their caches (a video is decoded as it comes all the same).
            Else the threads leave the cores to what else computes, see `_give_way`.
    """
    begin = None if turns else _give_way
    pool = ThreadPoolExecutor(threads, "decode", initializer=begin)
    # a video must be read in order: one thread, first come first served
    one = ThreadPoolExecutor(1, "decode-in-order", initializer=begin)
    pending: deque[tuple[int, Future[LoadedFrames]]] = deque()
    turns = turns and all(clips[piece.sequence].source.parallel for piece in pieces)
    extras = extras or DecodeOptions()
    turn = TURN_FOLLOWING if extras.followed else TURN
    most = (turn if turns else AHEAD) * threads * FRAMES_PER_JOB
    try:
        for job in _jobs(pieces, clips, frames, extras):
            count = job.stop - job.start
            while len(pending) >= threads and sum(n for n, _ in pending) + count > most:
                yield from _next(pending, turns)
            executor = pool if job.clip.source.parallel else one
            pending.append((count, executor.submit(_decode, job)))
        while pending:
            yield from _next(pending, turns)
    finally:
        for executor in (pool, one):
            executor.shutdown(wait=True, cancel_futures=True)


def _next(pending: deque[tuple[int, Future[LoadedFrames]]], turns: bool) -> Iterator[LoadedFrames]:
    """The first of those that wait; where they take turns, all of them once the last is there."""
    if turns:
        wait([promise for _, promise in pending])
    for _ in range(len(pending) if turns else 1):
        yield pending.popleft()[1].result()


def resize_frame(image: Image, frames: FramesConfig) -> Image:
    """A BGR image of any size → (height, width, 3) uint8 in the recipe's size and colour order."""
    size = (frames.width, frames.height)
    if image.shape[1::-1] != size:
        image = cv2.resize(image, size, interpolation=INTERPOLATION[frames.interpolation])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if frames.colour == "rgb" else image


def encode_thumbnail(image: Image, colour: str) -> bytes:
    """A small JPEG of a resized frame."""
    height = max(1, round(THUMBNAIL_WIDTH * image.shape[0] / image.shape[1]))
    small = cv2.resize(image, (THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    if colour == "rgb":
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])[1].tobytes()


def _jobs(
    pieces: Sequence[FrameRange], clips: Mapping[str, Clip], frames: FramesConfig, extras: DecodeOptions
) -> Iterator[DecodeJob]:
    for i, piece in enumerate(pieces):
        clip = clips[piece.sequence]
        together = piece.sequence in extras.followed and len(piece) == clip.sequence.length <= SHORT_SEQUENCE
        step = len(piece) if together else FRAMES_PER_JOB
        for start in range(piece.start, piece.stop, step):
            at, before = extras.strips.get(piece.sequence, (0, None))
            job = DecodeJob(
                i, clip, start, min(start + step, piece.stop), frames, extras.motion,
                together, before if at == start else None,
            )  # fmt: skip
            extras.strips.pop(piece.sequence, None)
            if job.stop < clip.sequence.length:
                extras.strips[piece.sequence] = job.stop, job.last
            yield job


def _give_way() -> None:
    """Let this thread run where the network leaves a core idle.

    TensorFlow's threads wait for each other within a layer, and one that a decoder displaces holds up all.
    """
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()  # of this thread alone, on Linux
        # relative to what the user chose: only root may go back from a nice of 15 to one of 10
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + 10))


def _decode(job: DecodeJob) -> LoadedFrames:
    out = np.zeros((job.stop - job.start, job.frames.height, job.frames.width, 3), np.uint8)
    try:
        strips, held = _read(job, out)
    except DataError as e:
        return _blank(job, str(e))
    finally:
        if not job.last.done():
            job.last.set_result(None)
    flow = None
    if job.motion:
        if job.before is not None:
            # the job before began before this one did, and sets it whatever happens
            strip = job.before.result()
            if strip is None:
                return _blank(job, f"{job.clip.sequence.id}: the frame before frame {job.start} could not be decoded")
            strips.insert(0, strip)
        flow = optical_flow.flow_entries(strips, begins=job.start == 0)[: len(out)]
    thumbnails = [encode_thumbnail(image, job.frames.colour) for image in out]
    tracks = {}
    if job.followed:
        with _FOLLOWING:
            tracks = track_vehicles(job.clip.sequence, held)
    return LoadedFrames(job.range_index, out, thumbnails, None, flow, tracks)


def _read(job: DecodeJob, out: Image) -> tuple[list[Image], list[Image]]:
    """Fill `out`; the strips for the flow of its frames as far as they are here, and frames to follow boxes in."""
    first, stop = job.start, job.stop
    if job.motion and job.start > 0 and job.before is None:
        first -= 1
    if job.motion and job.stop == 1:  # the first frame has the second's flow
        stop = min(2, job.clip.sequence.length)
    strips, held = [], []
    source, min_size, small = job.clip.source, job.frames.min_size, False
    if job.motion or job.followed:
        # what is decoded must not depend on what else is wanted of it; a video is decoded in full in any case
        if small := min_size is not None and source.parallel:
            out[:] = [resize_frame(image, job.frames) for image in source.read(job.start, job.stop, min_size)]
        min_size = None
    for i, image in enumerate(source.read(first, stop, min_size), first):
        if job.start <= i < job.stop and not small:
            out[i - job.start] = resize_frame(image, job.frames)
        if job.followed:
            if job.stop - job.start > COLOUR:  # else only what is round a vehicle is made grey, when it is looked at
                image = to_grey(image)
            held.append(image)
        if job.motion:
            strips.append(optical_flow.flow_strip(image))
            if i == job.stop - 1:
                job.last.set_result(strips[-1])
    return strips, held


def _blank(job: DecodeJob, fault: str) -> LoadedFrames:
    shape = (job.stop - job.start, job.frames.height, job.frames.width, 3)
    flow = np.zeros((shape[0], *optical_flow.FLOW_INFO.shape), optical_flow.FLOW_INFO.dtype) if job.motion else None
    return LoadedFrames(job.range_index, np.zeros(shape, np.uint8), [b""] * shape[0], fault, flow)
