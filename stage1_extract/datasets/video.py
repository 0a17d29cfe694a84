"""Videos with one label per frame in a file beside them, as in comma.ai's speed challenge: `train.mp4`, `train.txt`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from features._common.bounded_file import read_bounded, require_regular
from features._common.console import logger
from features._common.csv_table import CsvRow, CsvTable, read_csv_table, text_encoding
from features._common.types import Image, Size
from features.config import DataConfig
from features.errors import DataError
from features.limits import CSV_BYTES, CSV_CELLS, IMAGE_PIXELS, VIDEO_FRAMES
from features.sequences import FrameSequence, Label
from stage1_extract.datasets.archive import ReadablePath, file_version, list_folder
from stage1_extract.datasets.clip import Catalogue, Clip, add_fault, error_to_fault, frame_timing
from stage1_extract.datasets.image_sequence import map_in_threads
from stage1_extract.datasets.label_csv import read_label, read_number, target_columns
from stage1_extract.datasets.scan_cache import ScanCache
from stage1_extract.datasets.video_timing import LengthCheck, repair_timestamps

# of containers and raw streams, as FFmpeg names them
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "asf",
    "flv", "gif", "apng", "ogg", "ivf", "mxf", "dv", "mjpeg", "jpeg_pipe", "y4m", "yuv4mpegpipe", "nut", "av1", "obu",
)  # fmt: skip
SAME_TIME = 1e-6  # s
SQUARE = 0.01  # largest difference from 1 of the ratio of width and height of pixels that are taken as square
LARGEST_RATIO = 4.0  # of them, or its inverse: beyond it, the header is wrong
TRANSPORT_SUFFIXES = (".ts", ".mts", ".m2ts", ".m2t", ".tod")
TRANSPORT_SYNC, TRANSPORT_PACKETS = b"G", ((188, 0), (192, 4))  # bytes of a packet, and where its sync byte is
WITHOUT_LENGTH = "matroska,webm"  # which has timestamps even where its header was never finished
RECENT_FRAMES = 8  # that are kept, because the stream `ground_flow` looks at frames again
TRUNCATED_HINT = "copy the video again, or --data.allow_truncated true to use it as far as it goes"
_VIDEO_NAMES = (
    "3g2 3gp 264 265 asf avi divx flv h264 h265 hevc ivf m2t m2ts m2v m4v mjpeg mjpg mkv mod mov mp4 mpeg mpg mts mxf "
    "ogv tod ts vob webm wmv y4m"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO_NAMES.split())


class UnexpectedFramesError(Exception):
    """A video decodes to other frames than its packets announce, or is damaged, so only decoding tells its frames.

    Not an error of the user's, see `single_video.use_single_clip`.
    """


class VideoFacts(NamedTuple):
    """What decoding a video shows."""

    length: int  # number of frames
    size: Size  # width and height in px, as shown
    fps: float | None  # frame rate; None if neither the header nor timestamps tell it
    times: tuple[float, ...] | None  # (length,) seconds from the first frame on; None if evenly spaced


class Video:
    """A video file, decoded by FFmpeg frame by frame; threads may share it.

    Frames are read in order: a codec may land a few frames away from the one it seeks.

    Attributes:
        path: the file.
        facts: its length, size and timing.
    """

    def __init__(
        self, path: Path, *, allow_truncated: bool = False, facts: VideoFacts | None = None, by_packets: bool = False
    ) -> None:
        """Decode the video once, to count its frames and read their timestamps, unless these `facts` are known.

        Args:
            allow_truncated: use the frames up to where a video breaks off, and log how many these are.
            by_packets: take count and timestamps from the compressed packets, where these are complete and one a frame,
                instead of decoding. `frame` then raises UnexpectedFramesError where a frame is not as announced.

        Raises:
            DataError: the video is damaged, breaks off, has no frame, or changes its size.
        """
        self.path, self._allow_truncated, self._warned = path, allow_truncated, facts is not None
        self._size: Size = (0, 0) if facts is None else facts.size
        self._pixel_ratio = 1.0
        self._lock, self._frames = threading.Lock(), self._decode()
        self._recent: deque[tuple[int, av.VideoFrame]] = deque(maxlen=RECENT_FRAMES)
        self._announced = self._packet_times() if by_packets else None
        timestamps: Sequence[float | None] = self._announced or ()
        if facts is None and self._announced is None:
            timestamps = [frame.time for frame in self._frames]
        self.facts = facts or self._find_facts(timestamps)
        self._next = 0 if facts or self._announced else self.facts.length

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_video, (self.path, file_version(self.path), self._allow_truncated, self.facts)

    def _packet_times(self) -> list[float] | None:
        """The timestamps of all frames in s, by the packets; None where only decoding tells them.

        That is: damaged or truncated videos, packets without or with equal timestamps (raw streams, two fields of one
        picture), and codecs that pack several frames together.
        """
        try:
            with _open(self.path) as container:
                stream = _video_streams(container)[0]
                check = LengthCheck(container, stream)
                base, stamps = stream.time_base, []  # not the packets, which together are as large as the file
                for packet in check.read_packets():
                    if packet.size and not packet.is_discard:
                        if packet.is_corrupt or packet.pts is None or not base:
                            return None
                        stamps.append((float(packet.pts * base), float((packet.duration or 0) * base)))
                stamps.sort()
                times, duration = [time for time, _ in stamps], stamps[-1][1]
                complete = check.missing_seconds(len(times), times[-1], duration) <= 0 and not _is_cut(self.path)
            first = next(self._frames)  # which tells the size
            self._frames = self._decode()
        except (av.FFmpegError, DataError, IndexError, StopIteration):
            return None  # decoding says what is wrong
        steps = np.diff(times)
        announced = complete and first.time is not None and abs(first.time - times[0]) < SAME_TIME
        return times if announced and (steps > SAME_TIME).all() else None

    def _find_facts(self, timestamps: Sequence[float | None]) -> VideoFacts:
        if not timestamps:
            raise DataError(f"{self.path}: a video without frames", expected="at least one", got="0")
        with _open(self.path) as container:
            stream, *others = _video_streams(container)
            if others:
                width, height = self._size
                streams = f"{1 + len(others)} video streams"
                logger.info(f"{self.path}: {streams}, of which the first, {width}x{height}, is used.")
            if self._pixel_ratio != 1:
                shown = f"{self._size[0]}x{self._size[1]}"
                logger.info(f"{self.path}: its pixels are not square; its frames are used as they are shown, {shown}.")
            # a raw stream has no duration, and its rate and timestamps are FFmpeg's guess
            has_times = container.duration or container.format.name == WITHOUT_LENGTH
            rate = float(stream.guessed_rate or 0) if has_times else None
        fps, times = rate, None
        if rate is not None and len(timestamps) > 1:
            fps, times = self._timing(timestamps, rate)
        return VideoFacts(len(timestamps), self._size, fps, times)

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.facts.length

    def _timing(self, timestamps: Sequence[float | None], rate: float) -> tuple[float | None, tuple[float, ...] | None]:
        """The frame rate, and the frames' times if these differ from it by more than `EVEN` somewhere."""
        if any(t is None for t in timestamps):
            return rate or None, None
        seconds = np.array(timestamps, np.float64)
        if wrong := int((np.diff(seconds) <= 0).sum()):
            repaired = repair_timestamps(seconds) if rate else None  # without a rate, FFmpeg makes timestamps up
            how = "taken as evenly spaced" if repaired is None else "placed between or after their neighbours"
            count = "timestamps" if repaired is None else f"{wrong} of {len(seconds)} timestamps"
            logger.warning(f"{self.path}: its {count} do not increase; these frames are {how}")
            if repaired is None:
                return rate or None, None
            seconds = repaired
        return frame_timing(seconds, rate)

    def frame(self, index: int) -> Image:
        """Read frame `index`, uint8 BGR of shape (height, width, 3); a DataError if the video has changed.

        Going forward is cheap; going back further than `RECENT_FRAMES` reads the video from its beginning.
        """
        with self._lock:
            recent = next((frame for i, frame in self._recent if i == index), None)
            frame = recent or self._read_on(index)
        width, height = _shown_size(frame, self._pixel_ratio)
        image = frame.to_ndarray(format="bgr24", width=width, height=height, interpolation="BICUBIC")
        return np.ascontiguousarray(np.rot90(image, _quarter_turns(frame)))

    def _read_on(self, index: int) -> av.VideoFrame:
        """Decode up to a frame that is not among the recent ones."""
        if index < self._next:
            self._frames, self._next = self._decode(), 0
            self._recent.clear()
        frame = self._frame_after(index - self._next, index)
        if frame is None:
            raise DataError(f"{self.path}: ends early", expected=f"{self.length} frames", got=f"no frame {index}")
        self._next = index + 1
        if self._next == self.length:
            self._frames.close()  # frees the decoder
        self._recent.append((index, frame))
        return frame

    def _frame_after(self, skipped: int, index: int) -> av.VideoFrame | None:
        """Frame `index`, which comes after some to skip; UnexpectedFramesError if it is not as the packets announce."""
        if self._announced is None:
            return next(islice(self._frames, skipped, None), None)
        try:
            frame = next(islice(self._frames, skipped, None), None)
            is_last = index + 1 == len(self._announced)
            as_announced = frame is not None and abs((frame.time or 0.0) - self._announced[index]) < SAME_TIME
            if as_announced and not (is_last and next(self._frames, None) is not None):
                return frame
        except DataError as e:
            raise UnexpectedFramesError(e.what) from None
        raise UnexpectedFramesError(f"{self.path}: its frames differ from what its packets announce")

    def _decode(self) -> Generator[av.VideoFrame, None, None]:
        """Decode frame by frame; all must have the size of the first."""
        codec, index = "unknown format", 0
        try:
            with _open(self.path) as container:
                if not (streams := _video_streams(container)):
                    raise DataError(f"{self.path}: no video in it", expected="a video", got=container.format.long_name)
                stream = streams[0]
                codec = stream.codec_context.name if stream.codec_context else "unknown codec"
                stream.thread_type = "AUTO"
                self._pixel_ratio = _pixel_ratio(stream)
                check, truncated, end, duration = LengthCheck(container, stream), False, 0.0, 0.0
                for packet in check.read_packets():
                    truncated = packet.is_corrupt if packet.size else truncated  # the last one is empty
                    for frame in packet.decode():
                        self._check_size(frame, index)
                        if index >= VIDEO_FRAMES:
                            raise DataError(f"{self.path}: too long", expected=f"at most {VIDEO_FRAMES:,} frames")
                        yield frame
                        if (time := frame.time or 0.0) >= end:
                            end, duration = time, float((frame.duration or 0) * (frame.time_base or 0))
                        index += 1
                truncated = truncated or _is_cut(self.path)
                missing = check.missing_seconds(index, end, duration)
                if truncated or missing > 0:
                    got = f"{index} frames, {end:.2f} s" + (" and a part of one more" if truncated else "")
                    what, expected = f"{self.path}: ends early", f"{check.seconds:.2f} s, by its header"
                    self._end_early(DataError(what, expected=expected if missing > 0 else "a complete video", got=got))
        except av.FFmpegError as e:
            what = f"{self.path}: not a video that FFmpeg can decode"
            error = DataError(what, expected="a complete video", got=f"{codec}: {e.strerror}")
            if not index:
                raise error from None
            self._end_early(error)

    def _end_early(self, error: DataError) -> None:
        """Raise the error of a video that breaks off, unless that is allowed."""
        if not self._allow_truncated:
            raise DataError(error.what, expected=error.expected, got=error.got, hint=TRUNCATED_HINT) from None
        if not self._warned:
            logger.warning(f"{error} It is read as far as it goes.")
            self._warned = True

    def _check_size(self, frame: av.VideoFrame, index: int) -> None:
        """Raise DataError unless a frame has the size of the first."""
        turned = _quarter_turns(frame) % 2
        width, height = _shown_size(frame, self._pixel_ratio)[:: -1 if turned else 1]
        if not any(self._size):
            self._size = (width, height)
        elif self._size != (width, height):
            what = f"{self.path}: its frame size changes at frame {index}"
            expected = f"{self._size[0]}x{self._size[1]} throughout"
            raise DataError(what, expected=expected, got=f"{width}x{height}")


def _open(path: Path) -> av.container.InputContainer:
    """Open a video; an FFmpegError for a playlist or a session description, which would open other files or addresses.

    The frames' size is bounded before any is decoded.
    """
    with suppress(OSError):  # which FFmpeg names
        require_regular(path)
    allowed = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    # `file:` because a name such as 12:30:05.mp4 would be taken for a protocol
    container = av.open(f"file:{path}", options=allowed, metadata_errors="replace")
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = {"max_pixels": str(IMAGE_PIXELS)}
    return container


def _video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The video streams without cover pictures."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def _is_cut(path: Path) -> bool:
    """Whether an MPEG transport stream, which has no length in its header, ends within one of its packets."""
    if path.suffix.lower() not in TRANSPORT_SUFFIXES:
        return False
    size = path.stat().st_size
    for length, sync in TRANSPORT_PACKETS:
        with path.open("rb") as file:
            start = file.read(2 * length)
            file.seek(size - size % length)
            end = file.read()
        if start[sync : sync + 1] == start[sync + length : sync + length + 1] == TRANSPORT_SYNC:
            return end[sync : sync + 1] == TRANSPORT_SYNC or 0 < len(end) <= sync
    return False


def _pixel_ratio(stream: av.VideoStream) -> float:
    """Width of a pixel as it is shown by its height; 1.0 if it is square, unknown or absurd."""
    ratio = float(stream.sample_aspect_ratio or 1)
    return ratio if abs(ratio - 1) > SQUARE and 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO else 1.0


def _shown_size(frame: av.VideoFrame, pixel_ratio: float) -> Size:
    """Width and height in px of a frame with square pixels, before it is turned; no side gets shorter."""
    return round(frame.width * max(pixel_ratio, 1)), round(frame.height / min(pixel_ratio, 1))


def _quarter_turns(frame: av.VideoFrame) -> int:
    """How often a frame must be turned anticlockwise by 90° to be shown upright."""
    return round(frame.rotation / 90)


@dataclass(frozen=True)
class VideoFrames:
    """A `FrameSource` of a video's frames from `first` on, to be read in order."""

    video: Video
    first: int = 0
    parallel: bool = False

    def read(self, start: int, stop: int, min_size: Size | None = None) -> Iterator[Image]:
        """Read frames at full resolution; an error if the video ends early or its size changes."""
        return (self.video.frame(self.first + i) for i in range(start, stop))


@lru_cache(maxsize=4)
def _open_video(path: Path, version: tuple[int, int], allow_truncated: bool, facts: VideoFacts) -> Video:
    """Open a video in another process, where tasks that arrive one after another go on from where it was read to."""
    return Video(path, allow_truncated=allow_truncated, facts=facts)


def video_clips(
    data: DataConfig,
    threads: int,
    need_labels: bool = True,
    cache: ScanCache | None = None,
    by_packets: bool = False,
) -> Catalogue:
    """Scan a video file or a folder of them; a DataError if nothing is at `data.path`, or no video in the folder.

    With `by_packets`, see `Video`, give no cache.
    """
    path = Path(data.path)
    if not path.exists():
        raise DataError(f"{path}: no such video or folder", hint="set data.path to a video or a folder of videos")
    files = [path / p.name for p in list_folder(path)] if path.is_dir() else [path]
    files = [f for f in files if f == path or (f.suffix.lower() in VIDEO_SUFFIXES and f.is_file())]
    if not files:
        expected = f"files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
        raise DataError(f"{path}: no videos", expected=expected, hint="set data.path to a video")
    clips, faults = [], []
    file_by_stem: dict[str, Path] = {}
    scan_file = partial(_scan_video, allow_truncated=data.allow_truncated, by_packets=by_packets)
    results = (cache or ScanCache()).scan(
        files,
        f"video 2 {data.allow_truncated}",
        lambda unknown: map_in_threads(scan_file, unknown, threads, unit="video"),
    )
    for file, result in zip(files, results, strict=True):
        file_clips, file_faults = _clips(file, result, data, need_labels, by_packets)
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


def _scan_video(file: ReadablePath, allow_truncated: bool, by_packets: bool) -> str:
    """What decoding a video shows and its SHA-256, or its fault, as JSON."""
    assert isinstance(file, Path)
    try:
        facts = Video(file, allow_truncated=allow_truncated, by_packets=by_packets).facts
        with file.open("rb") as stream:
            return json.dumps([facts, hashlib.file_digest(stream, "sha256").hexdigest()])
    except DataError as e:
        return json.dumps(error_to_fault(e))


def _clips(
    file: Path, scanned: str, data: DataConfig, need_labels: bool, by_packets: bool
) -> tuple[list[Clip], list[str]]:
    """The clips of a scanned video and no faults, or no clips and its faults."""
    result = json.loads(scanned)
    faults: list[str] = []
    if isinstance(result, str):
        return [], [result]
    (length, size, fps, times), digest = result
    facts = VideoFacts(length, tuple(size), fps, times and tuple(times))
    video = Video(file, allow_truncated=data.allow_truncated, facts=facts, by_packets=by_packets)
    try:
        labels = _labels(file, video.length, faults, need_labels)
    except DataError as e:
        return [], [*faults, error_to_fault(e)]
    if faults:
        return [], faults
    split = split_of(file.stem)
    clips = []
    for start in range(0, video.length, data.segment or video.length):
        id, clip_digest, stop = file.stem, digest, min(start + (data.segment or video.length), video.length)
        if data.segment is not None:
            id = f"{file.stem}/{start:05d}-{stop - 1:05d}"
            clip_digest = hashlib.sha256(f"{digest} {start} {stop}".encode()).hexdigest()
        clip_labels = tuple(replace(x, frame=x.frame - start) for x in labels if start <= x.frame < stop)
        sequence = FrameSequence(id, split, stop - start, fps or data.fps, video.facts.size, clip_digest, clip_labels)
        clips.append(
            Clip(
                replace(sequence, times=video.facts.times and video.facts.times[start:stop]), VideoFrames(video, start)
            )
        )
    return clips, []


def _labels(video: Path, length: int, faults: list[str], needed: bool) -> list[Label]:
    """Read the labels beside a video; the rows of a table with a column `frame` (from 0) may be in any order."""
    text, csv = video.with_suffix(".txt"), video.with_suffix(".csv")
    if text.is_file() and csv.is_file():
        raise DataError(f"{video}: two label files", expected="one", got=f"{text.name} and {csv.name}")
    if not text.is_file() and not csv.is_file():
        if needed and split_of(video.stem) != "test":
            add_fault(faults, f"{video}: no labels", f"{text.name} or {csv.name} beside it", "neither")
        return []
    table = _read_speeds(text) if text.is_file() else read_csv_table(csv, faults=faults)
    targets = target_columns(table.columns, "frame")
    labels = []
    if "frame" not in table.columns and len(table.rows) != length:
        what = f"{text if text.is_file() else csv}: {len(table.rows)} labels for {length} frames"
        add_fault(faults, what, f"{length} labels", len(table.rows))
    for index, row in enumerate(table.rows):
        number = read_number(row, "frame", faults) if "frame" in table.columns else float(index)
        if "frame" in table.columns and not (number.is_integer() and 0 <= number < length):
            add_fault(faults, f"{row.where}: no such frame", f"0 … {length - 1}", repr(row.cells["frame"]))
        elif label := read_label(row, int(number), targets, faults):
            labels.append(label)
    return sorted(labels, key=lambda label: label.frame)


def _read_speeds(path: Path) -> CsvTable:
    """Read one number per line, the car's own speed in m/s at each frame, as a table."""
    try:
        data = read_bounded(path, CSV_BYTES)
        lines = data.decode(text_encoding(data)).rstrip().splitlines()
        if len(lines) > CSV_CELLS:
            raise DataError(f"{path}: too large", expected=f"at most {CSV_CELLS:,} lines", got=f"{len(lines):,}")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not text", expected="one number per line, in UTF-8", got=e) from None
    rows = (CsvRow(f"{path}, line {i}", {"ego_speed": line.strip()}) for i, line in enumerate(lines, 1))
    return CsvTable(("ego_speed",), tuple(rows))
