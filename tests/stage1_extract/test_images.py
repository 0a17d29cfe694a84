"""Sizes from headers, pixels from cv2, and a DataError that names the file for all that is neither."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from stage1_extract.datasets.image_file import decode_image, image_size, reduction_factor


def encoded(suffix: str, *options: int, grey: bool = False) -> bytes:
    shape = (30, 52) if grey else (30, 52, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels, options)[1])


JPEG, PNG = encoded(".jpg"), encoded(".png")
PROGRESSIVE = encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
WHOLE = {"baseline": JPEG, "progressive": PROGRESSIVE, "png": PNG, "grey": encoded(".png", grey=True)}


def with_exif(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an APP1 segment that asks for a rotation, and holds an end marker as a thumbnail would."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation, 0, 0]) + b"\0\0\0\0\xff\xd9"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


@pytest.mark.parametrize("name", WHOLE)
def test_size_and_pixels(name: str) -> None:
    assert image_size(WHOLE[name], name) == (52, 30)
    image = decode_image(WHOLE[name], name)
    assert image.shape == (30, 52, 3) and image.dtype == np.uint8


def test_pixels_are_bgr_as_stored() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(bytes(cv2.imencode(".png", pixels)[1]), "a"), pixels)


def test_orientation_is_ignored() -> None:
    turned = with_exif(JPEG, 6)
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (52, 30, 3)
    assert image_size(turned, "a") == (52, 30)
    assert np.array_equal(decode_image(turned, "a"), decode_image(JPEG, "a"))


@pytest.mark.parametrize(
    ("size", "min_size", "by"),
    [
        ((1280, 720), (320, 180), 4),
        ((1280, 720), (321, 180), 2),
        ((1280, 720), (160, 90), 8),
        ((1280, 720), (10, 10), 8),
        ((1280, 720), (1280, 720), 1),
        ((1242, 375), (310, 93), 4),  # a size that does not divide is rounded up: 311x94
        ((1242, 375), (311, 95), 2),
        ((100, 70), (320, 180), 1),
    ],
)
def test_a_jpeg_is_shrunk_as_far_as_is_enough(size: tuple[int, int], min_size: tuple[int, int], by: int) -> None:
    assert reduction_factor(size, min_size) == by
    pixels = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = decode_image(bytes(cv2.imencode(".jpg", pixels)[1]), "a", min_size)
    assert image.shape == (-(-size[1] // by), -(-size[0] // by), 3)


def test_what_is_shrunk_in_decoding_is_close_to_averaging() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    data = bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    averaged = cv2.resize(decode_image(data, "a"), (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(decode_image(data, "a", (160, 120)).astype(int) - averaged).mean() < 1
    assert np.array_equal(decode_image(with_exif(data, 6), "a", (160, 120)), decode_image(data, "a", (160, 120)))


def test_a_png_is_decoded_in_full() -> None:
    assert np.array_equal(decode_image(PNG, "a", (13, 7)), decode_image(PNG, "a"))


def test_bytes_after_the_end_are_fine() -> None:
    assert image_size(JPEG + b"trailing", "a") == image_size(PNG + b"trailing", "a") == (52, 30)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image"),
        (JPEG[: len(JPEG) // 2], "truncated JPEG"),
        (JPEG[:-2], "truncated JPEG"),
        (JPEG[:3], "truncated JPEG"),
        (PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated JPEG"),
        (with_exif(JPEG, 1)[:-2], "truncated JPEG"),
        (b"\xff\xd8\xff\xd9\0\0", "a scan before the end"),
        (b"\xff\xd8\xff\xda\0\x02\0\0\xff\xd9", "a frame header before the scan"),
        (PNG[: len(PNG) // 2], "truncated PNG"),
        (PNG[:-1], "truncated PNG"),
        (PNG[:10], "truncated PNG"),
        (PNG[:12] + b"IDAT" + PNG[16:], "an IHDR chunk first"),
        (PNG[:16] + bytes(4) + PNG[20:], "expected a width and a height; got 0x30"),
    ],
)
def test_faults_name_the_file(data: bytes, what: str) -> None:
    for read in (image_size, decode_image):
        with pytest.raises(DataError) as caught:
            read(data, "clip/imgs/003.jpg")
        assert str(caught.value).startswith("clip/imgs/003.jpg: ") and what in str(caught.value)


def test_damage_between_the_headers_shows_in_decoding() -> None:
    damaged = PNG[:60] + bytes(400) + PNG[460:]
    assert image_size(damaged, "a.png") == (52, 30)
    with pytest.raises(DataError, match=r"^a\.png: damaged image; expected 52x30 pixels"):
        decode_image(damaged, "a.png")


@given(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=200))
def test_any_bytes_give_a_size_or_a_data_error(start: bytes, rest: bytes) -> None:
    try:
        width, height = image_size(start + rest, "a")
    except DataError:
        return
    assert width > 0 and height > 0


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_every_truncation_is_found(name: str, data: st.DataObject) -> None:
    whole = WHOLE[name]
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataError):
        image_size(whole[:length], "a")


@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_a_changed_byte_never_crashes(name: str, data: st.DataObject) -> None:
    whole = bytearray(WHOLE[name])
    whole[data.draw(st.integers(0, min(len(whole) - 1, 700)))] = data.draw(st.integers(0, 255))
    try:
        image_size(bytes(whole), "a")
    except DataError as e:
        assert str(e).startswith("a: ")


def test_real_frames(real: Path) -> None:
    frame = real / "competition/Train/Train/1/imgs/001.jpg"
    assert image_size(frame.read_bytes(), str(frame)) == (1280, 720)
    grey = real / "kitti_odometry/frames/000000.png"
    assert image_size(grey.read_bytes(), str(grey)) == (1226, 370)
    image = decode_image(grey.read_bytes(), str(grey))
    assert image.shape == (370, 1226, 3) and np.array_equal(image[..., 0], image[..., 2])
