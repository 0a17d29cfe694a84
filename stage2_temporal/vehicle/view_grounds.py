"""Where the road is in footage that a run predicts: its calibration, the run's own ground, or the boxes tell.

the run's ground      where the footage has the same camera as the training, or none is known and its boxes agree
the calibration       horizon, and height above the road; what it lacks is fitted to the boxes
the boxes alone       without a calibration, starting from a usual dash-cam; a warning says so

Sequences without calibration are pooled by the size of their frames, since data sets are usually of one camera. A
sequence has a ground of its own where its boxes contradict that of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from features._common.types import Floats, Size
from features.sequences import USUAL_FOCAL_LENGTH, Camera, FrameSequence, same_aspect
from features.tracks import Track
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, SeenGround, View, box_noise, view_of
from stage2_temporal.vehicle.ground import SCALE_DEVIATION, Ground
from stage2_temporal.vehicle.self_calibration import Calibration, calibrate_ground

SAME_INTRINSICS = 0.02  # largest difference of focal lengths, and of columns as a share of the width
SAME_HEIGHT = 0.05  # largest relative difference of heights
NOD = 0.004  # radians by which cars nod
PITCH = 0.035  # radians by which dash-cams are tilted
UNKNOWN_HEIGHT = 1.5, 0.25  # m above the road, and the deviation of its log
CAR_WIDTH, CAR_HEIGHT = 1.8, 1.5  # m
DIFFERENT = 12.0  # by how much less a sequence's or footage's own ground must cost: 1 in 400 by chance
OTHER_NOISE = 2.0  # times the noise of the training's boxes, from which footage has a noise of its own
DIFFERENT_DISTANCE = 0.1  # of the log of distances, from which a ground counts as different
UNCHECKED_DISTANCE = 0.25  # deviation of the log of distances from which boxes do not tell grounds apart
MIN_BOXES = 10  # boxes from which a sequence without calibration may have a ground of its own
ROUNDS = 3  # of finding the ground of most sequences and those that contradict it
MAX_WARNINGS = 3  # lines about single cameras


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
        known = boxes.setdefault(view_of(sequence), [np.zeros((0, 4))])
        known.append(np.array([x.box for x in sequence.labels if x.box is not None], np.float64).reshape(-1, 4))
    return {view: np.concatenate(parts) for view, parts in boxes.items()}


def find_view_grounds(
    geometry: CameraGeometry, views: Mapping[View, Floats], tracks: Iterable[Track] = ()
) -> ViewGrounds:
    """Find the ground of each view of some footage, given boxes (m, 4) px seen in it, and the noise of its tracks."""
    grounds: dict[View, SeenGround] = {}
    lines = []
    uncalibrated: dict[Size, dict[View, Floats]] = {}
    for view, boxes in views.items():
        if view.camera is None:
            uncalibrated.setdefault(view.size, {})[view] = boxes
        else:
            grounds[view], text = _find_ground(_in_size(geometry, view.size), view, view.camera, boxes)
            lines.append((view.size, text))
    for size, alike in uncalibrated.items():
        of_size, text = _uncalibrated_grounds(_in_size(geometry, size), size, alike)
        grounds |= of_size
        lines.append((size, text))
    warnings = [f"{size[0]}x{size[1]} frames: {text}. Try: --camera FILE" for size, text in lines if text]
    if len(warnings) > MAX_WARNINGS:
        warnings[MAX_WARNINGS:] = [f"so it is for {len(warnings) - MAX_WARNINGS} more cameras"]
    return ViewGrounds(grounds, _noise(geometry, tracks), tuple(warnings))


def _noise(geometry: CameraGeometry, tracks: Iterable[Track]) -> float:
    """The noise of footage's boxes, px: the run's, unless its tracks show that they are clearly worse."""
    if geometry.noise_given:
        return geometry.noise
    noise = box_noise(((track.boxes, track.confidence) for track in tracks), geometry.noise)
    return noise if noise > OTHER_NOISE * geometry.noise else geometry.noise


def _find_ground(geometry: CameraGeometry, view: View, camera: Camera, boxes: Floats) -> tuple[SeenGround, str]:
    """The ground of a view with a calibration, and a warning or an empty text."""
    for known, ground in ((geometry.view, geometry.ground), *geometry.others):
        if known == view:
            return SeenGround(ground, camera), ""
    return _calibrated_ground(geometry, camera, view.size, boxes)


def _uncalibrated_grounds(
    geometry: CameraGeometry, size: Size, views: Mapping[View, Floats]
) -> tuple[dict[View, SeenGround], str]:
    """The grounds of views of one size without calibration: one for all, but for those whose boxes contradict it."""
    separate: dict[View, SeenGround] = {}
    for _ in range(ROUNDS if len(views) > 1 else 1):
        rest = [boxes for view, boxes in views.items() if view not in separate]
        shared, text = _uncalibrated_ground(geometry, size, np.concatenate(rest))
        tried = {view: _own_ground(geometry, size, boxes, shared) for view, boxes in views.items()}
        before, separate = separate, {view: seen for view, seen in tried.items() if seen is not None}
        if separate.keys() == before.keys() or len(separate) == len(views):
            break
    if len(separate) == len(views):
        text = ""  # no sequence has the shared ground
    others = sum(seen.ground != geometry.ground for seen in separate.values())
    if others:
        lines = (
            f"by their boxes, {others} of {len(views)} sequences without calibration have other cameras, so each has a "
            "ground of its own, and its distances and velocities may be off by a third",
            text,
        )
        text = "; ".join(filter(None, lines))
    return {view: separate.get(view, shared) for view in views}, text


def _own_ground(geometry: CameraGeometry, size: Size, boxes: Floats, shared: SeenGround) -> SeenGround | None:
    """The ground of a sequence whose boxes contradict the one that all have; None if they do not, or are few."""
    if np.isfinite(boxes).all(axis=1).sum() < MIN_BOXES:
        return None
    camera = _usual_camera(geometry, size)
    calibrated = _calibrate(geometry, camera, boxes)
    if not _differs(shared, calibrated, boxes):
        return None
    trained = SeenGround(geometry.ground, geometry.camera)
    if size == geometry.size and not _differs(trained, calibrated, boxes):
        return trained
    return SeenGround(calibrated.ground, camera)


def _in_size(geometry: CameraGeometry, size: Size) -> CameraGeometry:
    """The run's geometry in frames of a size, which may be the training camera's footage reduced or enlarged."""
    trained_too = size == geometry.size or any(view.size == size for view, _ in geometry.others)
    return geometry.resized(size) if same_aspect(size, geometry.size) and not trained_too else geometry


def _calibrated_ground(geometry: CameraGeometry, camera: Camera, size: Size, boxes: Floats) -> tuple[SeenGround, str]:
    calibrated = _calibrate(geometry, camera, boxes)
    trained = SeenGround(geometry.ground, camera)
    if _same_camera(camera, geometry, size) and not _differs(trained, calibrated, boxes):
        return trained, ""
    ground = calibrated.ground
    if camera.height is not None:
        return SeenGround(ground, camera), ""
    return SeenGround(ground, camera), (
        f"the camera's height is not known; boxes suggest {ground.scale / camera.fy:.2f} m, "
        "so distances and velocities may be off by a fifth"
    )


def _uncalibrated_ground(geometry: CameraGeometry, size: Size, boxes: Floats) -> tuple[SeenGround, str]:
    trained = geometry.ground
    if size == geometry.size:
        camera = replace(geometry.camera, height=None, horizon=None)
        calibrated = _calibrate(geometry, camera, boxes)
        if not _differs(SeenGround(trained, geometry.camera), calibrated, boxes):
            unchecked = _distance_deviation(calibrated.ground, boxes) > UNCHECKED_DISTANCE
            text = "the camera is not known and too few boxes show whether it is the training's, which is assumed"
            return SeenGround(trained, geometry.camera), text if unchecked else ""
    camera = _usual_camera(geometry, size)
    ground = _calibrate(geometry, camera, boxes).ground
    return SeenGround(ground, camera), (
        f"the camera is not known, and differs from the training's: boxes suggest the horizon at row "
        f"{ground.horizon:.0f} and a height of {ground.scale / camera.fy:.2f} m "
        f"(training: {trained.horizon:.0f} of {geometry.size[0]}x{geometry.size[1]}, "
        f"{trained.scale / geometry.camera.fy:.2f} m), so distances and velocities may be off by a third"
    )


def _usual_camera(geometry: CameraGeometry, size: Size) -> Camera:
    """A camera for frames of a size, with an angle of view between the training camera's and the usual one."""
    focal_length = math.sqrt(geometry.camera.fx / geometry.size[0] * USUAL_FOCAL_LENGTH) * size[0]
    return Camera(focal_length, focal_length, (size[0] - 1) / 2, (size[1] - 1) / 2)


def _same_camera(camera: Camera, geometry: CameraGeometry, size: Size) -> bool:
    """Whether a calibration is the training camera's, mounted as it was there as far as both say."""
    trained, ground = geometry.camera, geometry.ground
    heights = trained.height or ground.scale / trained.fy, ground.scale / trained.fy
    return (
        size == geometry.size
        and abs(camera.fx / trained.fx - 1) <= SAME_INTRINSICS
        and abs(camera.cx - trained.cx) <= SAME_INTRINSICS * size[0]
        and (camera.height is None or any(abs(camera.height / h - 1) <= SAME_HEIGHT for h in heights))
        and (camera.horizon is None or abs(camera.horizon - ground.horizon) <= NOD * camera.fy)
    )


def _calibrate(geometry: CameraGeometry, camera: Camera, boxes: Floats) -> Calibration:
    """Fit a camera's ground to boxes, starting from what its calibration says."""
    height, deviation = UNKNOWN_HEIGHT if camera.height is None else (camera.height, SCALE_DEVIATION)
    known, trained = camera.horizon is not None, geometry.camera
    # vehicles of other footage are between the training's and usual cars
    width = math.sqrt(CAR_WIDTH * geometry.ground.span / trained.fx)
    tall = math.sqrt(CAR_HEIGHT * geometry.ground.usual_tall / trained.fy)
    prior = Ground(
        horizon=camera.horizon if camera.horizon is not None else camera.cy,
        scale=camera.fy * height,
        span=width * camera.fx,
        tall=tall * camera.fy,
        horizon_deviation=(NOD / 2 if known else PITCH) * camera.fy,
        scale_deviation=deviation,
    )
    return calibrate_ground(boxes, prior, NOD * camera.fy)


def _differs(seen: SeenGround, calibrated: Calibration, boxes: Floats) -> bool:
    """Whether boxes fit the ground calibrated by them so much better than another that it cannot be the same."""
    bottom = boxes[np.isfinite(boxes).all(axis=1), 3]
    if not len(bottom):
        return False
    other = calibrate_ground(boxes, seen.ground, NOD * seen.camera.fy)
    # residuals of one vehicle's boxes are alike: what they exceed their expectation by counts for all
    dispersion = max(1.0, calibrated.cost / (2 * len(bottom)))
    logs = [np.log(ground.distance_from_bottom(bottom)) for ground in (calibrated.ground, seen.ground)]
    distance = abs(float(np.median(logs[0] - logs[1])))
    return (other.cost - calibrated.cost) / dispersion > DIFFERENT and distance > DIFFERENT_DISTANCE


def _distance_deviation(ground: Ground, boxes: Floats) -> float:
    """The deviation of the log of the median box's distance."""
    bottom = boxes[np.isfinite(boxes).all(axis=1), 3]
    below = max(float(np.median(bottom)) - ground.horizon, 1.0) if len(bottom) else 1.0
    return math.hypot(ground.horizon_deviation / below, ground.scale_deviation)
