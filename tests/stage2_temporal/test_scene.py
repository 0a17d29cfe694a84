"""What a run learns of its camera's scene, kept and read again, and on real frames against a lidar."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from features.errors import DataError
from features.sequences import Camera
from stage1_extract.tracking.tracker import track_box
from stage2_temporal.vehicle.camera_geometry import (
    CameraGeometry,
    WindowTracks,
    fit_camera_geometry,
    read_camera_geometry,
)
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES, Ground, geometry_vector

SCENE = CameraGeometry(Ground(340.0, 1000.0, 1400.0), Camera(714.0, 710.0, 675.0, 376.0), (1280, 720))


def test_a_scene_is_read_as_it_was_written(tmp_path: Path) -> None:
    SCENE.write(tmp_path)
    assert read_camera_geometry(tmp_path) == SCENE
    (tmp_path / "ground.json").write_text('{"ground": {"horizon": 3}}')
    with pytest.raises(DataError, match=r"ground\.json: no ground.*train anew"):
        read_camera_geometry(tmp_path)


def test_a_sequences_own_camera_goes_before_the_scenes() -> None:
    boxes = np.array([[[600.0, 340, 650, 390], [610, 341, 661, 392]]] * 2)
    own = Camera(1000.0, 1000.0, 600.0, 300.0)
    paths = WindowTracks(boxes, np.ones((2, 2)), np.array([10.0, 5.0]), [None, own])
    got = SCENE.vectors(paths)
    for row, fps, camera in ((0, 10.0, SCENE.camera), (1, 5.0, own)):
        np.testing.assert_allclose(
            got[row], geometry_vector(boxes[row], np.ones(2), fps, SCENE.ground, camera), rtol=1e-6
        )
    assert got[0, GEOMETRY_NAMES.index("y_foot")] != got[1, GEOMETRY_NAMES.index("y_foot")]
    assert SCENE.vectors(WindowTracks(boxes[:0], np.ones((0, 2)), np.ones(0), [])).shape == (0, len(GEOMETRY_NAMES))


def test_kitti_lead_car_on_ground_learnt_from_the_first_half(real: Path) -> None:
    """Windows of 7 frames, read at their end; the second half of the scene against the lidar's relative velocity."""
    folder = real / "kitti_lead_car"
    rows = list(csv.DictReader((folder / "labels.csv").read_text().splitlines()))
    frames = [cv2.imread(str(folder / "frames" / row["frame"]), cv2.IMREAD_GRAYSCALE) for row in rows]
    path = track_box(frames, (556, 190, 700, 308), 0)
    ends = np.arange(6, len(rows))
    windows = ends[:, None] + np.arange(-6, 1)
    distance, velocity = (np.array([float(r[c]) for r in rows])[ends] for c in ("distance_m", "relative_velocity_mps"))
    paths = WindowTracks(path.boxes[windows], path.confidence[windows], np.full(len(ends), 10.0), [None] * len(ends))
    first = ends < len(rows) // 2
    learnt = WindowTracks(paths.boxes[first], paths.confidence[first], paths.fps[first], paths.cameras[: first.sum()])
    position = np.stack([distance, 0 * distance], axis=1)
    scene = fit_camera_geometry(learnt, path.boxes[ends][first], position[first], velocity[first], (1242, 375))
    for name in ("vx_foot", "vx_size"):
        off = scene.vectors(paths)[~first, GEOMETRY_NAMES.index(name)] - velocity[~first]
        assert np.sqrt(np.mean(off**2)) <= 0.25
        assert np.sqrt(np.mean((velocity[first].mean() - velocity[~first]) ** 2)) > 0.5  # what a constant does
