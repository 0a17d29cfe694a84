"""JPEG and PNG: their size from the headers alone, and their pixels through cv2."""

from __future__ import annotations

import struct

import cv2
import numpy as np

from features._common.types import Image
from features.errors import DataError

_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_STANDALONE = {0x00, 0x01, *range(0xD0, 0xD8)}  # markers without a segment: stuffing, TEM, RST0 … RST7
_SOF = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # C4, C8 and CC are tables
_SOS, _EOI = 0xDA, b"\xff\xd9"


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels of a JPEG (ITU-T T.81, annex B) or PNG (ISO/IEC 15948), without decoding it.

    Args:
        data: the file's contents.
        name: its path, for the error.

    Raises:
        DataError: empty, neither JPEG nor PNG, without a size, or truncated.
    """
    if not data:
        raise DataError(f"{name}: empty file", expected="a JPEG or PNG", got="0 bytes")
    if data.startswith(_JPEG):
        width, height = _jpeg(data, name)
    elif data.startswith(_PNG):
        width, height = _png(data, name)
    else:
        raise DataError(f"{name}: not an image", expected="a JPEG or PNG", got=f"a file that begins with {data[:8]!r}")
    if not width or not height:
        raise DataError(f"{name}: image without pixels", expected="a width and a height", got=f"{width}x{height}")
    return width, height


def decode_image(data: bytes, name: str, min_size: tuple[int, int] | None = None) -> Image:
    """The pixels of a JPEG or PNG.

    A JPEG can be decoded to a half, a quarter or an eighth by leaving out its blocks' high frequencies, which costs
    less than decoding it in full; its pixels are close to those of averaging. 1280x720 to 320x180 is just a quarter.

    Args:
        data: the file's contents.
        name: its path, for the error.
        min_size: width and height that are wanted of a JPEG: it is shrunk as far as it stays at least this large.

    Returns:
        uint8 BGR of shape (height, width, 3) as stored: grey becomes three channels, EXIF orientation is ignored.

    Raises:
        DataError: as `image_size`, and where cv2 cannot decode what lies between the headers.
    """
    width, height = image_size(data, name)
    by = reduction_factor((width, height), min_size) if min_size and data.startswith(_JPEG) else 1
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS[by] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # a size beyond cv2's limit
        image = None
    if image is None:
        raise DataError(f"{name}: damaged image", expected=f"{width}x{height} pixels", got="data cv2 cannot decode")
    return np.asarray(image, np.uint8)


def reduction_factor(size: tuple[int, int], min_size: tuple[int, int]) -> int:
    """By how much, 8, 4, 2 or 1, a size (width, height) can be divided, rounding up, and still be `min_size`."""
    fits = (by for by in (8, 4, 2) if -(-size[0] // by) >= min_size[0] and -(-size[1] // by) >= min_size[1])
    return next(fits, 1)


def _jpeg(data: bytes, name: str) -> tuple[int, int]:
    size = None
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        if marker == _EOI[1]:
            raise DataError(f"{name}: damaged JPEG", expected="a scan before the end of the image", got="none")
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _SOF and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (width, height)
        if marker == _SOS:
            if size is None:
                raise DataError(f"{name}: damaged JPEG", expected="a frame header before the scan", got="none")
            # within a scan FF is stuffed with 00, so that FF D9 can only be the end
            if data.rfind(_EOI, end) < 0:  # from the back, where it is
                break
            return size
        at = max(end, at + 2)
    raise DataError(f"{name}: truncated JPEG", expected="an end-of-image marker", got=f"none in {len(data)} bytes")


def _png(data: bytes, name: str) -> tuple[int, int]:
    truncated = DataError(f"{name}: truncated PNG", expected="an IEND chunk", got=f"none in {len(data)} bytes")
    if len(data) < 24:
        raise truncated
    if data[12:16] != b"IHDR":
        raise DataError(f"{name}: damaged PNG", expected="an IHDR chunk first", got=repr(data[12:16]))
    width, height = struct.unpack_from(">II", data, 16)
    at = len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"IEND" and at <= len(data):
            return width, height
    raise truncated
