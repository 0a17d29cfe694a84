"""The Kaggle competition's layout: `Train/Train/1/imgs/001.jpg …` with `annotation.json`, as a folder or a .zip.

The rendered sample set has the same layout, and labels every vehicle instead of the first.
"""

from __future__ import annotations

from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import calibration
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder, open_folder_or_zip
from stage1_extract.datasets.clip_folder import clip_folders, clip_spec
from stage1_extract.datasets.image_sequence import ClipSpec

COMPETITION_FOLDERS = {"Train": "train", "Validation": "validation", "Test": "test"}


def competition_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """A draft for each clip, splits and clips in order, and faults that belong to none; ids are `Train/12`.

    Raises:
        DataError: nothing at `data.path`, no zip, or no folder Train, Validation or Test in it.
    """
    hint = "make sample" if data.layout == "sample" else "set data.path to the folder or .zip of the data set"
    root = _root(open_folder_or_zip(data.path, hint=hint), hint)
    faults: list[str] = []
    camera = None if data.calibration else calibration.find_calibration(root, faults)
    found = []
    for name, split in COMPETITION_FOLDERS.items():
        if outer := find_folder(root, name):
            inner = find_folder(outer, name) or outer  # Train/Train/1 as published, or Train/1
            found += [
                clip_spec(clip, f"{name}/{clip.name}", split, data, camera, every=data.layout == "sample")
                for clip in clip_folders(inner)
            ]
    return found, faults


def _root(place: ReadablePath, hint: str) -> ReadablePath:
    if find_folder(place, *COMPETITION_FOLDERS):
        return place
    below = [p for p in list_folder(place) if p.is_dir() and find_folder(p, *COMPETITION_FOLDERS)]
    if len(below) == 1:
        return below[0]
    if below:
        got = f"several data sets: {', '.join(p.name for p in below)}"
        raise DataError(f"{place}: which one?", expected="one data set", got=got, hint="set data.path to one of them")
    names = ", ".join(p.name for p in list_folder(place)[:5]) or "nothing"
    raise DataError(f"{place}: no data set", expected="a folder Train, Validation or Test", got=names, hint=hint)
