"""Camera geometry: saved and read again, and on real frames compared with a lidar."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
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
    SeenGround,
    View,
    WindowTracks,
    box_noise,
    fit_camera_geometry,
    read_camera_geometry,
)
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES, TRACK_NAMES, geometry_vector
from stage2_temporal.vehicle.ground import Ground

SIZE = (1280, 720)
GEOMETRY = CameraGeometry(Ground(340.0, 1000.0, 1400.0), Camera(714.0, 710.0, 675.0, 376.0), (1280, 720))


def test_written_geometry_is_read_again(tmp_path: Path) -> None:
    other = (View(Camera(500.0, 500.0, 300.0, 200.0, 1.2), (640, 480)), Ground(210.0, 600.0, 1000.0, 800.0))
    for geometry in (GEOMETRY, replace(GEOMETRY, calibrated=True, noise=0.4, others=(other,))):
        geometry.write(tmp_path)
        assert read_camera_geometry(tmp_path) == geometry
    (tmp_path / "ground.json").write_text('{"ground": {"horizon": 3}}')
    with pytest.raises(DataError, match=r"ground\.json: cannot be read.*train again"):
        read_camera_geometry(tmp_path)


def test_geometry_of_an_older_run_is_read_and_gives_the_vectors_that_it_knows(tmp_path: Path) -> None:
    old = {
        "ground": {"horizon": 340.0, "scale": 1000.0, "span": 1400.0},
        "camera": {"fx": 714.0, "fy": 710.0, "cx": 675.0, "cy": 376.0},
        "size": [1280, 720],
    }
    (tmp_path / "ground.json").write_text(json.dumps(old))
    geometry = read_camera_geometry(tmp_path)
    assert geometry == GEOMETRY
    boxes = np.array([[[600.0, 340, 650, 390], [610, 341, 661, 392]]])
    view = View(None, SIZE)
    tracks = WindowTracks(boxes, np.ones((1, 2)), np.array([[-0.1, 0.0]]), [view])
    grounds = {view: SeenGround(geometry.ground, geometry.camera)}
    vectors = geometry.vectors(tracks, grounds)
    assert vectors.shape == (1, len(TRACK_NAMES))
    np.testing.assert_array_equal(vectors, GEOMETRY.vectors(tracks, grounds)[:, : len(TRACK_NAMES)])


def test_each_window_has_the_camera_and_ground_of_its_view() -> None:
    boxes = np.array([[[600.0, 340, 650, 390], [610, 341, 661, 392]]] * 2)
    calibrated = Camera(1000.0, 1000.0, 600.0, 300.0)
    times = np.array([[-0.1, 0.0], [-0.2, 0.0]])
    views = [View(None, SIZE), View(calibrated, SIZE)]
    tracks = WindowTracks(boxes, np.ones((2, 2)), times, views)
    seen = [SeenGround(GEOMETRY.ground, GEOMETRY.camera), SeenGround(Ground(300.0, 1500.0, 1800.0), calibrated)]
    vectors = GEOMETRY.vectors(tracks, dict(zip(views, seen, strict=True)))
    for row, (ground, camera) in enumerate((s.ground, s.camera) for s in seen):
        expected = geometry_vector(boxes[row], np.ones(2), times[row], ground, camera)
        np.testing.assert_allclose(vectors[row], expected, rtol=1e-6)
    assert vectors[0, GEOMETRY_NAMES.index("y_foot")] != vectors[1, GEOMETRY_NAMES.index("y_foot")]
    none = WindowTracks(boxes[:0], np.ones((0, 2)), times[:0], [])
    assert GEOMETRY.vectors(none, {}).shape == (0, len(GEOMETRY_NAMES))


def test_noise_of_boxes_is_found_in_their_tracks() -> None:
    rng, t = np.random.default_rng(0), np.arange(12) / 10
    for noise in (0.05, 1.0):  # of each edge, so √2 of it in a size
        tracks = []
        for _ in range(60):
            half = 714 / (rng.uniform(15, 60) + rng.normal(0, 2) * t)
            boxes = np.stack([600 - half, 380 - half, 600 + half, 380 + half], axis=1) + rng.normal(0, noise, (12, 4))
            tracks.append((boxes, np.ones(12)))
        assert box_noise(tracks) == pytest.approx(noise * np.sqrt(2), rel=0.15)
    assert box_noise([], usual=0.3) == 0.3


def test_every_training_camera_with_enough_labels_has_a_ground_of_its_own() -> None:
    rng = np.random.default_rng(1)
    first, second = View(Camera(714.0, 710.0, 675.0, 376.0), SIZE), View(Camera(500.0, 500.0, 320.0, 240.0), (640, 480))
    grounds = {first: Ground(340.0, 1270.0, 0.0), second: Ground(215.0, 600.0, 0.0)}
    views = [first] * 50 + [second] * 30
    x = rng.uniform(8, 70, len(views))
    boxes = []
    for view, distance in zip(views, x, strict=True):
        assert view.camera is not None
        bottom, half = grounds[view].horizon + grounds[view].scale / distance, view.camera.fx / distance
        boxes.append([300 - half, bottom - 1.6 * half, 300 + half, bottom])
    last = np.array(boxes)
    tracks = WindowTracks(last[:, None], np.ones((len(x), 1)), np.zeros((len(x), 1)), views)
    geometry = fit_camera_geometry(tracks, last, np.stack([x, 0 * x], axis=1), 0 * x)
    assert geometry.view == first
    assert [view for view, _ in geometry.others] == [second]
    for view, ground in ((first, geometry.ground), *geometry.others):
        assert ground.horizon == pytest.approx(grounds[view].horizon, abs=0.1)
        assert ground.scale == pytest.approx(grounds[view].scale, rel=0.01)


def test_many_calibrated_cameras_with_a_label_each_have_vehicles_of_one_size() -> None:
    rng = np.random.default_rng(2)
    views, boxes, x = [], [], rng.uniform(8, 60, 40)
    for distance in x:
        camera = Camera(*rng.uniform(500, 1100, 2), 500.0, 300.0, rng.uniform(1.2, 1.9), rng.uniform(200, 400))
        assert camera.height is not None and camera.horizon is not None
        bottom = camera.horizon + camera.fy * camera.height / distance
        boxes.append([300, bottom - camera.fy * 1.6 / distance, 300 + camera.fx * 1.9 / distance, bottom])
        views.append(View(camera, SIZE))
    last, position = np.array(boxes), np.stack([x, 0 * x], axis=1)
    tracks = WindowTracks(last[:, None], np.ones((40, 1)), np.zeros((40, 1)), views)
    geometry = fit_camera_geometry(tracks, last, position, 0 * x)
    camera, ground = geometry.camera, geometry.ground
    assert camera.height is not None
    assert (ground.horizon, ground.scale) == pytest.approx((camera.horizon, camera.fy * camera.height), rel=1e-3)
    assert (ground.span / camera.fx, ground.usual_tall / camera.fy) == pytest.approx((1.9, 1.6), rel=1e-3)


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

    view = View(None, (1242, 375))

    def tracks(selected: NDArray[np.bool_]) -> WindowTracks:
        n = int(selected.sum())
        times = np.tile(np.arange(-6, 1) / 10, (n, 1))
        return WindowTracks(track.boxes[windows[selected]], track.confidence[windows[selected]], times, [view] * n)

    first = ends < len(rows) // 2
    boxes = track.boxes[ends][first]
    geometry = fit_camera_geometry(tracks(first), boxes, position[first], velocity[first])
    grounds = {view: SeenGround(geometry.ground, geometry.camera)}
    vectors, expected = geometry.vectors(tracks(~first), grounds), velocity[~first]
    for name in ("vx_foot", "vx_size", "vx"):
        assert np.sqrt(np.mean((vectors[:, GEOMETRY_NAMES.index(name)] - expected) ** 2)) <= 0.25
    assert np.sqrt(np.mean((velocity[first].mean() - expected) ** 2)) > 0.5  # the constant's error
