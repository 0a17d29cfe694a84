"""Frames decoded and resized in threads, ahead of the network, in order and within bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Listed
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from features.config import Frames
from features.errors import DataError
from features.pieces import Piece
from stage1_extract.clips import Clip, Image

RANGE = 8  # frames a job: long enough to keep the threads busy, short enough to keep memory flat
AHEAD = 4  # jobs a thread in flight
THUMBNAIL_WIDTH, THUMBNAIL_QUALITY = 160, 80
INTERPOLATION = {"cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}


@dataclass(frozen=True)
class Decoded:
    """Some frames of a piece, (n, height, width, 3) uint8, with their thumbnails; blank where there is a fault."""

    piece: int
    frames: Image
    thumbnails: list[bytes]
    fault: str | None = None


def decode(pieces: Listed[Piece], clips: Mapping[str, Clip], frames: Frames, threads: int) -> Iterator[Decoded]:
    """The pieces' frames in order, `RANGE` at a time. A frame that cannot be decoded gives a fault in its place."""
    pool = ThreadPoolExecutor(threads, "decode", initializer=_give_way)
    # a video must be read in order: one thread, first come first served
    one = ThreadPoolExecutor(1, "decode-in-order", initializer=_give_way)
    pending: deque[Future[Decoded]] = deque()
    try:
        for i, piece in enumerate(pieces):
            source = clips[piece.sequence].source
            for start in range(piece.start, piece.stop, RANGE):
                if len(pending) >= AHEAD * threads:
                    yield pending.popleft().result()
                stop = min(start + RANGE, piece.stop)
                executor = pool if source.parallel else one
                pending.append(executor.submit(_decode, i, clips[piece.sequence], start, stop, frames))
        while pending:
            yield pending.popleft().result()
    finally:
        for executor in (pool, one):
            executor.shutdown(wait=True, cancel_futures=True)


def resize(image: Image, frames: Frames) -> Image:
    """A BGR image of any size → (height, width, 3) uint8 in the recipe's size and colour order."""
    size = (frames.width, frames.height)
    if image.shape[1::-1] != size:
        image = cv2.resize(image, size, interpolation=INTERPOLATION[frames.interpolation])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if frames.colour == "rgb" else image


def thumbnail(image: Image, colour: str) -> bytes:
    """A small JPEG of a resized frame."""
    height = max(1, round(THUMBNAIL_WIDTH * image.shape[0] / image.shape[1]))
    small = cv2.resize(image, (THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    if colour == "rgb":
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY])[1].tobytes()


def _give_way() -> None:
    """Let this thread run where the network leaves a core idle; on a CPU the two would else get in each other's way."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # of this thread alone, on Linux


def _decode(index: int, clip: Clip, start: int, stop: int, frames: Frames) -> Decoded:
    out = np.zeros((stop - start, frames.height, frames.width, 3), np.uint8)
    try:
        for i, image in enumerate(clip.source.read(start, stop)):
            out[i] = resize(image, frames)
    except DataError as e:
        return Decoded(index, np.zeros_like(out), [b""] * len(out), str(e))
    return Decoded(index, out, [thumbnail(image, frames.colour) for image in out])
