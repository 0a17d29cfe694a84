"""Layouts of data sets: what lies where, and which frames and labels that makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import calibration, competition, manifest, tusimple, video
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.datasets.image_sequence import check_files

__all__ = ["scan"]


def scan(data: DataConfig, *, threads: int = 0) -> Catalogue:
    """Every sound clip of a data set, and every fault that shows without decoding, in one pass.

    Args:
        data: where it is and how it is laid out.
        threads: that read and hash files; 0: one a core.

    Raises:
        DataError: what makes the scan impossible: nothing at the path, no zip, a manifest without a column, no clip;
            or `data.calibration` names no file, or a malformed one.
    """
    try:
        catalogue = _catalogue(data, threads)
    except OSError as e:  # a folder that may not be entered
        what = f"{e.filename or data.path}: cannot be read"
        raise DataError(what, got=e.strerror or e, hint="check its permissions") from None
    if not catalogue.clips and not catalogue.faults:
        raise DataError(
            f"{data.path}: no clips",
            expected=f"layout {data.layout}",
            got="none",
            hint="check data.path and data.layout",
        )
    if data.calibration is None:
        return catalogue
    try:
        camera = calibration.read_camera(Path(data.calibration))
    except DataError as e:
        raise DataError(e.what, expected=e.expected, got=e.got, hint="--data.calibration FILE") from None
    clips = tuple(replace(clip, sequence=replace(clip.sequence, camera=camera)) for clip in catalogue.clips)
    return replace(catalogue, clips=clips)


def _catalogue(data: DataConfig, threads: int) -> Catalogue:
    if data.layout == "video":
        return video.video_clips(data, threads)
    if data.layout == "manifest":
        drafts, faults = manifest.manifest_clips(data)
    elif data.layout == "tusimple":
        drafts, faults = tusimple.tusimple_clips(data)
    else:
        drafts, faults = competition.competition_clips(data)
    found = check_files(drafts, threads)
    return Catalogue(found.clips, (*faults, *found.faults))
