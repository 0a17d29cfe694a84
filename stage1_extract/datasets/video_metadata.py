"""What a video's packets and header say that OpenCV's frames hide: whether its size changes, and its frame rate.

OpenCV delivers every frame in the size of the first, cropped or padded, and invents a rate if there is none.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2

from features._common.types import Size
from features.errors import DataError
from stage1_extract.datasets.image_file import image_size

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
    """Yield the index and size of each frame that brings new parameters, without decoding the others."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # −1: undecoded packets
    codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin-1")
    suffix = _SUFFIX_BY_CODEC.get(codec)
    previous: Size | bytes | None = None
    index = 0
    while suffix is not None and capture.grab():
        if suffix == ".jpg" or capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME):
            packet = capture.retrieve()[1].tobytes()
            header = _jpeg_size(packet) if suffix == ".jpg" else _header(packet, suffix)
            if header is not None and header != previous:
                previous = header
                size = header if isinstance(header, tuple) else _stream_size(packet, suffix)
                if size is not None:
                    yield index, size
        index += 1
    capture.release()


def _jpeg_size(packet: bytes) -> Size | None:
    try:
        return image_size(packet, "")
    except DataError:  # decoding reports it better
        return None


def _header(packet: bytes, suffix: str) -> bytes | None:
    match = _HEADERS[suffix].search(packet)
    return match[0] if match else None


def _stream_size(packet: bytes, suffix: str) -> Size | None:
    """The frame size that FFmpeg reads from a packet's parameters."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(packet)
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        capture.release()
    return size if min(size) > 0 else None
