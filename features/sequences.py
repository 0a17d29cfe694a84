"""Sequences and labels, as data sets provide them and stores hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

Box = tuple[float, float, float, float]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Label:
    """One row of ground truth.

    Attributes:
        frame: 0-based index of the frame it describes. It may lie outside the sequence: TuSimple's labels describe
            frame 39, of which the competition's clips only have frames 0–7.
        targets: column name → value; NaN if unknown. Standard columns: `vx`, `vy` (m/s, of the annotated
            vehicle relative to the camera, x forward, y right) and `ego_speed` (m/s).
        box: left, top, right, bottom in full-resolution px; None if unknown.
        position: x (forward), y (right) in m; None if unknown.
    """

    frame: int
    targets: Mapping[str, float] = field(default_factory=dict)
    box: Box | None = None
    position: tuple[float, float] | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        fx, fy, cx, cy: focal length and principal point, px.
        height: height above the road in m; None if unknown.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    height: float | None = None


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


def same_sequences(first: Sequence[FrameSequence], second: Sequence[FrameSequence]) -> bool:
    """Whether two lists of sequences are equal; two unknown values (NaN) count as equal."""
    return [_comparison_key(s) for s in first] == [_comparison_key(s) for s in second]


def _comparison_key(s: FrameSequence) -> str:
    labels = tuple(replace(x, targets=dict(sorted(x.targets.items()))) for x in s.labels)
    return repr(replace(s, fps=float(s.fps), labels=labels))  # because NaN is not equal to itself
