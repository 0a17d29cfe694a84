"""Image files: size by header, pixels by OpenCV, and a DataError that names the file if it is damaged."""

from __future__ import annotations

import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from stage1_extract.datasets.image_file import decode_image, image_size, reduction_factor
from stage1_extract.datasets.image_sequence import ClipSpec, check_files


def encoded(suffix: str, *options: int, grey: bool = False) -> bytes:
    shape = (30, 52) if grey else (30, 52, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels, options)[1])


SIZE = (52, 30)
JPEG, PNG = encoded(".jpg"), encoded(".png")
PROGRESSIVE = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
IMAGES = {"baseline": JPEG, "progressive": PROGRESSIVE, "png": PNG, "grey": encoded(".png", grey=True)}


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    """Insert an EXIF segment that asks for a rotation, and contains an end marker as a thumbnail would."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0]) + b"\0\0\0\0\xff\xd9"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not have."""
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + PNG[24:29]
    return PNG[:12] + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]


@pytest.mark.parametrize("name", IMAGES)
def test_size_and_pixels(name: str) -> None:
    assert image_size(IMAGES[name], name) == SIZE
    image = decode_image(IMAGES[name], name, SIZE)
    assert image.shape == (30, 52, 3) and image.dtype == np.uint8


def test_pixels_are_bgr_as_stored() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(bytes(cv2.imencode(".png", pixels)[1]), "a", (6, 4)), pixels)


def test_exif_orientation_is_ignored() -> None:
    rotated = with_exif(JPEG, 6)
    assert cv2.imdecode(np.frombuffer(rotated, np.uint8), cv2.IMREAD_COLOR).shape == (52, 30, 3)
    assert image_size(rotated, "a") == SIZE
    assert np.array_equal(decode_image(rotated, "a", SIZE), decode_image(JPEG, "a", SIZE))
    assert np.array_equal(decode_image(rotated, "a", SIZE, (26, 15)), decode_image(JPEG, "a", SIZE, (26, 15)))


@pytest.mark.parametrize(
    ("size", "min_size", "factor"),
    [
        ((1280, 720), (320, 180), 4),
        ((1280, 720), (321, 180), 2),
        ((1280, 720), (10, 10), 8),
        ((1280, 720), (1280, 720), 1),
        ((1242, 375), (310, 93), 4),  # sizes are rounded up: 311x94
        ((1242, 375), (311, 95), 2),
        ((100, 70), (320, 180), 1),
    ],
)
def test_jpeg_is_shrunk_down_to_min_size(size: tuple[int, int], min_size: tuple[int, int], factor: int) -> None:
    assert reduction_factor(size, min_size) == factor
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    image = decode_image(bytes(cv2.imencode(".jpg", pixels)[1]), "a", size, min_size)
    assert image.shape == (-(-size[1] // factor), -(-size[0] // factor), 3)


def test_shrinking_while_decoding_is_close_to_averaging() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    data = bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    averaged = cv2.resize(decode_image(data, "a", (640, 480)), (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(decode_image(data, "a", (640, 480), (160, 120)).astype(int) - averaged).mean() < 1


def test_png_is_decoded_at_full_size() -> None:
    assert np.array_equal(decode_image(PNG, "a", SIZE, (13, 7)), decode_image(PNG, "a", SIZE))


def test_bytes_after_the_end_are_ignored() -> None:
    assert image_size(JPEG + b"trailing", "a") == image_size(PNG + b"trailing", "a") == SIZE


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image; expected a complete JPEG or PNG; got a file that begins with"),
        (JPEG[:3], "not an image"),
        (b"\xff\xd8\xff\xd9\0\0", "not an image"),
        (with_exif(JPEG, 1)[:-2], "damaged image; expected a complete JPEG or PNG; got no end-of-image marker"),
        (PNG[: len(PNG) // 2], "damaged image"),
        (PNG[:60] + bytes(400) + PNG[460:], "damaged image; expected a complete JPEG or PNG; got broken PNG file"),
        (png_of_size(0, 30), "not an image"),
        (png_of_size(10_000, 10_000), "damaged image; expected a complete JPEG or PNG; got Image size (100000000 pix"),
        (png_of_size(100_000, 100_000), "damaged image; expected a complete JPEG or PNG; got Image size (1000000000"),
    ],
)
def test_damaged_file_is_a_one_line_fault(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "003.jpg"
    path.write_bytes(data)
    (fault,) = check_files([ClipSpec("a", "train", 10, (path,))], 1).faults
    assert fault.startswith(f"{path}: {message}") and "\n" not in fault


def test_undecodable_data_is_named() -> None:
    with pytest.raises(DataError, match=r"^a\.png: damaged image; expected 52x30 pixels; got data that OpenCV cannot"):
        decode_image(PNG[:60], "a.png", SIZE)


@given(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=200))
def test_any_bytes_give_a_size_or_a_data_error(start: bytes, rest: bytes) -> None:
    try:
        width, height = image_size(start + rest, "a")
    except DataError:
        return
    assert width > 0 and height > 0


@given(st.sampled_from(sorted(IMAGES)), st.data())
def test_truncation_is_found_without_decoding(name: str, data: st.DataObject) -> None:
    complete = IMAGES[name]
    # a PNG's last four bytes are the checksum of its empty end chunk
    length = data.draw(st.integers(0, len(complete) - (1 if complete.startswith(b"\xff\xd8") else 5)))
    with pytest.raises(DataError):
        image_size(complete[:length], "a")


@given(st.sampled_from(sorted(IMAGES)), st.data())
def test_changed_byte_gives_a_size_or_a_data_error(name: str, data: st.DataObject) -> None:
    changed = bytearray(IMAGES[name])
    changed[data.draw(st.integers(0, min(len(changed) - 1, 700)))] = data.draw(st.integers(0, 255))
    try:
        image_size(bytes(changed), "a")
    except DataError as e:
        assert str(e).startswith("a: ")


def test_size_and_pixels_of_real_frames(real: Path) -> None:
    frame = real / "competition/Train/Train/1/imgs/001.jpg"
    assert image_size(frame.read_bytes(), str(frame)) == (1280, 720)
    grey = real / "kitti_odometry/frames/000000.png"
    size = image_size(grey.read_bytes(), str(grey))
    assert size == (1226, 370)
    image = decode_image(grey.read_bytes(), str(grey), size)
    assert image.shape == (370, 1226, 3) and np.array_equal(image[..., 0], image[..., 2])
