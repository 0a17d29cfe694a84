"""A camera's numbers in a TOML file, as `framebank camera` writes them.

fx = 714.2         # focal lengths, px
fy = 710.4
cx = 675.6         # principal point, px
cy = 376.3
size = [1280, 720] # width and height of the frames that these numbers hold for, px
height = 1.8       # optional: above the road, m
horizon = 340.0    # optional: row at which a flat road would end, px
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from features.errors import DataError
from features.sequences import Camera, same_aspect
from features.strict_model import StrictModel, read_toml
from stage1_extract.datasets.calibration import read_camera
from stage1_extract.datasets.clip import Clip


class CameraFile(StrictModel):
    """The content of a camera file."""

    fx: float = Field(gt=0)
    """Horizontal focal length in px."""
    fy: float = Field(gt=0)
    """Vertical focal length in px."""
    cx: float
    """Column of the principal point in px."""
    cy: float
    """Row of the principal point in px."""
    size: tuple[int, int]
    """Width and height in px of the frames that these numbers hold for."""
    height: float | None = Field(None, gt=0)
    """Height above the road in m."""
    horizon: float | None = None
    """Row at which a flat road would end, in px."""

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


def read_camera_file(path: Path) -> CameraFile:
    """Read a camera file; a ConfigError if it is missing, is not TOML, or has an unknown key or a wrong value."""
    return read_toml(CameraFile, path)


def with_camera(clips: Sequence[Clip], file: Path) -> tuple[Clip, ...]:
    """Give all clips the camera of a file: a .toml as `CameraFile` describes it, or text like calibration.txt.

    A DataError or ConfigError if the file cannot be read, or is for frames of another shape.
    """
    described = read_camera_file(file) if file.suffix.lower() == ".toml" else read_camera(file)
    cameras = [described if isinstance(described, Camera) else described.camera(c.sequence.size) for c in clips]
    pairs = zip(clips, cameras, strict=True)
    return tuple(replace(clip, sequence=replace(clip.sequence, camera=camera)) for clip, camera in pairs)
