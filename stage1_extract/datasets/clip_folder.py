"""A clip as a folder: `imgs/001.jpg … NNN.jpg`, `annotation_json.json`, and where known `ego.json`."""

from __future__ import annotations

import re

from features.config import DataConfig
from features.errors import DataError
from features.sequences import Camera, Label
from stage1_extract.datasets import annotation_json
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder
from stage1_extract.datasets.image_sequence import ClipSpec, as_error_line, error_line

_FRAME = re.compile(r"([0-9]+)\.(jpe?g|png)", re.IGNORECASE)


def clip_folders(split: ReadablePath) -> list[ReadablePath]:
    """The clips of a split, in numeric order: folders named by a number or holding `imgs`."""
    return [p for p in list_folder(split) if p.is_dir() and (p.name.isdecimal() or find_folder(p, "imgs"))]


def clip_spec(
    clip: ReadablePath, id: str, split: str, data: DataConfig, camera: Camera | None, *, every: bool
) -> ClipSpec:
    """What a clip's folder says before its frames are read.

    Args:
        clip: the folder.
        id: of its sequence.
        split: one of `features.sequences.SPLITS`; in `test` the annotation or its velocity may be missing.
        data: `frames`, `label_frame` and `fps` count.
        camera: that took the clip, where known.
        every: label every vehicle, or the first only.
    """
    faults: list[str] = []
    files = numbered_frames(clip, data.frames, faults)
    frame = data.label_frame - 1 if data.label_frame else len(files) - 1
    labels: tuple[Label, ...] = ()
    try:
        labels = _vehicle_labels(clip, split, frame, every=every, faults=faults)
    except DataError as e:
        faults.append(as_error_line(e))
    try:
        labels += _ego_labels(clip, frame, faults)
    except DataError as e:
        faults.append(as_error_line(e))
    return ClipSpec(id, split, data.fps, files, labels, camera, faults)


def numbered_frames(clip: ReadablePath, wanted: int | None, faults: list[str]) -> tuple[ReadablePath, ...]:
    """`imgs/001.jpg …` in order: exactly the first `wanted`, or all of them without gaps.

    What is there is returned even where some are missing, so that their own faults show in the same pass.
    """
    imgs = find_folder(clip, "imgs")
    if imgs is None:
        faults.append(error_line(f"{clip}: no frames", expected="a folder imgs with 001.jpg …", got="no folder imgs"))
        return ()
    found: dict[int, ReadablePath] = {}
    for file in list_folder(imgs):
        if match := _FRAME.fullmatch(file.name):
            number = int(match[1])
            if number == 0:
                faults.append(error_line(f"{file}: frame number 0", expected="frames numbered from 001", got=file.name))
            elif number in found:
                got = f"{found[number].name} and {file.name}"
                faults.append(error_line(f"{file}: two files for frame {number}", expected="one", got=got))
            else:
                found[number] = file
    last = max(found, default=0)
    if not found or (wanted and last == len(found) < wanted):
        faults.append(
            error_line(
                f"{imgs}: {len(found)} frames where {wanted} are asked" if wanted else f"{imgs}: no frames",
                expected=f"{wanted} frames" if wanted else "001.jpg …",
                got=len(found),
            )
        )
    else:
        digits, suffix = next(iter(found.values())).name.split(".")
        for number in range(1, (wanted or last) + 1):
            if number not in found:
                missing = imgs.joinpath(f"{number:0{len(digits)}d}.{suffix}")
                faults.append(
                    error_line(f"{missing}: missing frame", expected=f"frames 1 … {wanted or last}", got="a gap")
                )
    return tuple(found[n] for n in sorted(found) if not wanted or n <= wanted)


def _vehicle_labels(clip: ReadablePath, split: str, frame: int, *, every: bool, faults: list[str]) -> tuple[Label, ...]:
    file = clip.joinpath("annotation.json")
    if not file.is_file():
        if split == "test":
            return (Label(frame, annotation_json.UNKNOWN_VELOCITY),)
        faults.append(error_line(f"{file}: missing annotation", expected="a JSON list of vehicles", got="no such file"))
        return ()
    value = annotation_json.load_json(file)
    return annotation_json.vehicle_labels(value, str(file), frame, known=split != "test", every=every, faults=faults)


def _ego_labels(clip: ReadablePath, frame: int, faults: list[str]) -> tuple[Label, ...]:
    file = clip.joinpath("ego.json")
    return (
        annotation_json.ego_labels(annotation_json.load_json(file), str(file), frame, faults) if file.is_file() else ()
    )
