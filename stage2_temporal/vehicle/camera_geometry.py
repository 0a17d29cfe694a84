"""The scene a run's camera looks at: ground and camera learnt from training labels, and what tracks say in it.

Pure numpy. What was learnt goes into the run's folder (`ground.json`), so that prediction makes the very same vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.errors import DataError
from features.sequences import Camera
from stage2_temporal.vehicle.geometry import (
    GEOMETRY_NAMES,
    Ground,
    fit_camera,
    fit_ground,
    fit_ground_from_motion,
    geometry_vector,
)

CAMERA_GEOMETRY_FILE = "ground.json"
UNIT_GROUND = Ground(0.0, 1.0, 1.0)  # rates of size need no ground


@dataclass(frozen=True)
class WindowTracks:
    """The boxes of n windows.

    Attributes:
        boxes: (n, T, 4) left, top, right, bottom in full-resolution px, NaN where lost.
        confidence: (n, T) 0 to 1.
        fps: (n,) frames a second of the windows, their stride included.
        cameras: n, None where there is no calibration.
    """

    boxes: Floats
    confidence: Floats
    fps: Floats
    cameras: Sequence[Camera | None]


@dataclass(frozen=True)
class CameraGeometry:
    """What a run learnt.

    Attributes:
        ground: where the ground is in its images.
        camera: of sequences without calibration.
        size: width and height of the frames it was learnt on, px.
    """

    ground: Ground
    camera: Camera
    size: tuple[int, int]

    def vectors(self, paths: WindowTracks) -> NDArray[np.float32]:
        """(n, len(NAMES)): `stage2_temporal.vehicle.geometry.geometry_vector` of each window."""
        rows = [
            geometry_vector(boxes, confidence, fps, self.ground, camera or self.camera)
            for boxes, confidence, fps, camera in zip(
                paths.boxes, paths.confidence, paths.fps, paths.cameras, strict=True
            )
        ]
        return np.array(rows, np.float32).reshape(-1, len(GEOMETRY_NAMES))

    def write(self, folder: Path) -> None:
        """Into a run's folder."""
        text = json.dumps({"ground": asdict(self.ground), "camera": asdict(self.camera), "size": self.size}, indent=2)
        (folder / CAMERA_GEOMETRY_FILE).write_text(text + "\n", encoding="utf-8")


def read_camera_geometry(folder: Path) -> CameraGeometry:
    """The scene of a run.

    Raises:
        DataError: it has none, or one that is not whole.
    """
    file = folder / CAMERA_GEOMETRY_FILE
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return CameraGeometry(Ground(**value["ground"]), Camera(**value["camera"]), tuple(value["size"]))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{file}: no ground that was learnt in training", got=e, hint="train anew") from None


def fit_camera_geometry(
    paths: WindowTracks, boxes: Floats, positions: Floats, vx: Floats, size: tuple[int, int]
) -> CameraGeometry:
    """The scene from training labels: from boxes and positions, else from velocities and tracks.

    Args:
        paths: of the training windows.
        boxes: (n, 4) the labels' own, NaN unknown.
        positions: (n, 2) x, y in m, NaN unknown.
        vx: (n,) m/s, NaN unknown.
        size: width and height of the frames.

    Raises:
        DataError: the labels are too few for a ground, or don't fit one.
    """
    camera = fit_camera(boxes, positions, size)
    whole = np.isfinite(boxes).all(axis=1) & np.isfinite(positions).all(axis=1)
    if whole.any():
        return CameraGeometry(fit_ground(boxes, positions), camera, size)
    rates = CameraGeometry(UNIT_GROUND, camera, size).vectors(paths)[:, GEOMETRY_NAMES.index("closing")]
    return CameraGeometry(fit_ground_from_motion(boxes, rates, vx), camera, size)
