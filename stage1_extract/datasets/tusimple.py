"""The TuSimple velocity benchmark: `clips/1/imgs/001.jpg … 040.jpg` with `annotation_json.json`, every vehicle a label.

The benchmark's test part has boxes only; its answers come as one file beside `clips`, a list with one list of vehicles
for each clip in numeric order (github.com/TuSimple/tusimple-benchmark, velocity estimation).
"""

from __future__ import annotations

from collections.abc import Iterator

from features.config import DataConfig
from features.errors import DataError
from features.sequences import Label
from stage1_extract.datasets import annotation_json, calibration
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder, open_folder_or_zip
from stage1_extract.datasets.clip_folder import clip_folders, clip_spec
from stage1_extract.datasets.image_sequence import ClipSpec, as_error_line, error_line

TUSIMPLE_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "benchmark_velocity_train": "train",
    "benchmark_velocity_test": "test",
}
ANSWERS = ("gt.json", "test_label.json")
_TOLERANCE = 10.0  # pixels over a box's four sides: how far the benchmark's own evaluation matches boxes


def tusimple_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """A draft for each clip, and faults that belong to none.

    Ids are `clips/1`, or `test/clips/1` where split folders hold the clips.

    Raises:
        DataError: nothing at `data.path`, or no folder `clips` in it.
    """
    hint = "set data.path to the folder that holds clips, or train/clips and test/clips"
    root = open_folder_or_zip(data.path, hint=hint)
    faults: list[str] = []
    common = None if data.calibration else calibration.find_calibration(root, faults)
    found = []
    for prefix, split, home, clips in _splits(root, hint):
        camera = common
        if prefix and not data.calibration:
            camera = calibration.find_calibration(home, faults) or common
        part = [
            clip_spec(clip, f"{prefix}clips/{clip.name}", split, data, camera, every=True)
            for clip in clip_folders(clips)
        ]
        answers = next((f for f in map(home.joinpath, ANSWERS) if f.is_file()), None)
        if answers is not None and split == "test":
            _answer(part, answers)
        found += part
    return found, faults


def _splits(root: ReadablePath, hint: str) -> Iterator[tuple[str, str, ReadablePath, ReadablePath]]:
    """Prefix of the ids, split, the folder beside `clips`, and `clips` itself."""
    if clips := find_folder(root, "clips"):
        yield "", TUSIMPLE_FOLDERS.get(root.name.lower().removesuffix(".zip"), "train"), root, clips
        return
    none = True
    for home in list_folder(root):
        if home.is_dir() and home.name.lower() in TUSIMPLE_FOLDERS and (clips := find_folder(home, "clips")):
            none = False
            yield f"{home.name}/", TUSIMPLE_FOLDERS[home.name.lower()], home, clips
    if none:
        names = ", ".join(p.name for p in list_folder(root)[:5]) or "nothing"
        raise DataError(
            f"{root}: no TuSimple data", expected="clips, or train/clips and test/clips", got=names, hint=hint
        )


def _answer(part: list[ClipSpec], file: ReadablePath) -> None:
    """Put the answers' labels in the place of the drafts', where their boxes are the same vehicles'."""
    if not part:
        return
    try:
        value = annotation_json.load_json(file)
    except DataError as e:
        part[0].faults.append(as_error_line(e))
        return
    if not isinstance(value, list) or len(value) != len(part):
        got = len(value) if isinstance(value, list) else type(value).__name__
        part[0].faults.append(error_line(f"{file}: not one entry a clip", expected=f"a list of {len(part)}", got=got))
        return
    for index, (clip, entry) in enumerate(zip(part, value, strict=True)):
        where = f"{file}: [{index}]"
        frame = clip.labels[0].frame if clip.labels else len(clip.files) - 1
        labels = annotation_json.vehicle_labels(entry, where, frame, known=True, every=True, faults=clip.faults)
        asked = [label for label in clip.labels if label.box]
        if labels and not all(any(_same(a, b) for b in labels) for a in asked):
            got = f"other boxes than those of {clip.id}"
            clip.faults.append(
                error_line(f"{where} belongs to another clip", expected=f"the boxes of {clip.id}", got=got)
            )
        own = tuple(label for label in clip.labels if "ego_speed" in label.targets)
        clip.labels = labels + own


def _same(a: Label, b: Label) -> bool:
    if a.box is None or b.box is None:
        return False
    return sum(abs(p - q) for p, q in zip(a.box, b.box, strict=True)) <= _TOLERANCE
