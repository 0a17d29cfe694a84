"""Sequences and labels, as data sets provide them and stores hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from features._common.types import Floats

Box = tuple[float, float, float, float]
SAME_ASPECT = 0.01  # largest relative difference of the aspect ratios of frames from one camera
USUAL_FOCAL_LENGTH = 0.65  # of the width, in dash-cams and phones
USUAL_HEIGHT = 1.5  # m of dash-cams above the road
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Label:
    """One row of ground truth.

    Standard targets are `vx`, `vy` (m/s, of the annotated vehicle relative to the camera, x forward, y right) and
    `ego_speed` (m/s). The frame may lie outside the sequence: TuSimple's labels describe frame 39, of which the
    competition's clips only have frames 0–7.
    """

    frame: int  # the frame it describes, 0-based
    targets: Mapping[str, float] = field(default_factory=dict)  # column name → value, NaN if unknown
    box: Box | None = None  # left, top, right, bottom in full-resolution px
    position: tuple[float, float] | None = None  # x (forward), y (right) in m


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: its focal length and principal point in px, and where the road is, if known."""

    fx: float
    fy: float
    cx: float
    cy: float
    height: float | None = None  # above the road, m
    horizon: float | None = None  # row at which a flat road would end, px

    def resized(self, size: tuple[int, int], to: tuple[int, int]) -> Camera:
        """The same camera for frames of another width and height in px."""
        x, y = to[0] / size[0], to[1] / size[1]
        # pixel centres are whole numbers, so the image begins at −0.5
        cx, cy = (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5
        horizon = None if self.horizon is None else (self.horizon + 0.5) * y - 0.5
        return Camera(self.fx * x, self.fy * y, cx, cy, self.height, horizon)


@dataclass(frozen=True)
class FrameSequence:
    """Consecutive frames from one camera."""

    id: str  # unique in its store, e.g. `Train/12` for the competition
    split: str  # one of `SPLITS`
    length: int  # number of frames
    fps: float  # frames per second
    size: tuple[int, int]  # width, height of the source frames, px
    digest: str  # SHA-256 (hex) over the contents of the source files
    labels: tuple[Label, ...] = ()
    camera: Camera | None = None  # None without a calibration
    # the part of each frame that the network sees, which may reach beyond the frame: left, top, right, bottom in px;
    # None: the whole frame
    region: tuple[int, int, int, int] | None = None
    # when each frame was taken, in seconds and ascending; None: evenly, the first at 0 and `fps` of them per second
    times: tuple[float, ...] | None = None

    @property
    def frame_times(self) -> Floats:
        """When each frame was taken: (length,), in seconds."""
        return np.arange(self.length) / self.fps if self.times is None else np.array(self.times, np.float64)

    @property
    def known_camera(self) -> Camera:
        """The calibration, with usual values for an unknown focal length, principal point and height."""
        width, height = self.size
        focal_length = USUAL_FOCAL_LENGTH * width
        usual = Camera(focal_length, focal_length, (width - 1) / 2, (height - 1) / 2)
        camera = self.camera or usual
        return replace(camera, height=camera.height or USUAL_HEIGHT)

    @property
    def visible_region(self) -> tuple[int, int, int, int]:
        """The part of each frame that the network and the thumbnails show: left, top, right, bottom in px."""
        return self.region or (0, 0, *self.size)

    @property
    def frame_intervals(self) -> Floats:
        """Seconds since the frame before: (length,); the first frame has the second one's."""
        steps = np.diff(self.frame_times)
        return np.concatenate([steps[:1], steps]) if len(steps) else np.full(self.length, 1 / self.fps)

    def labels_with_boxes(self) -> list[tuple[int, int, Box]]:
        """The index, frame and box of each label that has a finite box on one of the sequence's frames."""
        return [
            (i, label.frame, label.box)
            for i, label in enumerate(self.labels)
            if label.box is not None and all(map(math.isfinite, label.box)) and 0 <= label.frame < self.length
        ]


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether frames of two sizes (width, height) may be the same view, reduced or enlarged."""
    return abs(first[0] * second[1] / (first[1] * second[0]) - 1) <= SAME_ASPECT


def same_sequences(first: Sequence[FrameSequence], second: Sequence[FrameSequence]) -> bool:
    """Whether two lists of sequences are equal; two unknown values (NaN) count as equal."""

    def key(s: FrameSequence) -> str:
        labels = tuple(replace(x, targets=dict(sorted(x.targets.items()))) for x in s.labels)
        return repr(replace(s, fps=float(s.fps), labels=labels))  # because NaN is not equal to itself

    return len(first) == len(second) and all(a == b or key(a) == key(b) for a, b in zip(first, second, strict=True))
