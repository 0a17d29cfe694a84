"""The overlay: a video with the predicted values, and how they went over the last seconds, drawn on each frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import DataError
from features.sequences import Box, FrameSequence

Values = NDArray[np.float32]
SECONDS = 5.0  # of the strip chart
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE = (255, 255, 255)
COLOURS = ((80, 200, 255), (255, 190, 90), (140, 230, 140), (200, 140, 255))  # BGR, one a target


def write_overlay(
    path: Path,
    images: Iterable[Image],
    sequence: FrameSequence,
    first: int,
    values: Values,
    columns: Sequence[tuple[str, str]],
) -> None:
    """Write an MP4 (mp4v) of the images' size and rate; frames before the first value show `...` in its place.

    mp4v has even sizes: an odd width or height loses its last column or row.

    Args:
        path: where to, whatever its ending.
        images: uint8 BGR, all of `sequence.size`.
        sequence: says size, rate and length.
        first: the frame that values[0] belongs to.
        values: (n, K), one row a frame from `first` on.
        columns: name and unit of each of the K.

    Raises:
        DataError: cv2 cannot write it, or an image cannot be read.
    """
    span = max(2, round(SECONDS * sequence.fps))
    limits = (min(0.0, float(values.min())), max(0.0, float(values.max())))
    with open_overlay(path, sequence) as write_frame:
        for i, image in enumerate(images):
            frame = image.copy()
            now = i - first + 1
            draw_values(frame, values[max(0, now - span) : max(0, now)], span, columns, limits)
            write_frame(frame)


@contextmanager
def open_overlay(path: Path, sequence: FrameSequence) -> Iterator[Callable[[Image], object]]:
    """What takes the frames of an MP4, one after the other; `path` appears when all are written.

    Raises:
        DataError: cv2 cannot write it.
    """
    whole = path.with_suffix(".mp4")  # cv2 goes by the ending
    size = (sequence.size[0] & ~1, sequence.size[1] & ~1)
    try:
        fourcc = cv2.VideoWriter.fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(whole), cv2.CAP_FFMPEG, fourcc, sequence.fps, size)
        if not writer.isOpened():
            raise DataError(f"{path.parent}: cv2 cannot write an MP4 there", got=f"{size[0]}x{size[1]}")
        try:
            yield lambda frame: writer.write(np.ascontiguousarray(frame[: size[1], : size[0]]))
        finally:
            writer.release()
        _verify(whole, sequence.length)  # cv2 says nothing of a full disk
        whole.replace(path)
    finally:
        whole.unlink(missing_ok=True)


def draw_values(
    image: Image, recent: Values, span: int, columns: Sequence[tuple[str, str]], limits: tuple[float, float]
) -> None:
    """Draw a panel with the last of the values and their course on an image, in place.

    Args:
        image: uint8 BGR (height, width, 3).
        recent: (n ≤ span, K) values up to now; none before the first window is full.
        span: values that fill the chart's width.
        columns: name and unit of each of the K.
        limits: lowest and highest value of the chart.
    """
    height, width = image.shape[:2]
    scale = max(0.3, min(height / 720, width / 1280) * 1.1)
    line, margin = round(38 * scale), round(14 * scale)
    thick = max(1, round(2 * scale))
    texts = [
        f"{name} {value:+.1f} {unit}".rstrip()
        for (name, unit), value in zip(columns, recent[-1] if len(recent) else [], strict=False)
    ] or [f"{name} ..." for name, _ in columns]
    widest = max(f"{name} -000.0 {unit}" for name, unit in columns)
    inner = max(cv2.getTextSize(text, FONT, scale, thick)[0][0] for text in (widest, *texts))
    chart = 2 * line
    right, bottom = inner + 3 * margin, len(texts) * line + chart + 3 * margin
    panel = image[margin:bottom, margin:right]
    panel[:] = panel // 4  # darkened, so that the road shows through
    for k, text in enumerate(texts):
        at = (2 * margin, margin + (k + 1) * line)
        cv2.putText(image, text, at, FONT, scale, COLOURS[k % len(COLOURS)], thick, cv2.LINE_AA)
    low, high = limits
    top, left = bottom - margin - chart, 2 * margin

    def place(value: Values | float) -> NDArray[np.float64]:
        return np.asarray(top + chart * (high - np.asarray(value, np.float64)) / max(high - low, 1e-9))

    zero = int(place(0.0))
    cv2.line(image, (left, zero), (left + inner, zero), WHITE, 1)
    x = left + inner * (span - len(recent) + np.arange(len(recent))) / (span - 1)
    for k in range(recent.shape[1]):
        points = np.stack([x, place(recent[:, k])], axis=1).round().astype(np.int32)
        if len(points):
            cv2.polylines(image, [points], False, COLOURS[k % len(COLOURS)], thick, cv2.LINE_AA)


def draw_box(image: Image, box: Box, texts: Sequence[str], number: int) -> None:
    """Draw a vehicle's box with lines of text under it (above it, where there is no room) on an image, in place."""
    height, width = image.shape[:2]
    scale = max(0.3, min(height / 720, width / 1280) * 0.8)
    thick, line, colour = max(1, round(2 * scale)), round(30 * scale), COLOURS[number % len(COLOURS)]
    left, top, right, bottom = (round(side) for side in box)
    cv2.rectangle(image, (left, top), (right, bottom), colour, thick)
    below = bottom + len(texts) * line < height
    for k, text in enumerate(texts):
        y = bottom + (k + 1) * line if below else top - (len(texts) - 1 - k) * line - line // 3
        wide = cv2.getTextSize(text, FONT, scale, thick)[0][0]
        x = min(max(0, left), max(0, width - wide))
        cv2.putText(image, text, (x, y), FONT, scale, (0, 0, 0), 3 * thick, cv2.LINE_AA)
        cv2.putText(image, text, (x, y), FONT, scale, colour, thick, cv2.LINE_AA)


def _verify(path: Path, length: int) -> None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if written != length:
        raise DataError(
            f"{path.parent}: the overlay could not be written whole",
            expected=f"{length} frames",
            got=max(written, 0),
            hint="see that the disk has room",
        )
