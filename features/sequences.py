"""Sequences and labels: what every layout delivers and every store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Label:
    """One row of ground truth.

    Attributes:
        frame: 0-based index of the frame it holds for; may lie outside the sequence (TuSimple's labels hold for
            frame 39 although the competition kept frames 0–7).
        targets: column name → value; NaN where unknown. Standard columns: `vx`, `vy` (m/s, of the annotated
            vehicle relative to the camera, x forward, y right) and `ego_speed` (m/s).
        box: left, top, right, bottom in full-resolution pixels, where known.
        position: x (forward), y (right) in metres, where known.
    """

    frame: int
    targets: Mapping[str, float] = field(default_factory=dict)
    box: Box | None = None
    position: tuple[float, float] | None = None


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        fx, fy: focal length, px.
        cx, cy: principal point, px.
        height: above the road in metres, where known.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    height: float | None = None


@dataclass(frozen=True)
class FrameSequence:
    """Frames in order from one camera.

    Attributes:
        id: unique in its store; for the competition `Train/12`.
        split: one of `SPLITS`.
        length: number of frames.
        fps: frames a second.
        size: width, height of the source frames in pixels.
        digest: SHA-256 (hex) over the contents of the source files that decide the frames.
        labels: its rows of ground truth, in order.
        camera: what took the frames, where a calibration says so.
    """

    id: str
    split: str
    length: int
    fps: float
    size: tuple[int, int]
    digest: str
    labels: tuple[Label, ...] = ()
    camera: Camera | None = None


def same_sequences(some: Sequence[FrameSequence], others: Sequence[FrameSequence]) -> bool:
    """Whether two lists of sequences are equal, unknown values equalling unknown ones."""
    return [_key(s) for s in some] == [_key(s) for s in others]


def _key(s: FrameSequence) -> str:
    # repr, because NaN equals nothing, not even itself
    labels = [(x.frame, sorted(x.targets.items()), x.box, x.position) for x in s.labels]
    return repr((s.id, s.split, s.length, float(s.fps), s.size, s.digest, labels, s.camera))
