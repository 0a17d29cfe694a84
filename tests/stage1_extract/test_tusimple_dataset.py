"""TuSimple's data set: a label per vehicle, splits by folder, and the test part's velocities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue
from tests.dataset_helpers import SECOND_VEHICLE, VEHICLE, assert_only_fault, data_config, write_clip


def tusimple(path: Path) -> Catalogue:
    return scan(data_config("tusimple", path))


def test_all_vehicles_are_labelled(tmp_path: Path) -> None:
    write_clip(tmp_path / "clips/2", [VEHICLE, SECOND_VEHICLE])
    write_clip(tmp_path / "clips/10")
    sequences = [clip.sequence for clip in tusimple(tmp_path).clips]
    assert [(s.id, s.split) for s in sequences] == [("clips/2", "train"), ("clips/10", "train")]
    assert [label.targets["vx"] for label in sequences[0].labels] == [-1.5, 3.0]


def test_folders_name_the_splits(tmp_path: Path) -> None:
    write_clip(tmp_path / "train/clips/1")
    write_clip(tmp_path / "test/clips/2", [{"bbox": VEHICLE["bbox"]}])
    catalogue = tusimple(tmp_path)
    assert catalogue.faults == ()
    sequences = [clip.sequence for clip in catalogue.clips]
    assert [(s.id, s.split) for s in sequences] == [("test/clips/2", "test"), ("train/clips/1", "train")]
    assert math.isnan(sequences[0].labels[0].targets["vx"])
    # also when the folder of a single split is given
    assert {clip.sequence.split for clip in tusimple(tmp_path / "test").clips} == {"test"}


def test_test_labels_come_from_one_file_and_must_fit_the_boxes(tmp_path: Path) -> None:
    write_clip(tmp_path / "test/clips/2", [{"bbox": VEHICLE["bbox"]}])
    write_clip(tmp_path / "test/clips/10", [{"bbox": SECOND_VEHICLE["bbox"]}])
    path = tmp_path / "test/gt.json"
    path.write_text(json.dumps([[VEHICLE], [SECOND_VEHICLE]]))
    catalogue = tusimple(tmp_path)
    assert catalogue.faults == ()
    assert [label.targets["vx"] for clip in catalogue.clips for label in clip.sequence.labels] == [-1.5, 3.0]
    path.write_text(json.dumps([[SECOND_VEHICLE], [VEHICLE]]))
    faults = tusimple(tmp_path).faults
    assert len(faults) == 2 and all(f"{path}: [{i}] belongs" in faults[i] for i in (0, 1))
    path.write_text(json.dumps([[VEHICLE]]))
    assert_only_fault(tusimple(tmp_path), path, "expected a list of 2; got 1")
    path.write_text("[")
    assert_only_fault(tusimple(tmp_path), path, "not JSON")


def test_folder_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no TuSimple data; .*expected clips.*Try"):
        tusimple(tmp_path)


def test_training_clip_without_velocity_is_a_fault(tmp_path: Path) -> None:
    write_clip(tmp_path / "clips/1", [{"bbox": VEHICLE["bbox"]}])
    assert_only_fault(tusimple(tmp_path), tmp_path / "clips/1/annotation.json", "[0].velocity: Field required")


def test_real_tusimple_clip(real: Path) -> None:
    catalogue = tusimple(real / "tusimple")
    assert catalogue.faults == ()
    (clip,) = catalogue.clips
    assert (clip.sequence.id, clip.sequence.length) == ("clips/1", 40)
    assert [label.frame for label in clip.sequence.labels] == [39]
    assert [frame.shape for frame in clip.source.read(38, 40)] == [(720, 1280, 3)] * 2
