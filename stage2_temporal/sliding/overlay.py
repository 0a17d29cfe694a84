"""Draw predictions on video frames: current values, their course over the last seconds, and vehicles' boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.console import progress_bar
from features._common.types import Floats, Image
from features.errors import DataError
from features.sequences import Box, FrameSequence
from features.streams import UNITS
from stage1_extract.datasets.clip import Clip
from stage2_temporal.evaluation.uncertainty import UncertainPredictions

CHART_SECONDS = 5.0
TICKS = Fraction(1000)  # per second: the resolution of timestamps of unevenly spaced frames
FONT = cv2.FONT_HERSHEY_SIMPLEX
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
COLOURS = ((80, 200, 255), (255, 190, 90), (140, 230, 140), (200, 140, 255))  # BGR, one per target or vehicle


def write_overlay(
    path: Path, clip: Clip, frames: NDArray[np.int64], predictions: UncertainPredictions, columns: Sequence[str]
) -> None:
    """Write an MP4 of a clip with the latest predicted values drawn on each frame; `...` before the first.

    The n `predictions` belong to `frames` (n,), ascending; `columns` are the names of the K targets. A DataError if the
    video cannot be written, or a frame cannot be read.
    """
    values = predictions.values
    count, times = clip.sequence.length, clip.sequence.frame_times
    predicted_at = times[frames]
    limits = min(0.0, float(values.min())), max(0.0, float(values.max()))
    with open_overlay(path, clip.sequence) as write_frame, progress_bar(count, "overlay", "frames") as progress:
        for i, image in enumerate(clip.source.read(0, count)):
            recent = slice(*np.searchsorted(predicted_at, (times[i] - CHART_SECONDS, times[i] + 1e-9)))
            texts = prediction_texts(predictions, recent.stop - 1 if recent.stop else None, columns)
            draw_values(image, values[recent], predicted_at[recent] - times[i], texts, limits)
            write_frame(image)
            progress.update()


@contextmanager
def open_overlay(path: Path, sequence: FrameSequence) -> Iterator[Callable[[Image], object]]:
    """Yield a function that appends a frame to an MP4, which appears when the block ends; a DataError if it cannot.

    The pixel format needs even sizes, so an odd width or height loses its last column or row.
    """
    width, height = (side & ~1 for side in sequence.size)
    rate = Fraction(sequence.fps).limit_denominator(1001) if sequence.times is None else TICKS
    ticks = np.round(sequence.frame_times * float(rate)).astype(int).tolist()
    try:
        with atomic_write(path) as temporary, av.open(f"file:{temporary}", "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate, options={"qmin": "2", "qmax": "4"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            timestamps = iter(ticks)

            def write_frame(image: Image) -> None:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="bgr24")
                frame.pts, frame.time_base = next(timestamps), 1 / rate
                container.mux(stream.encode(frame))

            yield write_frame
            container.mux(stream.encode())
    except av.FFmpegError as e:
        hint = "--overlay in another folder, or leave out --overlay"
        raise DataError(f"{path}: an MP4 of {width}x{height} cannot be written", got=e.strerror, hint=hint) from None


def draw_values(
    image: Image,
    recent: Floats,
    times: Floats,
    texts: Sequence[str],
    limits: tuple[float, float],
) -> None:
    """Draw lines of text about the current values, and a chart of the recent ones, on a BGR image, in place.

    Args:
        recent: (n, K) values up to the current ones.
        times: (n,) seconds from now of each, at most 0; `CHART_SECONDS` fill the chart's width.
        texts: see `prediction_texts`; those after the K-th are white.
        limits: the chart's lowest and highest value.
    """
    scale, thickness = _text_size(image, 1.1)
    line, margin = round(38 * scale), round(14 * scale)
    width = max(cv2.getTextSize(text, FONT, scale, thickness)[0][0] for text in texts)
    height = 2 * line
    left, top = 2 * margin, len(texts) * line + 2 * margin
    image[margin : top + height + margin, margin : left + width + margin] //= 4  # dark, but the road shows through
    for k, text in enumerate(texts):
        position = (left, margin + (k + 1) * line)
        colour = COLOURS[k % len(COLOURS)] if k < recent.shape[1] else WHITE
        cv2.putText(image, text, position, FONT, scale, colour, thickness, cv2.LINE_AA)
    low, high = limits

    def y(value: Floats | float) -> NDArray[np.float64]:
        return np.asarray(top + height * (high - np.asarray(value, np.float64)) / max(high - low, 1e-9))

    zero = int(y(0.0))
    cv2.line(image, (left, zero), (left + width, zero), WHITE, 1)
    x = left + width * (1 + times / CHART_SECONDS)
    for k in range(recent.shape[1] if len(recent) else 0):
        points = np.stack([x, y(recent[:, k])], axis=1).round().astype(np.int32)
        cv2.polylines(image, [points], False, COLOURS[k % len(COLOURS)], thickness, cv2.LINE_AA)


def draw_box(image: Image, box: Box, texts: Sequence[str], number: int, text_scale: float = 0.0) -> None:
    """Draw a vehicle's box on an image, in place, with lines of text below it, or above it where there is no room.

    The text has the size that suits the image, or `text_scale` times OpenCV's if that is larger.
    """
    height, width = image.shape[:2]
    scale, thickness = _text_size(image, 0.8)
    scale = max(scale, text_scale)
    line, colour = round(30 * scale), COLOURS[number % len(COLOURS)]
    left, top, right, bottom = (round(side) for side in box)
    cv2.rectangle(image, (left, top), (right, bottom), colour, thickness)
    below = bottom + len(texts) * line < height
    for k, text in enumerate(texts):
        y = bottom + (k + 1) * line if below else top - (len(texts) - 1 - k) * line - line // 3
        text_width = cv2.getTextSize(text, FONT, scale, thickness)[0][0]
        x = min(max(0, left), max(0, width - text_width))
        cv2.putText(image, text, (x, y), FONT, scale, BLACK, 3 * thickness, cv2.LINE_AA)
        cv2.putText(image, text, (x, y), FONT, scale, colour, thickness, cv2.LINE_AA)


def value_text(column: str, value: float | None) -> str:
    """Format a value with its target column's name and unit; `...` for None."""
    return f"{column} ..." if value is None else f"{column} {value:+.1f} {UNITS.get(column, '')}".rstrip()


def prediction_texts(predictions: UncertainPredictions, i: int | None, columns: Sequence[str]) -> list[str]:
    """A line per target about window i, or about none yet, and one more if it is unlike the training's footage."""
    if i is None:
        return [value_text(column, None) for column in columns]
    values = map(value_text, columns, predictions.values[i].tolist())
    texts = [f"{text}  {predictions.note(i, k)}".rstrip() for k, text in enumerate(values)]
    return [*texts, "unlike the training footage"] if predictions.is_unlike(i) else texts


def _text_size(image: Image, factor: float) -> tuple[float, int]:
    """Scale and thickness of text that suit an image."""
    height, width = image.shape[:2]
    scale = max(0.3, min(height / 720, width / 1280) * factor)
    return scale, max(1, round(2 * scale))
