"""Footage: one video or one folder of frames, without labels, as a single clip to predict on."""

from __future__ import annotations

from pathlib import Path

from features.config import DataConfig
from features.errors import BadInputs, DataError
from features.sequences import FrameSequence
from stage1_extract.datasets.archive import list_folder
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.image_sequence import ClipSpec, check_files
from stage1_extract.datasets.video import Video, VideoFrames
from stage1_extract.datasets.video_metadata import check_constant_size, readable_rate

IMAGES = frozenset([".jpg", ".jpeg", ".png"])
DATA_SETS = frozenset([".zip", ".csv"])


def is_single_clip(path: Path) -> bool:
    """Whether a path is one video or a folder of frames, rather than a data set."""
    if path.is_dir():
        entries = [p for p in path.iterdir() if not p.name.startswith(".")]
        return not entries or any(p.suffix.lower() in IMAGES and p.is_file() for p in entries)
    return path.suffix.lower() not in DATA_SETS


def read_single_clip(path: Path, data: DataConfig, fps: float | None) -> Clip:
    """A video, or a folder of frames in the order of the numbers in their names, as one clip.

    Raises:
        DataError, BadInputs: nothing there, damaged, without frames, of changing size, or a video without a rate.
    """
    if path.is_dir():
        files = [p for p in list_folder(path) if p.name.lower().endswith(tuple(IMAGES))]
        if not files:
            endings = ", ".join(sorted(IMAGES))
            raise DataError(f"{path}: no frames", expected=f"files ending in {endings}", got="none", hint="--input")
        found = check_files([ClipSpec(path.name, "test", data.fps, tuple(path / p.name for p in files))], 0)
        if found.faults:
            raise BadInputs(f"{path}: damaged frames", list(found.faults), hint="replace or remove them")
        return found.clips[0]
    if not path.exists():
        raise DataError(f"{path}: no such video or folder", hint="--input VIDEO or --input FOLDER")
    try:
        video = Video(path)
        check_constant_size(path)
    except DataError as e:
        raise DataError(e.what, expected=e.expected, got=e.got, hint="--input another video, or convert it") from None
    rate = fps or readable_rate(path)
    if rate is None:
        raise DataError(
            f"{path}: no frame rate can be read from it",
            expected="frames a second in its header",
            got="none, or one that no camera has",
            hint="--fps N",
        )
    return Clip(FrameSequence(path.stem, "test", video.length, rate, video.size, ""), VideoFrames(video))
