"""The Kaggle competition's layout: `Train/Train/1/imgs/001.jpg …` with `annotation.json`, as a folder or a .zip.

The rendered sample set has the same layout, but labels all vehicles instead of the first.
"""

from __future__ import annotations

from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder, open_folder_or_zip
from stage1_extract.datasets.calibration import find_calibration
from stage1_extract.datasets.clip_folder import clip_folders, clip_spec
from stage1_extract.datasets.image_sequence import ClipSpec

COMPETITION_FOLDERS = {"Train": "train", "Validation": "validation", "Test": "test"}


def competition_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """Describe each clip, in order of splits and numbers, and collect faults that belong to no clip.

    The ids of the clips are `Train/12` etc.

    Raises:
        DataError: nothing at `data.path`, or no complete zip, or no folder Train, Validation or Test in it.
    """
    hint = "framebank sample" if data.layout == "sample" else "set data.path to the folder or .zip of the data set"
    root = _root(open_folder_or_zip(data.path, hint=hint), hint)
    faults: list[str] = []
    camera = None if data.calibration else find_calibration(root, faults)
    specs = []
    for name, split in COMPETITION_FOLDERS.items():
        if outer := find_folder(root, name):
            inner = find_folder(outer, name) or outer  # Train/Train/1 as published, or Train/1
            specs += [
                clip_spec(clip, f"{name}/{clip.name}", split, data, camera, all_vehicles=data.layout == "sample")
                for clip in clip_folders(inner)
            ]
    return specs, faults


def _root(folder: ReadablePath, hint: str) -> ReadablePath:
    """The folder that holds Train, Validation and Test: the given one, or its only subfolder that does."""
    if find_folder(folder, *COMPETITION_FOLDERS):
        return folder
    roots = [p for p in list_folder(folder) if p.is_dir() and find_folder(p, *COMPETITION_FOLDERS)]
    if len(roots) == 1:
        return roots[0]
    if roots:
        got = f"several data sets: {', '.join(p.name for p in roots)}"
        raise DataError(f"{folder}: ambiguous", expected="one data set", got=got, hint="set data.path to one of them")
    names = ", ".join(p.name for p in list_folder(folder)[:5]) or "an empty folder"
    raise DataError(f"{folder}: no data set", expected="a folder Train, Validation or Test", got=names, hint=hint)
