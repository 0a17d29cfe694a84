"""Another camera by what is known of it: the shape of the frames, and a calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from features.sequences import Camera, FrameSequence
from stage2_temporal.evaluation.known_cameras import known_cameras

CAMERA = Camera(714.0, 710.0, 675.0, 376.0, 1.8, 340.0)
SEQUENCE = FrameSequence("a", "train", 8, 10.0, (1280, 720), "", camera=CAMERA)


def with_camera(**changes: float) -> FrameSequence:
    return replace(SEQUENCE, camera=replace(CAMERA, **changes))


@pytest.mark.parametrize(
    "other",
    [
        with_camera(fx=980.0, fy=975.0),  # a longer lens with the horizon in place, which no picture shows
        with_camera(fx=650.0),
        with_camera(height=1.35),
        with_camera(horizon=380.0),
        replace(SEQUENCE, size=(1242, 375), camera=None),
    ],
)
def test_other_focal_length_height_horizon_or_shape_is_another_camera(other: FrameSequence) -> None:
    cameras = known_cameras([SEQUENCE])
    assert cameras is not None and cameras.excludes(other)


@pytest.mark.parametrize(
    "same",
    [
        SEQUENCE,
        replace(SEQUENCE, camera=None),
        replace(SEQUENCE, size=(640, 360), camera=CAMERA.resized((1280, 720), (640, 360))),
        with_camera(fx=720.0, height=1.82, horizon=344.0),  # measured again
        replace(SEQUENCE, camera=replace(CAMERA, height=None, horizon=None)),
    ],
)
def test_same_camera_reduced_measured_again_or_unknown_is_not(same: FrameSequence) -> None:
    cameras = known_cameras([SEQUENCE])
    assert cameras is not None and not cameras.excludes(same)


def test_cameras_between_those_of_the_training_are_not_others() -> None:
    cameras = known_cameras([with_camera(fx=650.0, height=1.2), with_camera(fx=1000.0, height=2.0)])
    assert cameras is not None
    assert not cameras.excludes(with_camera(fx=800.0, height=1.5))
    assert cameras.excludes(with_camera(fx=1200.0, height=1.5))


def test_training_without_calibration_knows_the_shape_alone() -> None:
    cameras = known_cameras([replace(SEQUENCE, camera=None)])
    assert cameras is not None
    assert not cameras.excludes(with_camera(fx=2000.0))
    assert cameras.excludes(replace(SEQUENCE, size=(720, 1280)))
    assert known_cameras([]) is None
