"""A clip as a folder: `imgs/001.jpg … NNN.jpg`, `annotation.json`, and optionally `ego.json`."""

from __future__ import annotations

import re

from features.config import DataConfig
from features.errors import DataError
from features.sequences import Camera, Label
from stage1_extract.datasets import annotation_json
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder
from stage1_extract.datasets.faults import error_to_fault, fault_line
from stage1_extract.datasets.image_sequence import ClipSpec

_FRAME_NAME = re.compile(r"([0-9]+)\.(jpe?g|png)", re.IGNORECASE)


def clip_folders(split: ReadablePath) -> list[ReadablePath]:
    """The clips of a split, in numeric order: folders that are named by a number or hold `imgs`."""
    return [p for p in list_folder(split) if p.is_dir() and (p.name.isdecimal() or find_folder(p, "imgs"))]


def clip_spec(
    clip: ReadablePath, id: str, split: str, data: DataConfig, camera: Camera | None, *, all_vehicles: bool
) -> ClipSpec:
    """Describe a clip by its folder, without reading its frames.

    Args:
        clip: the folder.
        id: the id of its sequence.
        split: one of `features.sequences.SPLITS`; in `test` the annotation or its velocity may be missing.
        data: only `frames`, `label_frame` and `fps` are used.
        camera: the camera that took the clip; None if unknown.
        all_vehicles: label all vehicles, or only the first.
    """
    faults: list[str] = []
    files = numbered_frames(clip, data.frames, faults)
    frame = data.label_frame - 1 if data.label_frame else len(files) - 1
    labels: tuple[Label, ...] = ()
    try:
        labels = _vehicle_labels(clip, split, frame, all_vehicles=all_vehicles, faults=faults)
    except DataError as e:
        faults.append(error_to_fault(e))
    try:
        labels += _ego_labels(clip, frame, faults)
    except DataError as e:
        faults.append(error_to_fault(e))
    return ClipSpec(id, split, data.fps, files, labels, camera, faults)


def numbered_frames(clip: ReadablePath, count: int | None, faults: list[str]) -> tuple[ReadablePath, ...]:
    """The files `imgs/001.jpg …` in order: the first `count`, or all of them if `count` is None.

    A missing frame is a fault. The others are still returned, so that their own faults are found in the same pass.
    """
    imgs = find_folder(clip, "imgs")
    if imgs is None:
        faults.append(fault_line(f"{clip}: no frames", expected="a folder imgs with 001.jpg …", got="no folder imgs"))
        return ()
    files: dict[int, ReadablePath] = {}
    for file in list_folder(imgs):
        if match := _FRAME_NAME.fullmatch(file.name):
            number = int(match[1])
            if number == 0:
                faults.append(fault_line(f"{file}: frame number 0", expected="frames numbered from 001", got=file.name))
            elif number in files:
                got = f"{files[number].name} and {file.name}"
                faults.append(fault_line(f"{file}: two files for frame {number}", expected="one", got=got))
            else:
                files[number] = file
    last = max(files, default=0)
    if not files or (count and last == len(files) < count):
        what = f"{imgs}: {len(files)} frames instead of {count}" if count else f"{imgs}: no frames"
        faults.append(fault_line(what, expected=f"{count} frames" if count else "001.jpg …", got=len(files)))
    else:
        digits, suffix = next(iter(files.values())).name.split(".")
        for number in range(1, (count or last) + 1):
            if number not in files:
                missing = imgs.joinpath(f"{number:0{len(digits)}d}.{suffix}")
                faults.append(
                    fault_line(f"{missing}: missing frame", expected=f"frames 1 … {count or last}", got="a gap")
                )
    return tuple(files[n] for n in sorted(files) if not count or n <= count)


def _vehicle_labels(
    clip: ReadablePath, split: str, frame: int, *, all_vehicles: bool, faults: list[str]
) -> tuple[Label, ...]:
    path = clip.joinpath("annotation.json")
    if not path.is_file():
        if split == "test":
            return (Label(frame, annotation_json.UNKNOWN_VELOCITY),)
        faults.append(fault_line(f"{path}: missing annotation", expected="a JSON list of vehicles", got="no such file"))
        return ()
    return annotation_json.vehicle_labels(
        annotation_json.load_json(path),
        str(path),
        frame,
        velocity_required=split != "test",
        all_vehicles=all_vehicles,
        faults=faults,
    )


def _ego_labels(clip: ReadablePath, frame: int, faults: list[str]) -> tuple[Label, ...]:
    path = clip.joinpath("ego.json")
    if not path.is_file():
        return ()
    return annotation_json.ego_labels(annotation_json.load_json(path), str(path), frame, faults)
