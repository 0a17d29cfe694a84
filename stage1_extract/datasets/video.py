"""Videos with one label per frame in a file beside them, as in comma.ai's speed challenge: `train.mp4`, `train.txt`."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from features._common.csv_table import read_csv_table
from features._common.types import Image, Size
from features.config import DataConfig
from features.errors import DataError
from features.sequences import FrameSequence, Label
from stage1_extract.datasets.archive import list_folder
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.datasets.faults import add_fault, error_to_fault
from stage1_extract.datasets.image_sequence import map_in_threads
from stage1_extract.datasets.label_csv import finite_number, read_label, read_number, target_columns

VIDEO_SUFFIXES = frozenset([".avi", ".hevc", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"])


class Video:
    """A video file, read frame by frame; threads may share it.

    Frames are read in order, without seeking, because a codec may land a few frames away from the one it seeks.
    Their number is `length`; `fps` is the rate in the header, NaN if it has none.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError if OpenCV cannot open the file or finds no frame."""
        self.path = path
        self._lock = threading.Lock()
        self._capture: cv2.VideoCapture | None = None
        self._next = 0
        self._early_end: int | None = None  # the first frame that could not be read, if reading has reached one
        capture = self._open()
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if math.isfinite(fps) and fps > 0 else math.nan
        first = capture.read()[1]
        if first is None:
            raise DataError(f"{path}: a video without frames", expected="at least one", got="0")
        self.size: Size = (first.shape[1], first.shape[0])
        self.length = self._count(capture)

    def frame(self, index: int) -> Image:
        """Read frame `index`, uint8 BGR of shape (height, width, 3).

        Going forward is cheap; going back reads the video from its beginning.

        Raises:
            DataError: the video ends before the frame, or the frame has the wrong size.
        """
        with self._lock:
            if self._early_end is not None and index >= self._early_end:
                raise self._ends_early(self._early_end)  # without reading up to there again
            if self._capture is None or index < self._next:
                self._capture, self._next = self._open(), 0
            image = None
            while self._next <= index:
                ok, image = self._capture.read() if self._next == index else (self._capture.grab(), None)
                if not ok:
                    self._early_end, self._capture = self._next, None
                    raise self._ends_early(self._next)
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

    def _ends_early(self, index: int) -> DataError:
        expected = f"{self.length} frames"
        return DataError(f"{self.path}: ends early", expected=expected, got=f"no frame {index}")

    def _open(self) -> cv2.VideoCapture:
        # the same backend on all systems; some others take the name for a pattern of image files
        capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise DataError(
                f"{self.path}: not a video that OpenCV can open", expected="a complete video", got="an error"
            )
        return capture

    def _count(self, capture: cv2.VideoCapture) -> int:
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        if 1 <= count < 2**31:
            # trust the header's count only if its last frame can be read and no frame follows
            capture.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
            if capture.read()[0] and not capture.grab():
                return int(count)
        capture, frames = self._open(), 0
        while capture.grab():
            frames += 1
        return frames


@dataclass(frozen=True)
class VideoFrames:
    """A `FrameSource` of a video's frames from `first` on, to be read in order."""

    video: Video
    first: int = 0
    parallel: bool = False

    def read(self, start: int, stop: int, min_size: Size | None = None) -> Iterator[Image]:
        """Read frames at full resolution; an error if the video ends early or its size changes."""
        return (self.video.frame(self.first + i) for i in range(start, stop))


def video_clips(data: DataConfig, threads: int) -> Catalogue:
    """Scan a video file or a folder of them.

    Raises:
        DataError: nothing at `data.path`, or no video in the folder.
    """
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"{path}: no such video or folder", hint="set data.path to a video or a folder of videos")
    files = [path / p.name for p in list_folder(path)] if path.is_dir() else [path]
    files = [f for f in files if f == path or (f.suffix.lower() in VIDEO_SUFFIXES and f.is_file())]
    if not files:
        expected = f"files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
        raise DataError(f"{path}: no videos", expected=expected, got="none", hint="set data.path to a video")
    clips, faults = [], []
    file_by_stem: dict[str, Path] = {}
    results = map_in_threads(lambda file: _clips(file, data), files, threads, unit="video")
    for file, (file_clips, file_faults) in zip(files, results, strict=True):
        faults += file_faults
        first = file_by_stem.setdefault(file.stem, file)
        if first == file:
            clips += file_clips
        else:
            add_fault(faults, f"{file}: two videos named {file.stem}", "one", f"{first.name} too")
    return Catalogue(tuple(clips), tuple(faults))


def split_of(stem: str) -> str:
    """The split of a video by its name: `val…` and `test…` name theirs, all others are training."""
    name = stem.lower()
    return "validation" if name.startswith("val") else "test" if name.startswith("test") else "train"


def _clips(file: Path, data: DataConfig) -> tuple[list[Clip], list[str]]:
    """The clips of a video and no faults, or no clips and its faults."""
    faults: list[str] = []
    try:
        video = Video(file)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        labels = _labels(file, video.length, faults)
    except DataError as e:
        return [], [*faults, error_to_fault(e)]
    except OSError as e:
        return [], [error_to_fault(DataError(f"{file}: cannot be read", got=e.strerror or e))]
    if faults:
        return [], faults
    fps = video.fps if math.isfinite(video.fps) else data.fps
    split = split_of(file.stem)
    clips = []
    for start in range(0, video.length, data.segment or video.length):
        id, clip_digest, stop = file.stem, digest, min(start + (data.segment or video.length), video.length)
        if data.segment is not None:
            id = f"{file.stem}/{start:05d}-{stop - 1:05d}"
            clip_digest = hashlib.sha256(f"{digest} {start} {stop}".encode()).hexdigest()
        clip_labels = tuple(replace(x, frame=x.frame - start) for x in labels if start <= x.frame < stop)
        sequence = FrameSequence(id, split, stop - start, fps, video.size, clip_digest, clip_labels)
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
        add_fault(faults, f"{video}: no labels", f"{text.name} or {table.name} beside it", "neither")
    return []


def _text_labels(path: Path, length: int, faults: list[str]) -> list[Label]:
    """Read one number per line: the car's own speed in m/s at each frame."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not text", expected="one number per line, in UTF-8", got=e) from None
    speeds = [finite_number(line) for line in lines]
    if wrong_lines := [i for i, speed in enumerate(speeds) if math.isnan(speed)]:
        first = wrong_lines[0]
        more = f", and {len(wrong_lines) - 1} more such lines" if len(wrong_lines) > 1 else ""
        add_fault(faults, f"{path}, line {first + 1}: not a number", "a finite number", repr(lines[first][:60]) + more)
    if len(lines) != length:
        _add_count_fault(faults, path, len(lines), length)
    return [Label(i, {"ego_speed": speed}) for i, speed in enumerate(speeds)]


def _table_labels(path: Path, length: int, faults: list[str]) -> list[Label]:
    """Read one row per frame; with a column `frame` (from 0), rows for any frames in any order."""
    table = read_csv_table(path, faults=faults)
    targets = target_columns(table.columns, "frame")
    labels = []
    if "frame" not in table.columns and len(table.rows) != length:
        _add_count_fault(faults, path, len(table.rows), length)
    for index, row in enumerate(table.rows):
        number = read_number(row, "frame", faults) if "frame" in table.columns else float(index)
        if "frame" in table.columns and not (number.is_integer() and 0 <= number < length):
            add_fault(faults, f"{row.where}: no such frame", f"0 … {length - 1}", repr(row.cells["frame"]))
        elif label := read_label(row, int(number), targets, faults):
            labels.append(label)
    return sorted(labels, key=lambda label: label.frame)


def _add_count_fault(faults: list[str], path: Path, labels: int, frames: int) -> None:
    add_fault(faults, f"{path}: {labels} labels for {frames} frames", f"{frames} labels", labels)
