"""The own speed in a video or a folder of frames, as a table; and a camera's height from speeds that are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from features._common.atomic import atomic_write
from features._common.console import logger, progress_bar
from features._common.csv_table import read_csv_table, write_csv_table
from features._common.types import Floats, Image
from features._common.user_path import expand_user
from features.config import DataConfig
from features.errors import DataError
from features.sequences import Camera
from stage1_extract.datasets.camera_file import with_camera
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.label_csv import finite_number
from stage1_extract.datasets.single_video import use_single_clip
from stage1_extract.ground_flow.ground_flow import SpeedEstimates, estimate_speeds
from stage1_extract.ground_flow.road_solver import LOW_CONFIDENCE

ASSUMED_HEIGHT = 1.5  # m, until a known speed calibrates it
SLOWEST_CALIBRATION = 1.0  # m/s; slower frames say little about the scale
SPEED_COLUMNS = ("time", "frame", "speed", "confidence")


@dataclass(frozen=True)
class DriveSpeed:
    """Own speed in each frame of a drive, and the camera height that it holds for."""

    estimates: SpeedEstimates
    camera: Camera


def measure_drive(
    path: Path,
    camera_file: Path,
    *,
    fps: float | None = None,
    calibrate: str | None = None,
    allow_truncated: bool = False,
) -> DriveSpeed:
    """Measure the own speed in a video or a folder of frames.

    Args:
        path: the video or folder.
        camera_file: the camera's numbers, as `CameraFile` describes them, or a calibration.txt.
        fps: frames per second of a folder, or of a video whose times are missing or wrong.
        calibrate: the mean speed in m/s, or a CSV file with columns speed and frame or time. The camera's height is
            then calibrated, whatever the camera file says of it.
        allow_truncated: use a video that breaks off as far as it goes.

    Raises:
        FramebankError: the files cannot be read, or there is no height and nothing to calibrate it.
    """
    data = DataConfig(allow_truncated=allow_truncated, fps=fps or DataConfig().fps)
    return use_single_clip(path, data, fps, lambda clip: _measure_clip(clip, path, camera_file, calibrate))


def _measure_clip(clip: Clip, path: Path, camera_file: Path, calibrate: str | None) -> DriveSpeed:
    (clip,) = with_camera([clip], camera_file, undistort=True)
    sequence = clip.sequence
    camera = sequence.camera
    assert camera is not None  # with_camera sets it
    known = None if calibrate is None else _known_speeds(calibrate, sequence.frame_times)
    if camera.height is None and known is None:
        hint = "height = 1.40 in it (lens above the road, m), or --calibrate SPEED"
        raise DataError(f"{camera_file}: no camera height", hint=hint)
    if sequence.length < 2:
        raise DataError(f"{path}: too short", expected="at least two frames", got=sequence.length)
    camera = replace(camera, height=camera.height or ASSUMED_HEIGHT)
    with progress_bar(sequence.length, "speed", "frames") as progress:

        def frames() -> Iterator[Image]:
            for frame in clip.source.read(0, sequence.length):
                yield frame
                progress.update()

        estimates = estimate_speeds(frames(), sequence.frame_times, camera)
    if known is None:
        return DriveSpeed(estimates, camera)
    factor = _scale(estimates, *known)
    assert camera.height is not None
    height = camera.height * factor
    logger.info(f"height = {height:.3f}  # m, from the known speed; write it into the camera file to keep it")
    return DriveSpeed(replace(estimates, speeds=estimates.speeds * factor), replace(camera, height=height))


def write_speeds(path: Path, drive: DriveSpeed) -> None:
    """Write one row for each frame: time in s, frame from 0, speed in m/s, confidence from 0 to 1."""
    e = drive.estimates
    rows = enumerate(zip(e.times, e.speeds, e.confidence, strict=True))
    table = [(f"{t:.4f}", i, f"{speed:.3f}", f"{confidence:.2f}") for i, (t, speed, confidence) in rows]
    with atomic_write(path) as temporary:
        write_csv_table(temporary, SPEED_COLUMNS, table)


def speed_summary(drive: DriveSpeed) -> str:
    """One line about the speeds; frames with a low confidence are counted, and a warning is logged."""
    e = drive.estimates
    low = e.confidence < LOW_CONFIDENCE
    if low.any():
        times = e.times[low]
        logger.warning(
            f"Confidence is below {LOW_CONFIDENCE} in {low.sum()} of {len(low)} frames, the first at {times[0]:.1f} s: "
            "too little of the road shows texture there, or other vehicles hide it."
        )
    if low.all():
        return f"{len(low)} frames, none of them with confidence"
    sure = e.speeds[~low]
    return (
        f"{len(low)} frames, {sure.min():.1f} to {sure.max():.1f} m/s, mean {sure.mean():.2f} m/s; "
        f"horizon in row {e.horizon:.0f}, camera height {drive.camera.height:.2f} m"
    )


def _known_speeds(text: str, times: Floats) -> tuple[Floats, Floats]:
    """Frames and their known speeds; a single speed holds for the mean of all."""
    if np.isfinite(value := finite_number(text)):
        if not value > 0:
            raise DataError("the known speed is not positive", expected="m/s above 0", got=text)
        return np.arange(len(times), dtype=np.float64), np.full(len(times), value)
    table = read_csv_table(expand_user(text), required=["speed"])
    key = next((name for name in ("frame", "time") if name in table.columns), None)
    if key is None:
        raise DataError(f"{text}: no column frame or time", expected="frame (from 0) or time (s), and speed (m/s)")
    rows = np.array([[finite_number(row.cells[key]), finite_number(row.cells["speed"])] for row in table.rows])
    rows = rows.reshape(-1, 2)[np.isfinite(rows.reshape(-1, 2)).all(axis=1)]
    index = np.arange(len(times))
    frames = rows[:, 0] if key == "frame" else np.interp(rows[:, 0], times, index, left=-1, right=np.inf)
    inside = (frames >= 0) & (frames <= index[-1])
    if not inside.any():
        span = f"0 to {index[-1]}" if key == "frame" else f"{times[0]:.2f} to {times[-1]:.2f} s"
        raise DataError(f"{text}: no known speed within the drive", expected=f"a {key} from {span}")
    return frames[inside], rows[inside, 1]


def _scale(estimates: SpeedEstimates, frames: Floats, speeds: Floats) -> float:
    """Known speed per measured speed: the ratio of their means, each frame weighted by its confidence."""
    index = np.arange(len(estimates.speeds))
    measured = np.interp(frames, index, estimates.speeds)
    weight = np.interp(frames, index, estimates.confidence) * (measured > SLOWEST_CALIBRATION)
    if not (weight > LOW_CONFIDENCE).any():
        raise DataError(
            "the height cannot be calibrated: no frame with a known speed was measured with confidence",
            expected=f"frames faster than {SLOWEST_CALIBRATION} m/s on a road with texture",
            hint="--calibrate with another part of the drive",
        )
    return float((weight * speeds).sum() / (weight * measured).sum())
