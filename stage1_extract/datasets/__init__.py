"""Data sets: find the clips, frames and labels in files of each layout. A plugin adds a layout by the entry point group
`framebank.datasets`: a function of the config's section [data] that returns what `competition_clips` does, or a
`Catalogue` if its frames are not image files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from features._common.plain_text import is_plain_name
from features.config import DataConfig
from features.errors import ConfigError, DataError
from features.plugins import DATASETS, load_plugin, plugin_error
from stage1_extract.datasets.camera_file import check_camera, with_camera
from stage1_extract.datasets.clip import Catalogue, add_fault, with_hint
from stage1_extract.datasets.competition import competition_clips
from stage1_extract.datasets.image_sequence import ClipSpec, check_files
from stage1_extract.datasets.manifest import manifest_clips
from stage1_extract.datasets.scan_cache import ScanCache
from stage1_extract.datasets.tusimple import tusimple_clips
from stage1_extract.datasets.vehicle_crops import crop_vehicles

__all__ = ["scan"]

Layout = Callable[[DataConfig], Catalogue | tuple[list[ClipSpec], list[str]]]


def scan(
    data: DataConfig,
    *,
    threads: int = 0,
    need_labels: bool = True,
    cache: ScanCache | None = None,
    read_later: Callable[[ClipSpec], bool] | None = None,
    by_packets: bool = False,
) -> Catalogue:
    """Find every clip of a data set, and every fault that is visible without decoding images, in one pass.

    Args:
        threads: number of threads that read and hash files; 0: one per core.
        cache: what earlier scans found in files; only others are read.
        read_later: whether a clip's images may be left to an extraction, which reads them anyway; None: of no clip.
        need_labels: whether a video to train or validate on that has no label file is a fault.
        by_packets: count videos' frames without decoding them, see `video.Video`; without a cache.

    Raises:
        DataError: nothing at the path, or no such data set; or `data.calibration` is not a calibration file.
        ConfigError: the layout's plugin is broken.
    """
    layout = _find_layout(data.layout, threads, need_labels, cache, by_packets)
    try:
        result = layout(data)
        if isinstance(result, Catalogue):
            catalogue = result
        else:
            specs, faults = result
            catalogue = check_files(specs, threads, faults, cache, read_later)
    except OSError as e:  # such as a folder without permission to read it
        what = f"{e.filename or data.path}: cannot be read"
        raise DataError(what, got=e.strerror or e, hint="check its permissions") from None
    catalogue = _with_plain_names(catalogue)
    if not catalogue.clips and not catalogue.faults:
        expected = f"files in the layout {data.layout}"
        raise DataError(f"{data.path}: no clips", expected=expected, hint="check data.path and data.layout")
    if data.calibration is not None:
        try:
            catalogue = replace(catalogue, clips=with_camera(catalogue.clips, Path(data.calibration), strict=False))
        except DataError as e:
            raise with_hint(e, "--data.calibration FILE") from None
    else:
        for camera, size in {(c.sequence.camera, c.sequence.size): None for c in catalogue.clips if c.sequence.camera}:
            check_camera(camera, size, f"{data.path}: a calibration", strict=False)  # many heads do without it
    if data.crops is None:
        return catalogue
    crops = crop_vehicles(catalogue, data.crops)
    if not crops.clips and not crops.faults:
        expected = "labels with a box on one of their clip's frames"
        raise DataError(f"{data.path}: no vehicle to crop", expected=expected, hint="leave data.crops unset")
    return crops


def _with_plain_names(catalogue: Catalogue) -> Catalogue:
    """Leave out clips whose name could not be shown as it is: with control characters, or not decodable."""
    clips, faults = [], list(catalogue.faults)
    for clip in catalogue.clips:
        if is_plain_name(clip.sequence.id):
            clips.append(clip)
        else:
            what = f"{clip.sequence.id!a}: not a name for a sequence"
            add_fault(faults, what, "text without control characters", "a file, folder or cell with others")
    return replace(catalogue, clips=tuple(clips), faults=tuple(faults))


def _find_layout(name: str, threads: int, need_labels: bool, cache: ScanCache | None, by_packets: bool) -> Layout:
    if name == "video":
        from stage1_extract.datasets.video import video_clips  # here, since loading FFmpeg takes 0.1 s

        return partial(video_clips, threads=threads, need_labels=need_labels, cache=cache, by_packets=by_packets)
    built_in: dict[str, Layout] = {
        "sample": competition_clips,
        "competition": competition_clips,
        "tusimple": tusimple_clips,
        "manifest": manifest_clips,
    }
    layout: Layout | None = built_in.get(name) or load_plugin(DATASETS, name)
    if layout is None:
        raise ConfigError("no such layout", got=name, hint="--data.layout NAME")
    if not callable(layout):
        raise plugin_error(DATASETS, name, "it is not a function of a DataConfig")
    return layout
