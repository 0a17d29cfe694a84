"""Check a prediction request before any model is loaded, so that errors come early and nothing is written."""

from __future__ import annotations

import math
import os
from pathlib import Path

from features.config import Config, read_run_config
from features.errors import ConfigError
from stage1_extract.datasets.single_video import is_single_clip
from stage2_temporal.heads import uses_track
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.sliding.boxes_csv import BOXES_HINT


def check_request(
    run: Path,
    source: Path | None,
    output: Path | None,
    overlay: Path | None,
    *,
    stride: int | None,
    fps: float | None,
    boxes: Path | None,
) -> tuple[Config, bool, Path]:
    """Check a request; see `stage2_temporal.predict.predict` for the arguments.

    Returns:
        The run's config with the request's data set, stride and frame rate; whether the input is one video or folder
        of frames; and the CSV file to write.

    Raises:
        FramebankError: what the user can correct.
    """
    read_metrics(run)
    config = read_run_config(run)
    for option, value in (("--stride", stride), ("--fps", fps)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} must be positive", got=value, hint=f"{option} 1")
    data = {"path": str(source or config.data.path), "fps": fps or config.data.fps}
    window = {"stride": stride or config.window.stride}
    config = config.model_copy(
        update={"data": config.data.model_copy(update=data), "window": config.window.model_copy(update=window)}
    )
    path, head = Path(config.data.path), config.head.name
    is_clip = source is not None and is_single_clip(path)
    takes_track = uses_track(run, config)
    if boxes is not None and not is_clip:
        raise ConfigError("--boxes is for a video; a data set has boxes in its labels", hint="leave out --boxes")
    if boxes is not None and not takes_track:
        raise ConfigError(f"--boxes: {head} does not use boxes", hint="leave out --boxes")
    if boxes is None and is_clip and takes_track:
        raise ConfigError(f"{head} predicts for a vehicle in a box, and no box is given", hint=BOXES_HINT)
    if overlay is not None and not is_clip:
        raise ConfigError("--overlay needs one video or one folder of frames", got=path, hint="--input VIDEO")
    output = output or run / "predicted" / f"{path.stem}.csv"
    _check_writable(output, path)
    if overlay is not None:
        _check_writable(overlay, path)
    return config, is_clip, output


def _check_writable(path: Path, source: Path) -> None:
    """Refuse an output file that could not be written later.

    Raises:
        ConfigError: it is a folder, is the input, or cannot be created.
    """
    hint = "name a file in a folder that you can write to"
    if path.exists() and (path.is_dir() or path.samefile(source)):
        raise ConfigError(
            f"{path}: {'is a folder' if path.is_dir() else 'is the input'}, not an output file", hint=hint
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise ConfigError(f"{path}: cannot be written", got=e.strerror or e, hint=hint) from None
