"""Image files: size by header, pixels by OpenCV, and a DataError that names the file if it is damaged."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import DataConfig
from features.errors import BadInputs, DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.image_file import ImageInfo, decode_image, read_info, reduction_factor
from stage1_extract.datasets.image_sequence import ClipSpec, check_files
from stage1_extract.datasets.single_video import is_single_clip, read_single_clip
from tests.dataset_helpers import data_config, noise_image


def encoded(suffix: str, *options: int, grey: bool = False) -> bytes:
    shape = (30, 52) if grey else (30, 52, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels, options)[1])


SIZE = (52, 30)
INFO = ImageInfo(SIZE)
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
    assert read_info(IMAGES[name], name) == INFO
    image = decode_image(IMAGES[name], name, INFO)
    assert image.shape == (30, 52, 3) and image.dtype == np.uint8


def test_pixels_are_bgr_as_stored() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(bytes(cv2.imencode(".png", pixels)[1]), "a", ImageInfo((6, 4))), pixels)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_image_is_turned_upright_as_pillow_does_it(suffix: str) -> None:
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), SIZE)
    for orientation in range(1, 9):
        image, file = PIL.Image.fromarray(pixels), io.BytesIO()
        exif = image.getexif()
        exif[PIL.ExifTags.Base.Orientation] = orientation
        image.save(file, suffix, exif=exif, quality=100)
        data, expected = file.getvalue(), np.array(PIL.ImageOps.exif_transpose(PIL.Image.open(file)))[..., ::-1]
        info = read_info(data, "a")
        assert info.size == expected.shape[1::-1] == (SIZE if orientation < 5 else SIZE[::-1])
        decoded = decode_image(data, "a", info)
        assert decoded.shape == expected.shape and np.abs(decoded.astype(int) - expected).mean() < 2
        small = (info.size[0] // 2, info.size[1] // 2)
        shrunk = cv2.resize(decode_image(data, "a", info, small), small, interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(int) - cv2.resize(expected, small, interpolation=cv2.INTER_AREA)).mean() < 4


def test_jpeg_with_another_orientation_has_the_same_pixels_turned() -> None:
    upright, turned = decode_image(JPEG, "a", INFO), with_exif(JPEG, 6)
    assert np.array_equal(decode_image(turned, "a", read_info(turned, "a")), np.rot90(upright, -1))
    for odd in (with_exif(JPEG, 0), with_exif(JPEG, 77), with_exif(JPEG, 6).replace(b"MM\0*", b"MM\0?")):
        assert read_info(odd, "a") == INFO


@pytest.mark.parametrize(
    "suffix", [".bmp", ".dib", ".jp2", ".pbm", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".TIFF", ".webp"]
)
def test_frames_may_have_every_format_of_opencv(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (240, 320, 3), np.uint8)
    data = bytes(cv2.imencode(suffix, pixels[..., 0] if suffix == ".pbm" else pixels)[1])
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    for folder in (tmp_path / "frames", tmp_path / "Train/1/imgs"):
        folder.mkdir(parents=True)
        for i in (1, 2):
            (folder / f"frame_{i:04d}{suffix}").write_bytes(data)
    (tmp_path / "Train/1/annotation.json").write_text('[{"velocity": [1, 2]}]')
    assert is_single_clip(tmp_path / "frames")
    clip = read_single_clip(tmp_path / "frames", DataConfig(), None)
    (other,) = scan(data_config("competition", tmp_path)).clips
    assert clip.sequence.digest == other.sequence.digest and clip.sequence.size == (320, 240)
    for frame in clip.source.read(0, 2):
        assert frame.dtype == np.uint8 and np.array_equal(frame, expected)
    (tmp_path / f"frames/frame_0002{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInputs, match=r"frame_0002.*: (damaged image|not an image)"):
        read_single_clip(tmp_path / "frames", DataConfig(), None)


@pytest.mark.parametrize("suffix", [".tif", ".hdr", ".pfm"])
def test_pixels_that_are_no_integers_are_a_fault(suffix: str) -> None:
    data = bytes(cv2.imencode(suffix, np.ones((4, 6, 3), np.float32))[1])
    with pytest.raises(DataError, match=r"^a: wrong pixels; expected 8 or 16 bits per channel; got float32"):
        read_info(data, "a")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".pgm"])
@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_16_bits_are_scaled_by_the_depth_of_their_sequence(
    tmp_path: Path, suffix: str, depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A dark frame, of few bits, is scaled as the bright one after it."""
    caplog.set_level("INFO")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    pixels = pixels[..., :1] if suffix == ".pgm" else pixels
    pixels[0] = 255
    frames = np.stack([pixels // 16, pixels])
    files = tuple(tmp_path / f"{i}{suffix}" for i in range(3))
    for file, values in zip(files, frames.astype(np.uint16) << (depth - 8), strict=False):
        assert cv2.imwrite(str(file), values)
    assert cv2.imwrite(str(files[2]), pixels)  # of 8 bits
    (clip,) = check_files([ClipSpec("a", "train", 10, files)], 1).clips
    for decoded, expected in zip(clip.source.read(0, 3), [*frames, pixels], strict=True):
        assert decoded.dtype == np.uint8
        # OpenCV rounds a TIFF's 16 bits up
        np.testing.assert_allclose(decoded, np.broadcast_to(expected, decoded.shape), atol=1 if suffix == ".tif" else 0)
    line = f"16-bit images are read as {depth} bits deep in 1 of 1 sequences"
    assert (line in caplog.text) == (depth < 16)
    contents = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    assert (clip.sequence.digest == contents) == (depth == 16)  # else what a store has of these files is out of date


def test_digest_tells_that_images_were_turned(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    for orientation, same in ((1, True), (3, False), (8, False)):
        path.write_bytes(with_exif(JPEG, orientation))
        (clip,) = check_files([ClipSpec("a", "train", 10, (path,))], 1).clips
        contents = hashlib.sha256(hashlib.sha256(path.read_bytes()).digest()).hexdigest()
        assert (clip.sequence.digest == contents) == same


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
    image = decode_image(bytes(cv2.imencode(".jpg", pixels)[1]), "a", ImageInfo(size), min_size)
    assert image.shape == (-(-size[1] // factor), -(-size[0] // factor), 3)


def test_shrinking_while_decoding_is_close_to_averaging() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    data = bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])
    info = ImageInfo((640, 480))
    averaged = cv2.resize(decode_image(data, "a", info), (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(decode_image(data, "a", info, (160, 120)).astype(int) - averaged).mean() < 1


def test_png_is_decoded_at_full_size() -> None:
    assert np.array_equal(decode_image(PNG, "a", INFO, (13, 7)), decode_image(PNG, "a", INFO))


def test_bytes_after_the_end_are_ignored() -> None:
    assert read_info(JPEG + b"trailing", "a") == read_info(PNG + b"trailing", "a") == INFO


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not an image; expected a complete image; got a file that begins with"),
        (JPEG[:3], "not an image"),
        (b"\xff\xd8\xff\xd9\0\0", "not an image"),
        (with_exif(JPEG, 1)[:-2], "damaged image; expected a complete image; got no end-of-image marker"),
        (PNG[: len(PNG) // 2], "damaged image"),
        (PNG[:60] + bytes(400) + PNG[460:], "damaged image; expected a complete image; got broken PNG file"),
        (png_of_size(0, 30), "not an image"),
        (png_of_size(10_000, 10_000), "too large an image; expected at most 40,000,000 pixels; got far more"),
        (png_of_size(100_000, 100_000), "too large an image; expected at most 40,000,000 pixels; got far more"),
    ],
)
def test_damaged_file_is_a_one_line_fault(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "003.jpg"
    path.write_bytes(data)
    (fault,) = check_files([ClipSpec("a", "train", 10, (path,))], 1).faults
    assert fault.startswith(f"{path}: {message}") and "\n" not in fault


def test_undecodable_data_is_named() -> None:
    with pytest.raises(DataError, match=r"^a\.png: damaged image; expected 52x30 pixels; got data that OpenCV cannot"):
        decode_image(PNG[:60], "a.png", INFO)


@given(st.sampled_from([b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]), st.binary(max_size=200))
def test_any_bytes_give_a_size_or_a_data_error(start: bytes, rest: bytes) -> None:
    try:
        width, height = read_info(start + rest, "a").size
    except DataError:
        return
    assert width > 0 and height > 0


@given(st.sampled_from(sorted(IMAGES)), st.data())
def test_truncation_is_found_without_decoding(name: str, data: st.DataObject) -> None:
    complete = IMAGES[name]
    # a PNG's last four bytes are the checksum of its empty end chunk
    length = data.draw(st.integers(0, len(complete) - (1 if complete.startswith(b"\xff\xd8") else 5)))
    with pytest.raises(DataError):
        read_info(complete[:length], "a")


@given(st.sampled_from(sorted(IMAGES)), st.data())
def test_changed_byte_gives_a_size_or_a_data_error(name: str, data: st.DataObject) -> None:
    changed = bytearray(IMAGES[name])
    changed[data.draw(st.integers(0, min(len(changed) - 1, 700)))] = data.draw(st.integers(0, 255))
    try:
        read_info(bytes(changed), "a")
    except DataError as e:
        assert str(e).startswith("a: ")


def test_size_and_pixels_of_real_frames(real: Path) -> None:
    frame = real / "competition/Train/Train/1/imgs/001.jpg"
    assert read_info(frame.read_bytes(), str(frame)) == ImageInfo((1280, 720))
    grey = real / "kitti_odometry/frames/000000.png"
    info = read_info(grey.read_bytes(), str(grey))
    assert info == ImageInfo((1226, 370))
    image = decode_image(grey.read_bytes(), str(grey), info)
    assert image.shape == (370, 1226, 3) and np.array_equal(image[..., 0], image[..., 2])


def test_images_that_are_no_frames_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.HEIC", "2.heic", "3.dng"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert is_single_clip(tmp_path)
    (tmp_path / "Train").mkdir()
    assert not is_single_clip(tmp_path)  # but a data set with other files beside
    (tmp_path / "Train").rmdir()
    with pytest.raises(DataError, match=r"no frames; .* got only 2 \.heic, 1 \.dng\. Try: convert them to JPEG or PNG"):
        read_single_clip(tmp_path, DataConfig(), None)
    (tmp_path / "4.jfif").write_bytes(noise_image(1))
    (tmp_path / "5.JPG").write_bytes(noise_image(2))
    (tmp_path / "drive.mp4").touch()
    for name in (".DS_Store", "._5.JPG", "Thumbs.db"):  # of macOS and Windows
        (tmp_path / name).touch()
    assert read_single_clip(tmp_path, DataConfig(), None).sequence.length == 2
    assert "2 .heic, 1 .dng, 1 .mp4 left out; its frames are the 2 other images" in capsys.readouterr().err
