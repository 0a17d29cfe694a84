"""A single clip without labels to predict on: a video, or a folder of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from features._common.console import logger
from features._common.zip_limits import refuse_other_archive
from features.config import DataConfig
from features.errors import BadInputs, DataError
from features.sequences import FrameSequence
from stage1_extract.datasets.archive import list_folder
from stage1_extract.datasets.clip import Clip, with_hint
from stage1_extract.datasets.image_file import IMAGE_SUFFIXES, OTHER_IMAGES
from stage1_extract.datasets.image_sequence import ClipSpec, check_files
from stage1_extract.datasets.video import VIDEO_SUFFIXES, UnexpectedFramesError, Video, VideoFrames

ClipResult = TypeVar("ClipResult")
DATA_SET_SUFFIXES = (".zip", ".csv")


def is_single_clip(path: Path) -> bool:
    """Whether a path is a video or a folder of frames, rather than a data set."""
    if path.is_dir():
        entries = [p for p in path.iterdir() if not p.name.startswith(".")]
        files = [p for p in entries if p.is_file()]
        suffixes = {p.suffix.lower() for p in files}
        if len(files) == len(entries) and suffixes.isdisjoint(VIDEO_SUFFIXES) and not suffixes.isdisjoint(OTHER_IMAGES):
            return True  # an error then names the images that cannot be read
        return not entries or not suffixes.isdisjoint(IMAGE_SUFFIXES)
    return path.suffix.lower() not in DATA_SET_SUFFIXES


def holds_videos(path: Path) -> bool:
    """Whether a path is a folder with videos in it."""
    return path.is_dir() and any(p.suffix.lower() in VIDEO_SUFFIXES and p.is_file() for p in path.iterdir())


def use_single_clip(path: Path, data: DataConfig, fps: float | None, use: Callable[[Clip], ClipResult]) -> ClipResult:
    """Open a clip like `read_single_clip` and return what `use` makes of it, without decoding a video just to count.

    The frames of a video are counted by its packets. Where it turns out to decode to others, `use` is called again
    with a clip whose frames were counted by decoding them.
    """
    try:
        try:
            return use(read_single_clip(path, data, fps, by_packets=True))
        except UnexpectedFramesError:
            return use(read_single_clip(path, data, fps))
    except DataError as e:  # that of a frame has no hint
        raise with_hint(e, "check or replace the file, and run the same command again") from None


def read_single_clip(path: Path, data: DataConfig, fps: float | None, *, by_packets: bool = False) -> Clip:
    """Open a video, or a folder of frames in the order of the numbers in their names, as one clip.

    A video's frames have its timestamps unless `fps` is given, those of a folder are spaced by `data.fps`. DataError or
    BadInputs if nothing is there, or it is damaged, has no frames or frames of several sizes, or a video has no frame
    rate. For `by_packets`, see `Video`.
    """
    if path.is_dir():
        entries = list_folder(path)
        files = tuple(path / p.name for p in entries if p.name.lower().endswith(IMAGE_SUFFIXES))
        others = Counter(Path(p.name).suffix.lower() for p in entries if p.is_file())
        left_out = [f"{others[x]} {x}" for x in (*OTHER_IMAGES, *sorted(VIDEO_SUFFIXES)) if others[x]]
        if not files:
            hint = "convert them to JPEG or PNG" if left_out else "name another folder"
            if any(others[suffix] for suffix in VIDEO_SUFFIXES):
                hint = "name one of its videos"
            got = f"only {', '.join(left_out)}" if left_out else None
            raise DataError(f"{path}: no frames", expected="image files such as 001.jpg", got=got, hint=hint)
        if left_out:
            logger.warning(f"{path}: {', '.join(left_out)} left out; its frames are the {len(files)} other images")
        catalogue = check_files([ClipSpec(path.name, "test", data.fps, files)], 0)
        if catalogue.faults:
            raise BadInputs(f"{path}: damaged frames", list(catalogue.faults), hint="replace or remove them")
        return catalogue.clips[0]
    if not path.exists():
        raise DataError(f"{path}: no such video or folder", hint="name a video or a folder of frames")
    refuse_other_archive(path)  # FFmpeg finds the JPEGs in a tar
    try:
        video = Video(path, allow_truncated=data.allow_truncated, by_packets=by_packets)
    except DataError as e:
        hint = (e.hint or "name another video, or convert it").replace(
            "--data.allow_truncated true", "--allow-truncated"
        )
        raise DataError(e.what, expected=e.expected, got=e.got, hint=hint) from None
    rate = fps or video.facts.fps
    if rate is None:
        raise DataError(f"{path}: no frame rate in its header", hint="--fps N")
    times = None if fps else video.facts.times
    sequence = FrameSequence(path.stem, "test", video.length, rate, video.facts.size, "", times=times)
    return Clip(sequence, VideoFrames(video))
