"""Where the road is in footage that a run predicts: its calibration, the run's own ground, or the boxes tell.

the run's ground      where the footage has the same camera as the training, or none is known and its boxes agree
the calibration       horizon, and height above the road; what it lacks is fitted to the boxes
the boxes alone       without a calibration, starting from a usual dash-cam; a warning says so
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from features._common.types import Floats
from features.sequences import Camera, FrameSequence
from features.tracks import Track
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, SeenGround, View, box_noise
from stage2_temporal.vehicle.ground import Ground
from stage2_temporal.vehicle.self_calibration import Calibration, calibrate_ground

SAME_INTRINSICS = 0.02  # largest difference of focal lengths, and of columns as a share of the width
SAME_ASPECT = 0.01  # largest relative difference of the aspect ratios of frames from one camera
SAME_HEIGHT = 0.05  # largest relative difference of heights
NOD = 0.004  # radians by which cars nod
PITCH = 0.045  # radians by which dash-cams are tilted
UNKNOWN_HEIGHT = 1.5, 0.25  # m above the road, and the deviation of its log
CAR_WIDTH, CAR_HEIGHT = 1.8, 1.5  # m
DIFFERENT = 12.0  # by how much less another ground must cost than the run's: 1 in 400 by chance
OTHER_NOISE = 1.5  # times the noise of the training's boxes, from which footage has a noise of its own
DIFFERENT_DISTANCE = 0.1  # of the log of distances, from which a ground counts as different
UNCHECKED_DISTANCE = 0.25  # deviation of the log of distances from which boxes do not tell grounds apart


@dataclass(frozen=True)
class ViewGrounds:
    """The ground and camera of each view, and what the user should know about them."""

    grounds: Mapping[View, SeenGround]
    noise: float  # px: standard deviation of the width and height of well matched boxes
    warnings: tuple[str, ...] = ()


def views_of(sequences: Iterable[FrameSequence]) -> dict[View, Floats]:
    """The labelled boxes (m, 4) of each view."""
    boxes: dict[View, list[Floats]] = {}
    for sequence in sequences:
        known = boxes.setdefault(View(sequence.camera, sequence.size), [np.zeros((0, 4))])
        known.append(np.array([x.box for x in sequence.labels if x.box is not None], np.float64).reshape(-1, 4))
    return {view: np.concatenate(parts) for view, parts in boxes.items()}


def find_view_grounds(
    geometry: CameraGeometry, views: Mapping[View, Floats], tracks: Iterable[Track] = ()
) -> ViewGrounds:
    """Find the ground of each view of some footage, given boxes (m, 4) px seen in it, and the noise of its tracks."""
    results = {view: _find_ground(geometry, view, boxes) for view, boxes in views.items()}
    noise = box_noise(((track.boxes, track.confidence) for track in tracks), geometry.noise)
    return ViewGrounds(
        {view: seen for view, (seen, _) in results.items()},
        noise if noise > OTHER_NOISE * geometry.noise else geometry.noise,
        tuple(f"{text} (Try: --camera FILE)" for _, text in results.values() if text),
    )


def _find_ground(geometry: CameraGeometry, view: View, boxes: Floats) -> tuple[SeenGround, str]:
    """A view's ground, and a warning or an empty text."""
    camera = view.camera
    for known, ground in ((geometry.view, geometry.ground), *geometry.others):
        if known == view and camera is not None:
            return SeenGround(ground, camera), ""
    if camera is not None and _same_camera(camera, geometry, view.size):
        return SeenGround(geometry.ground, camera), ""
    if camera is not None:
        prior, nod = _prior(geometry, camera)
        ground = calibrate_ground(boxes, prior, nod).ground
        if camera.height is not None:
            return SeenGround(ground, camera), ""
        estimated = f"the camera's height is not known; boxes suggest {ground.scale / camera.fy:.2f} m"
        return SeenGround(ground, camera), f"{estimated}, so distances and velocities may be off by a fifth"
    guessed = _guessed_camera(geometry, view.size)
    prior, nod = _prior(geometry, guessed)
    broad = calibrate_ground(boxes, prior, nod)
    if view.size == geometry.size:
        trained = calibrate_ground(boxes, geometry.ground, nod)
        if not _differs(trained, broad, geometry.ground, boxes):
            unchecked = _distance_deviation(broad.ground, boxes) > UNCHECKED_DISTANCE
            text = "the camera is not known and too few boxes show whether it is the training's, which is assumed"
            return SeenGround(geometry.ground, geometry.camera), text if unchecked else ""
    seen = broad.ground
    return SeenGround(seen, guessed), (
        f"the camera is not known, and differs from the training's: boxes suggest the horizon at row "
        f"{seen.horizon:.0f} and a height of {seen.scale / guessed.fy:.2f} m "
        f"(training: {geometry.ground.horizon:.0f} of {geometry.size[0]}x{geometry.size[1]}, "
        f"{geometry.ground.scale / geometry.camera.fy:.2f} m), so distances and velocities may be off by a third"
    )


def _guessed_camera(geometry: CameraGeometry, size: tuple[int, int]) -> Camera:
    """A camera with the training's angle of view, for frames of a size."""
    trained, ratio = geometry.camera, size[0] / geometry.size[0]
    if abs(size[1] / (geometry.size[1] * ratio) - 1) < SAME_ASPECT:
        return replace(trained.resized(geometry.size, size), height=None, horizon=None)
    return Camera(trained.fx * ratio, trained.fy * ratio, (size[0] - 1) / 2, (size[1] - 1) / 2)


def _same_camera(camera: Camera, geometry: CameraGeometry, size: tuple[int, int]) -> bool:
    """Whether a calibration is the training camera's, mounted as it was there as far as both say."""
    trained = geometry.camera
    limit, width = SAME_INTRINSICS, geometry.size[0]
    return (
        size == geometry.size
        and abs(camera.fx / trained.fx - 1) <= limit
        and abs(camera.cx - trained.cx) <= limit * width
        and (camera.height is None or _close(camera.height, trained.height, SAME_HEIGHT * camera.height))
        and (camera.horizon is None or _close(camera.horizon, geometry.ground.horizon, NOD * camera.fy))
    )


def _close(value: float, other: float | None, limit: float) -> bool:
    return other is None or abs(value - other) <= limit


def _prior(geometry: CameraGeometry, camera: Camera) -> tuple[Ground, float]:
    """What is known about a camera's ground before any box, and how far its horizon nods, px."""
    height, deviation = UNKNOWN_HEIGHT if camera.height is None else (camera.height, 0.03)
    known, trained = camera.horizon is not None, geometry.camera
    # vehicles of other footage are between the training's and usual cars
    width = math.sqrt(CAR_WIDTH * geometry.ground.span / trained.fx)
    tall = math.sqrt(CAR_HEIGHT * geometry.ground.usual_tall / trained.fy)
    ground = Ground(
        horizon=camera.horizon if camera.horizon is not None else camera.cy,
        scale=camera.fy * height,
        span=width * camera.fx,
        tall=tall * camera.fy,
        horizon_deviation=(NOD / 2 if known else PITCH) * camera.fy,
        scale_deviation=deviation,
    )
    return ground, NOD * camera.fy


def _differs(trained: Calibration, broad: Calibration, ground: Ground, boxes: Floats) -> bool:
    """Whether boxes fit another ground so much better than the training's that it cannot be the same."""
    bottom = boxes[np.isfinite(boxes).all(axis=1), 3]
    if not len(bottom):
        return False
    # residuals of one vehicle's boxes are alike: what they exceed their expectation by counts for all
    dispersion = max(1.0, broad.cost / (2 * len(bottom)))
    logs = [np.log(g.distance_from_bottom(bottom)) for g in (broad.ground, ground)]
    distance = abs(float(np.median(logs[0] - logs[1])))
    return (trained.cost - broad.cost) / dispersion > DIFFERENT and distance > DIFFERENT_DISTANCE


def _distance_deviation(ground: Ground, boxes: Floats) -> float:
    """The deviation of the log of the median box's distance."""
    bottom = boxes[np.isfinite(boxes).all(axis=1), 3]
    below = max(float(np.median(bottom)) - ground.horizon, 1.0) if len(bottom) else 1.0
    return math.hypot(ground.horizon_deviation / below, ground.scale_deviation)
