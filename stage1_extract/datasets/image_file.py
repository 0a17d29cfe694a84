"""Image files: their size from the header by Pillow, their pixels by OpenCV."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image
from numpy.typing import NDArray

from features._common.bounded_file import open_regular
from features._common.plain_text import one_line
from features._common.types import Image, Size
from features.errors import DataError
from features.limits import IMAGE_PIXELS

_NAMES = (  # OpenCV's formats
    "avif bmp dib gif hdr jfif jp2 jpe jpeg jpg pbm pfm pgm pic png pnm ppm pxm ras sr tif tiff webp"
)
IMAGE_SUFFIXES = tuple(f".{name}" for name in _NAMES.split())
# images that OpenCV does not read; they are named, so that they are not missed in silence
_OTHER_NAMES = "heic heif jxl dng arw cr2 cr3 nef orf raf rw2"
OTHER_IMAGES = tuple(f".{name}" for name in _OTHER_NAMES.split())
FORMATS = ("JPEG", "PNG", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "SUN", "TIFF", "WEBP")  # as Pillow names them
_JPEG_START, _JPEG_END, _PNG_START = b"\xff\xd8", b"\xff\xd9", b"\x89PNG"
MAX_SHOWN_REASON = 200  # characters of what Pillow says
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_DEPTH = 24  # where a PNG has its bits per channel
_READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class ImageInfo(NamedTuple):
    """What a scan reads from an image file."""

    size: Size  # width and height in px, upright
    orientation: int = 1  # of the stored pixels, as EXIF numbers it; 1: upright
    maximum: int = 0  # the largest value of an image with 16 bits per channel; 0 with 8 bits


def read_info(data: bytes, name: str) -> ImageInfo:
    """Read an image's size, orientation and range; a DataError if it is damaged, truncated, huge, or has float pixels.

    JPEGs and PNGs of 8 bits are not decoded: a PNG's checksums are verified; a JPEG, which has none, is complete if an
    end-of-image marker follows its first scan.
    """
    if not data:
        raise DataError(f"{name}: empty file", expected="an image", got="0 bytes")
    jpeg, png = data.startswith(_JPEG_START), data.startswith(_PNG_START)
    stream, orientation, maximum = io.BytesIO(data), 1, 0
    size: Size | None = None
    try:
        with PIL.Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > IMAGE_PIXELS:
                raise _too_large(name, f"{image.width}x{image.height}")
            # Pillow has read up to the first scan: an end marker before it belongs to a thumbnail
            if jpeg and data.rfind(_JPEG_END, stream.tell()) < 0:
                raise EOFError("no end-of-image marker")
            size = image.size
            if image.format != "TIFF":  # which OpenCV itself turns upright
                orientation = _orientation(image)
            if png:
                image.verify()
    except DataError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):  # Pillow's own, higher limits
        raise _too_large(name, "far more") from None
    except PIL.UnidentifiedImageError:
        pass  # OpenCV may know it
    except Exception as e:  # Pillow raises a dozen types of exceptions on damaged files
        got = one_line(str(e))[:MAX_SHOWN_REASON]
        raise DataError(f"{name}: damaged image", expected="a complete image", got=got) from None
    if size is None or not (jpeg or (png and data[_PNG_DEPTH] <= 8)):
        pixels = None if size is None and (jpeg or png) else _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if pixels is None:
            what, got = "damaged" if size else "not an", f"a file that begins with {data[:8]!r}"
            raise DataError(f"{name}: {what} image", expected="a complete image", got=got)
        size = (pixels.shape[1], pixels.shape[0])
        if pixels.dtype == np.uint16:
            maximum = int(pixels.max())
        elif pixels.dtype != np.uint8:
            raise DataError(f"{name}: wrong pixels", expected="8 or 16 bits per channel", got=pixels.dtype)
    return _upright(size, orientation, maximum)


def read_start(file: Path) -> ImageInfo | None:
    """What `read_info` finds in a JPEG or an 8-bit PNG that ends as a complete one does, from a few of its bytes.

    None for all others, which have to be read whole; `check_complete` does the rest once they are.
    """
    try:
        with open_regular(file, buffering=0) as f:
            start = f.read(_PNG_DEPTH + 1)
            f.seek(-min(len(start), len(_PNG_END)), os.SEEK_END)
            end = f.read()
            jpeg = start.startswith(_JPEG_START) and end.endswith(_JPEG_END)
            png = start.startswith(_PNG_START) and start[-1] <= 8 and end == _PNG_END
            if not jpeg and not png:
                return None
            f.seek(0)
            with PIL.Image.open(f, formats=("JPEG", "PNG")) as image:
                has_no_pixels = f.tell() > os.fstat(f.fileno()).st_size - len(_JPEG_END)
                if has_no_pixels or image.width * image.height > IMAGE_PIXELS:
                    return None
                return _upright(image.size, _orientation(image))
    except Exception:  # Pillow raises a dozen types of exceptions on damaged files, and `read_info` names them
        return None


def check_complete(data: bytes, name: str) -> None:
    """Raise a DataError if an image of which `read_start` has seen a part is damaged, as `read_info` would say."""
    try:
        if data.startswith(_PNG_START):
            with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                image.verify()
    except Exception as e:
        raise DataError(f"{name}: damaged image", expected="a complete image", got=e) from None


def _too_large(name: str, got: str) -> DataError:
    return DataError(f"{name}: too large an image", expected=f"at most {IMAGE_PIXELS:,} pixels", got=got)


def decode_image(data: bytes, name: str, info: ImageInfo, min_size: Size | None = None, depth: int = 16) -> Image:
    """Decode an image to uint8 BGR (height, width, 3), upright; a DataError if that fails.

    Args:
        info: what `read_info` returned.
        min_size: width and height in px; a JPEG is shrunk by 2, 4 or 8 if it stays at least so large, to save time.
        depth: the number of bits, of an image's 16 per channel, that hold its values.
    """
    factor = reduction_factor(info.size, min_size) if min_size and data.startswith(_JPEG_START) else 1
    image = _decode(data, _READ_FLAGS[factor] | (cv2.IMREAD_ANYDEPTH if depth < 16 else 0))
    if image is None:
        expected = f"{info.size[0]}x{info.size[1]} pixels"
        raise DataError(f"{name}: damaged image", expected=expected, got="data that OpenCV cannot decode")
    if image.dtype == np.uint16:
        image = (image >> (depth - 8)).astype(np.uint8)
    if info.orientation == 1:
        return image
    image = image.transpose(1, 0, 2) if info.orientation >= 5 else image
    rows, columns = -1 if info.orientation in (3, 4, 7, 8) else 1, -1 if info.orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(image[::rows, ::columns])


def reduction_factor(size: Size, min_size: Size) -> int:
    """The largest of 8, 4, 2 and 1 by which a size can be divided, rounding up, without falling below `min_size`."""
    fitting = (k for k in (8, 4, 2) if -(-size[0] // k) >= min_size[0] and -(-size[1] // k) >= min_size[1])
    return next(fitting, 1)


def _orientation(image: PIL.Image.Image) -> int:
    orientation = 1
    with suppress(Exception):  # damaged metadata; a PNG's own method would decode the image
        orientation = PIL.Image.Image.getexif(image).get(PIL.ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _upright(size: Size, orientation: int, maximum: int = 0) -> ImageInfo:
    return ImageInfo(size[::-1] if orientation >= 5 else size, orientation, maximum)


def _decode(data: bytes, flags: int) -> NDArray[Any] | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # empty, or larger than cv2's limit
        return None
    return None if image is None else np.asarray(image)
