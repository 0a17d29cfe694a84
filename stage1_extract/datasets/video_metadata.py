"""What a video's packets and header say that cv2's frames don't: whether its size changes, whether its rate is real.

cv2 delivers every frame in the size of the first, cropped or filled up, and makes a rate up where there is none.
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

RATES = (1.0, 480.0)  # frames a second: outside lie the time bases that cv2 gives for want of a rate

# Where a key frame's packet repeats the stream's parameters, from start code to start code, and the ending under which
# FFmpeg takes such a packet for a whole stream: MPEG-1/2 sequence header, MPEG-4 VOL, H.264 SPS, HEVC SPS.
_HEADERS = {
    ".mpg": re.compile(rb"\x00\x00\x01\xb3.{8}", re.DOTALL),
    ".m4v": re.compile(rb"\x00\x00\x01[\x20-\x2f].*?(?=\x00\x00\x01)", re.DOTALL),
    ".h264": re.compile(rb"\x00\x00\x01[\x07\x27\x47\x67].*?(?=\x00\x00\x01)", re.DOTALL),
    ".hevc": re.compile(rb"\x00\x00\x01\x42.*?(?=\x00\x00\x01)", re.DOTALL),
}
_CODECS = {
    **dict.fromkeys(["mpg1", "mpg2", "PIM1"], ".mpg"),
    **dict.fromkeys(["FMP4", "mp4v", "XVID", "DIVX", "DX50"], ".m4v"),
    **dict.fromkeys(["h264", "H264", "avc1"], ".h264"),
    **dict.fromkeys(["hevc", "HEVC", "hev1", "hvc1"], ".hevc"),
    "MJPG": ".jpg",
}


def check_constant_size(path: Path) -> None:
    """Refuse a video whose frames change their size: Motion JPEG, MPEG-1/2/4, H.264 and HEVC; others pass.

    Raises:
        DataError: the first frame of another size.
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


def readable_rate(path: Path) -> float | None:
    """The frame rate in a video's header; None where there is none, or one that no camera has."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    rate, count = float(capture.get(cv2.CAP_PROP_FPS)), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    # a bare stream has no length either, and its rate is FFmpeg's guess
    return rate if RATES[0] < rate <= RATES[1] and 1 <= count < 2**31 else None


def _sizes(path: Path) -> Iterator[tuple[int, Size]]:
    """Index and size of each frame that brings new parameters, without decoding the others."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])  # −1: packets as they are
    ending = _CODECS.get(int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin-1"))
    before: Size | bytes | None = None
    index = 0
    while ending is not None and capture.grab():
        if ending == ".jpg" or capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME):
            packet = capture.retrieve()[1].tobytes()
            now = _jpeg_size(packet) if ending == ".jpg" else _header(packet, ending)
            if now is not None and now != before:
                before = now
                size = now if isinstance(now, tuple) else _stream_size(packet, ending)
                if size is not None:
                    yield index, size
        index += 1
    capture.release()


def _jpeg_size(packet: bytes) -> Size | None:
    try:
        return image_size(packet, "")
    except DataError:  # decoding will say more
        return None


def _header(packet: bytes, ending: str) -> bytes | None:
    found = _HEADERS[ending].search(packet)
    return found[0] if found else None


def _stream_size(packet: bytes, ending: str) -> Size | None:
    """What FFmpeg reads out of a packet's parameters: their bits are its business."""
    with tempfile.NamedTemporaryFile(suffix=ending) as file:
        file.write(packet)
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        size = (int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        capture.release()
    return size if min(size) > 0 else None
