"""The Kaggle competition's layout: `Train/Train/1/imgs/001.jpg …` with `annotation.json`, as a folder or a .zip.

The rendered sample set has the same layout, and labels every vehicle instead of the first.
"""

from __future__ import annotations

from features.config import Data
from features.errors import DataError
from stage1_extract.datasets import calibration
from stage1_extract.datasets.archive import Place, children, folder, open_place
from stage1_extract.datasets.clip_folder import clip_folders, draft
from stage1_extract.datasets.image_sequence import Draft

FOLDERS = {"Train": "train", "Validation": "validation", "Test": "test"}


def drafts(data: Data) -> tuple[list[Draft], list[str]]:
    """A draft for each clip, splits and clips in order, and faults that belong to none; ids are `Train/12`.

    Raises:
        DataError: nothing at `data.path`, no zip, or no folder Train, Validation or Test in it.
    """
    mend = "make sample" if data.layout == "sample" else "set data.path to the folder or .zip of the data set"
    root = _root(open_place(data.path, mend=mend), mend)
    faults: list[str] = []
    camera = None if data.calibration else calibration.beside(root, faults)
    found = []
    for name, split in FOLDERS.items():
        if outer := folder(root, name):
            inner = folder(outer, name) or outer  # Train/Train/1 as published, or Train/1
            found += [
                draft(clip, f"{name}/{clip.name}", split, data, camera, every=data.layout == "sample")
                for clip in clip_folders(inner)
            ]
    return found, faults


def _root(place: Place, mend: str) -> Place:
    if folder(place, *FOLDERS):
        return place
    below = [p for p in children(place) if p.is_dir() and folder(p, *FOLDERS)]
    if len(below) == 1:
        return below[0]
    if below:
        got = f"several data sets: {', '.join(p.name for p in below)}"
        raise DataError(f"{place}: which one?", expected="one data set", got=got, mend="set data.path to one of them")
    names = ", ".join(p.name for p in children(place)[:5]) or "nothing"
    raise DataError(f"{place}: no data set", expected="a folder Train, Validation or Test", got=names, mend=mend)
