"""Camera geometry: saved and read again, and on real frames compared with a lidar."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from features.errors import DataError
from features.sequences import Camera
from stage1_extract.tracking.tracker import track_known_boxes
from stage2_temporal.vehicle.camera_geometry import (
    CameraGeometry,
    WindowTracks,
    fit_camera_geometry,
    read_camera_geometry,
)
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES, Ground, geometry_vector

GEOMETRY = CameraGeometry(Ground(340.0, 1000.0, 1400.0), Camera(714.0, 710.0, 675.0, 376.0), (1280, 720))


def test_written_geometry_is_read_again(tmp_path: Path) -> None:
    GEOMETRY.write(tmp_path)
    assert read_camera_geometry(tmp_path) == GEOMETRY
    (tmp_path / "ground.json").write_text('{"ground": {"horizon": 3}}')
    with pytest.raises(DataError, match=r"ground\.json: cannot be read.*train again"):
        read_camera_geometry(tmp_path)


def test_calibrated_camera_of_a_sequence_is_preferred() -> None:
    boxes = np.array([[[600.0, 340, 650, 390], [610, 341, 661, 392]]] * 2)
    calibrated = Camera(1000.0, 1000.0, 600.0, 300.0)
    tracks = WindowTracks(boxes, np.ones((2, 2)), np.array([10.0, 5.0]), [None, calibrated])
    vectors = GEOMETRY.vectors(tracks)
    for row, fps, camera in ((0, 10.0, GEOMETRY.camera), (1, 5.0, calibrated)):
        np.testing.assert_allclose(
            vectors[row], geometry_vector(boxes[row], np.ones(2), fps, GEOMETRY.ground, camera), rtol=1e-6
        )
    assert vectors[0, GEOMETRY_NAMES.index("y_foot")] != vectors[1, GEOMETRY_NAMES.index("y_foot")]
    assert GEOMETRY.vectors(WindowTracks(boxes[:0], np.ones((0, 2)), np.ones(0), [])).shape == (0, len(GEOMETRY_NAMES))


def test_kitti_lead_car_velocity_matches_the_lidar(real: Path) -> None:
    """Windows of 7 frames; the ground is fitted to the first half of the clip, the second half is compared."""
    folder = real / "kitti_lead_car"
    rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
    frames = [cv2.imread(str(folder / "frames" / row["frame"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    track = track_known_boxes(frames, {0: (556, 190, 700, 308)})
    ends = np.arange(6, len(rows))
    windows = ends[:, None] + np.arange(-6, 1)
    distance, velocity = (np.array([float(r[c]) for r in rows])[ends] for c in ("distance_m", "relative_velocity_mps"))
    position = np.stack([distance, 0 * distance], axis=1)

    def tracks(selected: NDArray[np.bool_]) -> WindowTracks:
        n = int(selected.sum())
        return WindowTracks(
            track.boxes[windows[selected]], track.confidence[windows[selected]], np.full(n, 10.0), [None] * n
        )

    first = ends < len(rows) // 2
    boxes = track.boxes[ends][first]
    geometry = fit_camera_geometry(tracks(first), boxes, position[first], velocity[first], (1242, 375))
    vectors, expected = geometry.vectors(tracks(~first)), velocity[~first]
    for name in ("vx_foot", "vx_size"):
        assert np.sqrt(np.mean((vectors[:, GEOMETRY_NAMES.index(name)] - expected) ** 2)) <= 0.25
    assert np.sqrt(np.mean((velocity[first].mean() - expected) ** 2)) > 0.5  # the constant's error
