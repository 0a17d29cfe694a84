"""The Kaggle competition's layout, as a folder or a .zip: `Train/Train/1/imgs/001.jpg …` with `annotation.json`, and
optionally `ego.json`. The rendered sample set has it too, but labels all vehicles. A clip's own `calibration.txt` takes
precedence over the one of the data set.
"""

from __future__ import annotations

import re
from itertools import islice

from features.config import DataConfig
from features.errors import DataError
from features.sequences import Camera, Label
from stage1_extract.datasets.annotation_json import UNKNOWN_VELOCITY, ego_labels, load_json, vehicle_labels
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder, list_unsorted, open_folder_or_zip
from stage1_extract.datasets.calibration import find_calibration
from stage1_extract.datasets.clip import add_fault
from stage1_extract.datasets.image_file import IMAGE_SUFFIXES
from stage1_extract.datasets.image_sequence import ClipSpec

_FRAME_NAME = re.compile(rf"(.*[^0-9])?([0-9]{{1,18}})({'|'.join(map(re.escape, IMAGE_SUFFIXES))})", re.IGNORECASE)
COMPETITION_FOLDERS = {"Train": "train", "Validation": "validation", "Test": "test"}


def competition_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """Describe each clip (ids `Train/12` etc.), and collect faults of no clip; a DataError if there is no data set."""
    hint = "framebank sample" if data.layout == "sample" else "set data.path to the folder or .zip of the data set"
    root = _root(open_folder_or_zip(data.path, hint=hint), hint)
    faults: list[str] = []
    camera = find_calibration(root, data, faults)
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


def clip_folders(split: ReadablePath) -> list[ReadablePath]:
    """The clips of a split, in numeric order: folders that are named by a number or hold `imgs`."""
    return [p for p in list_folder(split) if p.is_dir() and (p.name.isdecimal() or find_folder(p, "imgs"))]


def clip_spec(
    clip: ReadablePath, id: str, split: str, data: DataConfig, camera: Camera | None, *, all_vehicles: bool
) -> ClipSpec:
    """Describe a clip by its folder, without reading its frames. Unless `all_vehicles`, only the first is labelled.

    In the split `test` the annotation or its velocity may be missing.
    """
    faults: list[str] = []
    files = _numbered_frames(clip, data.frames, faults)
    frame = data.label_frame - 1 if data.label_frame else len(files) - 1
    labels: tuple[Label, ...] = ()
    annotation, ego = clip.joinpath("annotation.json"), clip.joinpath("ego.json")
    if annotation.is_file():
        options = {"velocity_required": split != "test", "all_vehicles": all_vehicles}
        for value in load_json(annotation, faults):
            labels = vehicle_labels(value, str(annotation), frame, faults=faults, **options)
    elif split == "test":
        labels = (Label(frame, UNKNOWN_VELOCITY),)
    else:
        add_fault(faults, f"{annotation}: missing annotation", "a JSON list of vehicles", "no such file")
    for value in load_json(ego, faults) if ego.is_file() else ():
        labels += ego_labels(value, str(ego), frame, faults)
    camera = find_calibration(clip, data, faults) or camera  # the wide sample set's clips have a camera each
    return ClipSpec(id, split, data.fps, files, labels, camera, faults)


def _numbered_frames(clip: ReadablePath, count: int | None, faults: list[str]) -> tuple[ReadablePath, ...]:
    """The files `imgs/001.jpg …` in order, the first `count` or all; without missing ones, which are a fault."""
    imgs = find_folder(clip, "imgs")
    if imgs is None:
        add_fault(faults, f"{clip}: no frames", "a folder imgs with 001.jpg …", "no folder imgs")
        return ()
    files: dict[int, ReadablePath] = {}
    matches = [(file, match) for file in list_unsorted(imgs) if (match := _FRAME_NAME.fullmatch(file.name))]
    # frame_0001.jpg is a frame too, but not mask_001.png beside 001.jpg
    numbered = [(int(match[2]), match.string, file) for file, match in matches if match[1] is None]
    numbered = numbered or [(int(match[2]), match.string, file) for file, match in matches]
    for number, _, file in sorted(numbered):
        first = files.setdefault(number, file)
        if first is not file:
            add_fault(faults, f"{file}: two files for frame {number}", "one", f"{first.name} and {file.name}")
    if zero := files.pop(0, None):
        add_fault(faults, f"{zero}: frame number 0", "frames numbered from 001", zero.name)
    last = count or max(files, default=1)
    # only the first few, since a single file may have a very large number
    if missing := list(islice((number for number in range(1, last + 1) if number not in files), 6)):
        numbers = ", ".join(map(str, missing[:5])) + (" …" if len(missing) > 5 else "")
        expected = f"{count or 'all'} frames from 001.jpg on"
        add_fault(faults, f"{imgs}: no frame {numbers}", expected, f"{len(files)} frames")
    return tuple(file for n, file in files.items() if not count or n <= count)
