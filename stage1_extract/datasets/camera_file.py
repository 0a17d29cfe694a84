"""A camera's numbers in a TOML file, as `framebank camera` writes them.

fx = 714.2         # focal lengths, px
fy = 710.4
cx = 675.6         # principal point, px
cy = 376.3
size = [1280, 720] # width and height of the frames that these numbers hold for, px
height = 1.8       # optional: above the road, m
horizon = 340.0    # optional: row at which a flat road would end, px
distortion = [-0.21, 0.05]  # optional: how the lens bends straight lines, OpenCV's k1, k2[, p1, p2[, k3]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from features._common.console import logger
from features.errors import DataError
from features.limits import GREATEST_HEIGHT, LARGEST_COORDINATE
from features.sequences import Camera, same_aspect
from features.strict_model import StrictModel, read_toml
from stage1_extract.datasets.calibration import read_camera
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.undistortion import UndistortedFrames, corner_shift

LARGEST_TERM = 1e3  # of the distortion
Side = Annotated[int, Field(gt=0, le=1 << 20)]
OTHER_SIZE = 0.2  # log of the ratio of sizes from which numbers are taken to be for another one
SMALL_SHIFT = 0.005  # of the corners by the lens, which is less than a calibration is off


class CameraFile(StrictModel):
    """The content of a camera file."""

    fx: float = Field(gt=0, le=LARGEST_COORDINATE)
    """Horizontal focal length in px."""
    fy: float = Field(gt=0, le=LARGEST_COORDINATE)
    """Vertical focal length in px."""
    cx: float = Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)
    """Column of the principal point in px."""
    cy: float = Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)
    """Row of the principal point in px."""
    size: tuple[Side, Side]
    """Width and height in px of the frames that these numbers hold for."""
    height: float | None = Field(None, gt=0, le=GREATEST_HEIGHT)
    """Height above the road in m."""
    horizon: float | None = Field(None, ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)
    """Row at which a flat road would end, in px; without distortion."""
    distortion: tuple[Annotated[float, Field(ge=-LARGEST_TERM, le=LARGEST_TERM)], ...] = ()
    """OpenCV's distortion coefficients k1, k2[, p1, p2[, k3]]; none: the lens keeps straight lines straight."""

    @field_validator("distortion")
    @classmethod
    def _known_count(cls, terms: tuple[float, ...]) -> tuple[float, ...]:
        if len(terms) not in (0, 2, 4, 5):
            raise ValueError(f"expected 2, 4 or 5 numbers: k1, k2[, p1, p2[, k3]], got {len(terms)}")
        return (*terms, 0.0, 0.0) if len(terms) == 2 else terms

    def camera(self, size: tuple[int, int]) -> Camera:
        """The camera for frames of this width and height in px; a DataError if they have another shape."""
        if not same_aspect(size, self.size):
            raise DataError(
                "the camera file is for frames of another shape",
                expected=f"{self.size[0]}x{self.size[1]}, enlarged or reduced",
                got=f"{size[0]}x{size[1]}",
                hint="a camera file for this size",
            )
        return Camera(self.fx, self.fy, self.cx, self.cy, self.height, self.horizon).resized(self.size, size)


def check_camera(camera: Camera, size: tuple[int, int], where: str, *, strict: bool = True) -> None:
    """Warn if a camera seems to be for frames of another size in px.

    Raises:
        DataError: it cannot be that of these frames, and `strict`; else that is a warning, too.
    """
    (width, height), hint = size, "a camera file with the size that its numbers hold for"
    what = expected = got = ""
    if camera.horizon is not None and camera.horizon >= height - 1:
        what, expected, got = "horizon is below the frames", f"a row above {height - 1}", f"{camera.horizon:.0f}"
    if not (0 <= camera.cx < width and 0 <= camera.cy < height):
        what, expected = "principal point is outside the frames", f"one in {width}x{height}"
        got = f"({camera.cx:.0f}, {camera.cy:.0f})"
    if what:
        error = DataError(f"{where}: its {what}", expected=expected, got=got, hint=hint)
        if strict:
            raise error
        logger.warning(str(error))
        return
    x, y = 2 * (camera.cx + 0.5) / width, 2 * (camera.cy + 0.5) / height
    if abs(math.log(x)) > OTHER_SIZE and abs(math.log(y / x)) < OTHER_SIZE:
        middle = f"({camera.cx:.0f}, {camera.cy:.0f}) is the middle of frames of about {x * width:.0f}x{y * height:.0f}"
        logger.warning(f"{where}: its principal point {middle}, not of {width}x{height}. Try: {hint}")


def read_camera_file(path: Path) -> CameraFile:
    """Read a camera file; a ConfigError if it is missing, is not TOML, or has an unknown key or a wrong value."""
    return read_toml(CameraFile, path)


def with_camera(clips: Sequence[Clip], file: Path, *, undistort: bool = False, strict: bool = True) -> tuple[Clip, ...]:
    """Give all clips the camera of a file: a .toml as `CameraFile` describes it, or text like calibration.txt.

    The lens's distortion is taken out of the frames if `undistort`; else a warning says that it is not. A DataError or
    ConfigError if the file cannot be read, or is for frames of another shape. For `strict`, see `check_camera`.
    """
    described = read_camera_file(file) if file.suffix.lower() == ".toml" else read_camera(file)
    cameras = [described if isinstance(described, Camera) else described.camera(c.sequence.size) for c in clips]
    for camera, size in {(camera, c.sequence.size): None for c, camera in zip(clips, cameras, strict=True)}:
        check_camera(camera, size, str(file), strict=strict)
    pairs = zip(clips, cameras, strict=True)
    clips = [replace(clip, sequence=replace(clip.sequence, camera=camera)) for clip, camera in pairs]
    terms = () if isinstance(described, Camera) else described.distortion
    if not any(terms):
        return tuple(clips)
    if undistort:
        sources = (UndistortedFrames(c.source, k, c.sequence.size, terms) for c, k in zip(clips, cameras, strict=True))
        return tuple(replace(clip, source=source) for clip, source in zip(clips, sources, strict=True))
    shift = max((corner_shift(k, c.sequence.size, terms) for c, k in zip(clips, cameras, strict=True)), key=abs)
    if abs(shift) > SMALL_SHIFT:
        logger.warning(
            f"{file}: the lens moves the corners of the frame by {100 * shift:+.1f} %, which only `framebank speed` "
            "corrects"
        )
    return tuple(clips)
