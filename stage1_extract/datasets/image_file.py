"""Image files: their size from the header by Pillow, their pixels by OpenCV."""

from __future__ import annotations

import io

import cv2
import numpy as np
import PIL.Image

from features._common.types import Image, Size
from features.errors import DataError

FORMATS = ("JPEG", "PNG")  # as Pillow names them
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def image_size(data: bytes, name: str) -> Size:
    """Read an image's width and height in px, without decoding it; a DataError if it is damaged, truncated or huge.

    A PNG's checksums are verified. A JPEG has none; it is complete if an end-of-image marker follows its first scan.
    """
    if not data:
        raise DataError(f"{name}: empty file", expected="a JPEG or PNG", got="0 bytes")
    stream = io.BytesIO(data)
    try:
        with PIL.Image.open(stream, formats=FORMATS) as image:
            if image.format == "PNG":
                image.verify()
            # Pillow has read up to the first scan: an end marker before it belongs to a thumbnail
            elif data.rfind(_JPEG_END, stream.tell()) < 0:
                raise EOFError("no end-of-image marker")
            return image.size
    except PIL.UnidentifiedImageError:
        got = f"a file that begins with {data[:8]!r}"
        raise DataError(f"{name}: not an image", expected="a complete JPEG or PNG", got=got) from None
    except Exception as e:  # Pillow raises a dozen types of exceptions on damaged files
        raise DataError(f"{name}: damaged image", expected="a complete JPEG or PNG", got=e) from None


def decode_image(data: bytes, name: str, size: Size, min_size: Size | None = None) -> Image:
    """Decode a JPEG or PNG to uint8 BGR (height, width, 3), ignoring EXIF orientation; a DataError if that fails.

    `size` is what `image_size` returned. With `min_size`, also width and height in px, a JPEG is shrunk by 2, 4 or 8,
    which saves time, if it stays at least this large.
    """
    factor = reduction_factor(size, min_size) if min_size and data.startswith(_JPEG_START) else 1
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _READ_FLAGS[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # empty, or larger than cv2's limit
        image = None
    if image is None:
        expected = f"{size[0]}x{size[1]} pixels"
        raise DataError(f"{name}: damaged image", expected=expected, got="data that OpenCV cannot decode")
    return np.asarray(image, np.uint8)


def reduction_factor(size: Size, min_size: Size) -> int:
    """The largest of 8, 4, 2 and 1 by which a size can be divided, rounding up, without falling below `min_size`."""
    fitting = (k for k in (8, 4, 2) if -(-size[0] // k) >= min_size[0] and -(-size[1] // k) >= min_size[1])
    return next(fitting, 1)
