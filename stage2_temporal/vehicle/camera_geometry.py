"""Camera geometry: ground and camera fitted to training labels, and the geometry vectors of tracks.

It is saved in the run's folder (`ground.json`), so that prediction computes the same vectors.
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


@dataclass(frozen=True)
class WindowTracks:
    """The tracks of a vehicle in each of n windows."""

    boxes: Floats  # (n, T, 4) left, top, right, bottom in full-resolution px, NaN where lost
    confidence: Floats  # (n, T) 0 to 1
    fps: Floats  # (n,) frames per second of the windows: the sequence's, divided by the window's stride
    cameras: Sequence[Camera | None]  # one per window, None without calibration


@dataclass(frozen=True)
class CameraGeometry:
    """Ground and camera, fitted to a run's training labels."""

    ground: Ground
    camera: Camera  # for sequences without calibration
    size: tuple[int, int]  # width and height of the training frames, px

    def vectors(self, tracks: WindowTracks) -> NDArray[np.float32]:
        """Compute the `geometry_vector` of each window: (n, len(GEOMETRY_NAMES))."""
        windows = zip(tracks.boxes, tracks.confidence, tracks.fps, tracks.cameras, strict=True)
        rows = [
            geometry_vector(boxes, confidence, fps, self.ground, camera or self.camera)
            for boxes, confidence, fps, camera in windows
        ]
        return np.array(rows, np.float32).reshape(-1, len(GEOMETRY_NAMES))

    def write(self, folder: Path) -> None:
        """Save it in a run's folder."""
        (folder / CAMERA_GEOMETRY_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_camera_geometry(folder: Path) -> CameraGeometry:
    """Read the camera geometry of a run; DataError if the file is missing or incomplete."""
    file = folder / CAMERA_GEOMETRY_FILE
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return CameraGeometry(Ground(**value["ground"]), Camera(**value["camera"]), tuple(value["size"]))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{file}: cannot be read as camera geometry", got=e, hint="train again") from None


def fit_camera_geometry(
    tracks: WindowTracks, boxes: Floats, positions: Floats, vx: Floats, size: tuple[int, int]
) -> CameraGeometry:
    """Fit ground and camera to training labels: to boxes and positions, or else to velocities and tracks.

    Args:
        boxes, positions, vx: the labels' (n, 4) px, (n, 2) x and y in m, and (n,) m/s; NaN if unknown.
        size: width and height of the frames, px.

    A DataError if there are too few labels to fit the ground, or they contradict flat ground.
    """
    camera = fit_camera(boxes, positions, size)
    if (np.isfinite(boxes).all(axis=1) & np.isfinite(positions).all(axis=1)).any():
        return CameraGeometry(fit_ground(boxes, positions), camera, size)
    any_ground = Ground(0.0, 1.0, 1.0)  # the rates of sizes do not depend on it
    closing = CameraGeometry(any_ground, camera, size).vectors(tracks)[:, GEOMETRY_NAMES.index("closing")]
    return CameraGeometry(fit_ground_from_motion(boxes, closing, vx), camera, size)
