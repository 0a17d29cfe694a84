"""Video files with one label a frame beside them, as in comma.ai's speed challenge: `train.mp4` and `train.txt`."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from features._common.types import Image
from features.config import DataConfig
from features.errors import DataError
from features.sequences import FrameSequence, Label
from stage1_extract.datasets.archive import list_folder
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.datasets.image_sequence import as_error_line, error_line, map_in_threads
from stage1_extract.datasets.label_csv import read_label_csv

SUFFIXES = frozenset([".avi", ".hevc", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"])


class Video:
    """One video file, read frame by frame; threads may share it.

    Frames are reached by reading on, never by seeking: a codec's seek may land a few frames away.

    Attributes:
        path: the file.
        length: number of frames.
        fps: frames a second as the file says; NaN where it doesn't.
        size: width, height in pixels.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError where cv2 cannot open it or finds no frame."""
        self.path = path
        self._lock = threading.Lock()
        self._capture: cv2.VideoCapture | None = None
        self._next = 0
        self._end: int | None = None  # where reading came to an early end
        capture = self._begin()
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if math.isfinite(fps) and fps > 0 else math.nan
        first = capture.read()[1]
        if first is None:
            raise DataError(f"{path}: a video without frames", expected="at least one", got="0")
        self.size = (first.shape[1], first.shape[0])
        self.length = self._count(capture)

    def frame(self, index: int) -> Image:
        """Frame `index`, uint8 BGR of shape (height, width, 3); reading on is cheap, going back starts afresh.

        Raises:
            DataError: the video ends before it, or its size changes.
        """
        with self._lock:
            if self._end is not None and index >= self._end:
                raise self._early(self._end)  # without reading up to it again for every frame behind it
            if self._capture is None or index < self._next:
                self._capture, self._next = self._begin(), 0
            image = None
            while self._next <= index:
                wanted = self._next == index
                ok, image = self._capture.read() if wanted else (self._capture.grab(), None)
                if not ok:
                    self._end, self._capture = self._next, None
                    raise self._early(self._next)
                self._next += 1
            if self._next == self.length:
                self._capture = None  # closes the file
        assert image is not None
        height, width = image.shape[:2]
        if (width, height) != self.size:
            raise DataError(
                f"{self.path}: frame {index} has another size",
                expected=f"{self.size[0]}x{self.size[1]}",
                got=f"{width}x{height}",
            )
        return np.asarray(image, np.uint8)

    def _early(self, at: int) -> DataError:
        return DataError(f"{self.path}: ends early", expected=f"{self.length} frames", got=f"none at {at}")

    def _begin(self) -> cv2.VideoCapture:
        # one backend everywhere, and none that takes the name for a pattern of images
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise DataError(f"{self.path}: not a video cv2 can open", expected="a whole video file", got="an error")
        return capture

    def _count(self, capture: cv2.VideoCapture) -> int:
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if 1 <= count < 2**31:
            # the header's count stands where the frame it names last can be read and none follows it
            capture.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
            if capture.read()[0] and not capture.grab():
                return int(count)
        capture, frames = self._begin(), 0
        while capture.grab():
            frames += 1
        return frames


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video from `first` on: a `Source` to be read in order."""

    video: Video
    first: int = 0
    parallel: bool = False

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        """Frames start … stop − 1, uint8 BGR of shape (height, width, 3), always at full resolution.

        Raises:
            DataError: the video ends early, or its size changes.
        """
        return (self.video.frame(self.first + i) for i in range(start, stop))


def video_clips(data: DataConfig, threads: int) -> Catalogue:
    """The clips of a video file or of a folder of them.

    Raises:
        DataError: nothing at `data.path`, or no video in the folder.
    """
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"{path}: no such video or folder", hint="set data.path to a video or a folder of them")
    files = [path / p.name for p in list_folder(path)] if path.is_dir() else [path]
    files = [f for f in files if f == path or (f.suffix.lower() in SUFFIXES and f.is_file())]
    if not files:
        expected = f"files ending in {', '.join(sorted(SUFFIXES))}"
        raise DataError(f"{path}: no videos", expected=expected, got="none", hint="set data.path to a video")
    clips, faults = [], []
    stems: dict[str, Path] = {}
    results = map_in_threads(lambda f: _clips(f, data), files, threads, unit="video")
    for file, (found, wrong) in zip(files, results, strict=True):
        faults += wrong
        first = stems.setdefault(file.stem, file)
        if first == file:
            clips += found
        else:
            faults.append(error_line(f"{file}: two videos named {file.stem}", expected="one", got=f"{first.name} too"))
    return Catalogue(tuple(clips), tuple(faults))


def split_of(stem: str) -> str:
    """The split that a file's name says: `val…`, `test…`, anything else is training."""
    starts = (("val", "validation"), ("test", "test"))
    return next((split for start, split in starts if stem.lower().startswith(start)), "train")


def _clips(file: Path, data: DataConfig) -> tuple[list[Clip], list[str]]:
    """The clips of one video, or its faults."""
    faults: list[str] = []
    try:
        video = Video(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        labels = _labels(file, video.length, faults)
    except DataError as e:
        return [], [*faults, as_error_line(e)]
    except OSError as e:
        return [], [error_line(f"{file}: cannot be read", got=e.strerror or e)]
    if faults:
        return [], faults
    fps = video.fps if math.isfinite(video.fps) else data.fps
    split = split_of(file.stem)
    if data.segment is None:
        sequence = FrameSequence(file.stem, split, video.length, fps, video.size, digest, tuple(labels))
        return [Clip(sequence, VideoFrames(video))], []
    clips = []
    for start in range(0, video.length, data.segment):
        stop = min(start + data.segment, video.length)
        own = tuple(replace(x, frame=x.frame - start) for x in labels if start <= x.frame < stop)
        name = f"{file.stem}/{start:05d}-{stop - 1:05d}"
        part = hashlib.sha256(f"{digest} {start} {stop}".encode()).hexdigest()
        sequence = FrameSequence(name, split, stop - start, fps, video.size, part, own)
        clips.append(Clip(sequence, VideoFrames(video, start)))
    return clips, []


def _labels(video: Path, length: int, faults: list[str]) -> list[Label]:
    text, table = video.with_suffix(".txt"), video.with_suffix(".csv")
    if text.is_file() and table.is_file():
        raise DataError(f"{video}: two label files", expected="one", got=f"{text.name} and {table.name}")
    if text.is_file():
        return _text_labels(text, length, faults)
    if table.is_file():
        return _table_labels(table, length, faults)
    if split_of(video.stem) != "test":
        faults.append(
            error_line(f"{video}: no labels", expected=f"{text.name} or {table.name} beside it", got="neither")
        )
    return []


def _text_labels(path: Path, length: int, faults: list[str]) -> list[Label]:
    """One number a line: the own speed in m/s at each frame."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: no text", expected="one number a line, in UTF-8", got=e) from None
    labels, wrong = [], []
    for number, text in enumerate(lines, 1):
        try:
            speed = float(text)
        except ValueError:
            speed = math.nan
        if math.isfinite(speed):
            labels.append(Label(number - 1, {"ego_speed": speed}))
        else:
            wrong.append((number, text))
    if wrong:
        number, text = wrong[0]
        more = f", and {len(wrong) - 1} more such lines" if len(wrong) > 1 else ""
        what = f"{path}, line {number}: no number"
        faults.append(error_line(what, expected="a finite number", got=repr(text[:60]) + more))
    if len(lines) != length:
        faults.append(_count_fault(path, len(lines), length))
    return labels


def _table_labels(path: Path, length: int, faults: list[str]) -> list[Label]:
    """One row a frame; with a column `frame` (from 0) any frames, in any order, several rows a frame if need be."""
    table = read_label_csv(path, faults)
    targets = table.targets("frame")
    labels = []
    if "frame" not in table.columns and len(table.rows) != length:
        faults.append(_count_fault(path, len(table.rows), length))
    for index, row in enumerate(table.rows):
        number = row.number("frame", faults) if "frame" in table.columns else float(index)
        if "frame" in table.columns and not (number.is_integer() and 0 <= number < length):
            got = repr(row.cells["frame"])
            faults.append(error_line(f"{row.where}: no such frame", expected=f"0 … {length - 1}", got=got))
        elif label := row.label(int(number), targets, faults):
            labels.append(label)
    return sorted(labels, key=lambda label: label.frame)


def _count_fault(path: Path, rows: int, frames: int) -> str:
    return error_line(f"{path}: {rows} labels for {frames} frames", expected=f"{frames} labels", got=rows)
