"""A single clip without labels to predict on: a video, or a folder of frames.

OpenCV delivers every frame of a video in the size of the first, cropped or padded, and invents a rate if there is none.
Both are therefore checked in the video's packets and header.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2

from features._common.types import Size
from features.config import DataConfig
from features.errors import BadInputs, DataError
from features.sequences import FrameSequence
from stage1_extract.datasets.archive import list_folder
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.image_file import image_size
from stage1_extract.datasets.image_sequence import ClipSpec, check_files
from stage1_extract.datasets.video import Video, VideoFrames

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png"])
DATA_SET_SUFFIXES = frozenset([".zip", ".csv"])
PLAUSIBLE_RATES = (1.0, 480.0)  # frames per second; OpenCV returns the time base if a video has no rate

# The part of a key frame's packet that repeats the stream's parameters, by the suffix under which FFmpeg reads such a
# packet as a stream: MPEG-1/2 sequence header, MPEG-4 VOL, H.264 SPS, HEVC SPS.
_HEADERS = {
    ".mpg": re.compile(rb"\x00\x00\x01\xb3.{8}", re.DOTALL),
    ".m4v": re.compile(rb"\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01)", re.DOTALL),
    ".h264": re.compile(rb"\x00\x00\x01[\x07\x27\x47\x67].*?(?=\x00\x00\x01)", re.DOTALL),
    ".hevc": re.compile(rb"\x00\x00\x01\x42.*?(?=\x00\x00\x01)", re.DOTALL),
}
_SUFFIX_BY_CODEC = {
    **dict.fromkeys(["mpg1", "mpg2", "PIM1"], ".mpg"),
    **dict.fromkeys(["FMP4", "mp4v", "XVID", "DIVX", "DX50"], ".m4v"),
    **dict.fromkeys(["h264", "H264", "avc1"], ".h264"),
    **dict.fromkeys(["hevc", "HEVC", "hev1", "hvc1"], ".hevc"),
    "MJPG": ".jpg",
}


def is_single_clip(path: Path) -> bool:
    """Whether a path is a video or a folder of frames, rather than a data set."""
    if path.is_dir():
        entries = [p for p in path.iterdir() if not p.name.startswith(".")]
        return not entries or any(p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() for p in entries)
    return path.suffix.lower() not in DATA_SET_SUFFIXES


def read_single_clip(path: Path, data: DataConfig, fps: float | None) -> Clip:
    """Open a video, or a folder of frames in the order of the numbers in their names, as one clip.

    Args:
        data: only `fps` is used, for a folder.
        fps: frames per second of a video; None: read them from its header.

    Raises:
        DataError, BadInputs: nothing there, damaged, without frames, of changing size, or a video without a frame rate.
    """
    if path.is_dir():
        files = tuple(path / p.name for p in list_folder(path) if p.name.lower().endswith(tuple(IMAGE_SUFFIXES)))
        if not files:
            expected = f"files ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
            raise DataError(f"{path}: no frames", expected=expected, got="none", hint="--input another folder")
        catalogue = check_files([ClipSpec(path.name, "test", data.fps, files)], 0)
        if catalogue.faults:
            raise BadInputs(f"{path}: damaged frames", list(catalogue.faults), hint="replace or remove them")
        return catalogue.clips[0]
    if not path.exists():
        raise DataError(f"{path}: no such video or folder", hint="--input VIDEO or --input FOLDER")
    try:
        video = Video(path)
        check_constant_size(path)
    except DataError as e:
        raise DataError(e.what, expected=e.expected, got=e.got, hint="--input another video, or convert it") from None
    rate = fps or header_frame_rate(path)
    if rate is None:
        raise DataError(
            f"{path}: no frame rate can be read from it",
            expected="frames per second in its header",
            got="none, or a rate that no camera has",
            hint="--fps N",
        )
    return Clip(FrameSequence(path.stem, "test", video.length, rate, video.size, ""), VideoFrames(video))


def check_constant_size(path: Path) -> None:
    """Check that a video's frames keep their size: Motion JPEG, MPEG-1/2/4, H.264 and HEVC; other codecs pass.

    Raises:
        DataError: names the first frame of another size.
    """
    first = None
    for index, size in _sizes(path):
        first = first or size
        if size != first:
            raise DataError(
                f"{path}: its frame size changes at frame {index}",
                expected=f"{first[0]}x{first[1]} throughout",
                got=f"{size[0]}x{size[1]}",
            )


def header_frame_rate(path: Path) -> float | None:
    """The frame rate in a video's header; None if there is none, or one that no camera has."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    rate, count = float(capture.get(cv2.CAP_PROP_FPS)), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    # a raw stream has no length either, and its rate is FFmpeg's guess
    return rate if PLAUSIBLE_RATES[0] < rate <= PLAUSIBLE_RATES[1] and 1 <= count < 2**31 else None


def _sizes(path: Path) -> Iterator[tuple[int, Size]]:
    """Yield the index and size of frames that may bring another size, without decoding the others."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # −1: undecoded packets
    codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin-1")
    suffix = _SUFFIX_BY_CODEC.get(codec)
    index, header = 0, b""
    while suffix is not None and capture.grab():
        if suffix == ".jpg":
            with suppress(DataError):  # decoding reports it better
                yield index, image_size(capture.retrieve()[1].tobytes(), "")
        elif capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME):
            packet = capture.retrieve()[1].tobytes()
            match = _HEADERS[suffix].search(packet)
            if match and match[0] != header:
                header = match[0]
                if size := _stream_size(packet, suffix):
                    yield index, size
        index += 1
    capture.release()


def _stream_size(packet: bytes, suffix: str) -> Size | None:
    """The frame size that FFmpeg reads from a packet's parameters."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(packet)
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        capture.release()
    return size if min(size) > 0 else None
