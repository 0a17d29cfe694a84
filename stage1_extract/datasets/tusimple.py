"""TuSimple's velocity benchmark (github.com/TuSimple/tusimple-benchmark): `clips/1/imgs/001.jpg …`, `annotation.json`.
The test part's velocities come in one file beside `clips`, with the vehicles of each clip in numeric order.
"""

from __future__ import annotations

from features.config import DataConfig
from features.errors import DataError
from features.sequences import Box
from stage1_extract.datasets.annotation_json import load_json, vehicle_labels
from stage1_extract.datasets.archive import ReadablePath, find_folder, list_folder, open_folder_or_zip
from stage1_extract.datasets.calibration import find_calibration
from stage1_extract.datasets.clip import add_fault
from stage1_extract.datasets.competition import clip_folders, clip_spec
from stage1_extract.datasets.image_sequence import ClipSpec

TUSIMPLE_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
    "benchmark_velocity_train": "train",
    "benchmark_velocity_test": "test",
}
TEST_LABEL_FILES = ("gt.json", "test_label.json")
MAX_BOX_DIFFERENCE = 10.0  # px, summed over the four sides, up to which the benchmark's evaluation matches boxes


def tusimple_clips(data: DataConfig) -> tuple[list[ClipSpec], list[str]]:
    """Describe each clip (ids `clips/1`, or `test/clips/1` with a folder for each split), and collect other faults.

    A DataError if there is nothing at `data.path`, or no folder `clips` in it.
    """
    hint = "set data.path to the folder that holds clips, or train/clips and test/clips"
    root = open_folder_or_zip(data.path, hint=hint)
    faults: list[str] = []
    root_camera = find_calibration(root, data, faults)
    specs = []
    for prefix, split, folder, clips in _splits(root, hint):
        camera = (find_calibration(folder, data, faults) if prefix else None) or root_camera
        split_specs = [
            clip_spec(clip, f"{prefix}clips/{clip.name}", split, data, camera, all_vehicles=True)
            for clip in clip_folders(clips)
        ]
        test_labels = [file for name in TEST_LABEL_FILES if (file := folder.joinpath(name)).is_file()]
        if test_labels and split_specs and split == "test":
            for value in load_json(test_labels[0], split_specs[0].faults):
                _set_test_labels(split_specs, value, test_labels[0])
        specs += split_specs
    return specs, faults


def _splits(root: ReadablePath, hint: str) -> list[tuple[str, str, ReadablePath, ReadablePath]]:
    """For each split the prefix of its ids, its name, the folder that holds `clips`, and `clips` itself."""
    if clips := find_folder(root, "clips"):
        return [("", TUSIMPLE_FOLDERS.get(root.name.lower().removesuffix(".zip"), "train"), root, clips)]
    splits = [
        (f"{folder.name}/", TUSIMPLE_FOLDERS[folder.name.lower()], folder, clips)
        for folder in list_folder(root)
        if folder.is_dir() and folder.name.lower() in TUSIMPLE_FOLDERS and (clips := find_folder(folder, "clips"))
    ]
    if not splits:
        names = ", ".join(p.name for p in list_folder(root)[:5]) or "an empty folder"
        expected = "clips, or train/clips and test/clips"
        raise DataError(f"{root}: no TuSimple data", expected=expected, got=names, hint=hint)
    return splits


def _set_test_labels(specs: list[ClipSpec], value: object, file: ReadablePath) -> None:
    """Replace the labels of a test split by the value in a file, after checking that they have the same boxes."""
    if not isinstance(value, list) or len(value) != len(specs):
        got = len(value) if isinstance(value, list) else type(value).__name__
        add_fault(specs[0].faults, f"{file}: not one entry per clip", f"a list of {len(specs)}", got)
        return
    for index, (spec, entry) in enumerate(zip(specs, value, strict=True)):
        where = f"{file}: [{index}]"
        frame = spec.labels[0].frame if spec.labels else len(spec.files) - 1
        labels = vehicle_labels(entry, where, frame, velocity_required=True, all_vehicles=True, faults=spec.faults)
        boxes, label_boxes = ([label.box for label in group if label.box] for group in (spec.labels, labels))
        if labels and not all(any(_same_box(box, other) for other in label_boxes) for box in boxes):
            add_fault(spec.faults, f"{where} belongs to another clip", f"the boxes of {spec.id}", "other boxes")
        spec.labels = labels + tuple(label for label in spec.labels if "ego_speed" in label.targets)


def _same_box(a: Box, b: Box) -> bool:
    return sum(abs(p - q) for p, q in zip(a, b, strict=True)) <= MAX_BOX_DIFFERENCE
