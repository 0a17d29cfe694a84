"""The competition's data set: clips, labels and faults, from real folders and zips."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue
from tests.dataset_helpers import (
    SECOND_VEHICLE,
    VEHICLE,
    assert_only_fault,
    data_config,
    noise_image,
    write_clip,
    zip_folder,
)

FRAME_NAMES = ["001.jpg", "002.jpg", "003.jpg"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Train 1, 2, 10, Validation 1, Test 1, in the competition's layout."""
    root = tmp_path / "data"
    for name in ("1", "2", "10"):
        write_clip(root / f"Train/Train/{name}")
    write_clip(root / "Validation/Validation/1")
    write_clip(root / "Test/Test/1", [{"bbox": VEHICLE["bbox"]}])
    return root


def competition(path: Path, **settings: Any) -> Catalogue:
    return scan(data_config("competition", path, **settings), threads=2)


def test_clips_come_in_numeric_order_with_their_labels(root: Path) -> None:
    catalogue = competition(root, fps=10)
    assert catalogue.faults == ()
    sequences = [clip.sequence for clip in catalogue.clips]
    assert [s.id for s in sequences] == ["Train/1", "Train/2", "Train/10", "Validation/1", "Test/1"]
    assert [s.split for s in sequences] == ["train"] * 3 + ["validation", "test"]
    first = sequences[0]
    assert (first.length, first.fps, first.size) == (3, 10.0, (32, 18))
    (label,) = first.labels
    assert label.frame == 2 and label.targets == {"vx": -1.5, "vy": 0.25}
    assert label.box == (1, 2, 9, 7) and label.position == (20.0, -1.5)
    (test_label,) = sequences[-1].labels
    assert test_label.box == (1, 2, 9, 7)
    assert list(test_label.targets) == ["vx", "vy"] and all(map(math.isnan, test_label.targets.values()))


def test_frames_are_read_by_any_thread_in_any_order(root: Path) -> None:
    for path in (root, zip_folder(root, root.parent / "data.zip")):
        source = competition(path).clips[0].source
        assert source.parallel
        expected = [cv2.imread(str(root / f"Train/Train/1/imgs/{name}")) for name in FRAME_NAMES]
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda i, s=source: list(s.read(i % 3, 3)), range(60)))
        for i, frames in enumerate(results):
            assert all(np.array_equal(a, b) for a, b in zip(frames, expected[i % 3 :], strict=True))


def test_zip_and_folder_and_every_accepted_root_give_the_same_clips(root: Path, tmp_path: Path) -> None:
    expected = [repr(clip.sequence) for clip in competition(root).clips]
    flat = tmp_path / "flat"
    for name in ("Train", "Validation", "Test"):
        shutil.copytree(root / name / name, flat / name)
    above = tmp_path / "above"
    shutil.copytree(root, above / "data")
    (above / "__MACOSX/Train").mkdir(parents=True)
    for path in (flat, above, zip_folder(root, tmp_path / "a.zip"), zip_folder(above, tmp_path / "b.zip")):
        assert [repr(clip.sequence) for clip in competition(path).clips] == expected, path
    assert [clip.sequence.id for clip in competition(root / "Train").clips] == ["Train/1", "Train/2", "Train/10"]


def test_digest_depends_on_contents_and_order_of_files_not_on_labels(root: Path) -> None:
    digest = competition(root).clips[0].sequence.digest
    imgs = root / "Train/Train/1/imgs"
    contents = [(imgs / name).read_bytes() for name in FRAME_NAMES]
    assert digest == hashlib.sha256(b"".join(hashlib.sha256(c).digest() for c in contents)).hexdigest()
    (imgs.parent / "annotation.json").write_text(json.dumps([SECOND_VEHICLE]))
    assert competition(root).clips[0].sequence.digest == digest
    (imgs / "001.jpg").write_bytes(contents[1])
    (imgs / "002.jpg").write_bytes(contents[0])
    assert competition(root).clips[0].sequence.digest != digest


def test_number_of_frames_and_label_frame_can_be_set(root: Path) -> None:
    (root / "Train/Train/1/imgs/003.jpg").write_bytes(b"beyond the second frame")
    catalogue = competition(root, frames=2, label_frame=40)
    assert catalogue.faults == ()
    assert {clip.sequence.length for clip in catalogue.clips} == {2}
    assert {label.frame for clip in catalogue.clips for label in clip.sequence.labels} == {39}


def test_only_the_first_vehicle_is_labelled_except_in_the_sample_set(root: Path) -> None:
    (root / "Train/Train/1/annotation.json").write_text(json.dumps([VEHICLE, SECOND_VEHICLE]))
    assert [label.targets["vx"] for label in competition(root).clips[0].sequence.labels] == [-1.5]
    sample = scan(data_config("sample", root))
    assert [label.targets["vx"] for label in sample.clips[0].sequence.labels] == [-1.5, 3.0]
    # errors in the other vehicles are no faults either
    (root / "Train/Train/1/annotation.json").write_text(json.dumps([VEHICLE, {"velocity": "fast"}]))
    assert competition(root).faults == ()


def test_ego_speed_is_a_separate_label(root: Path) -> None:
    (root / "Train/Train/1/ego.json").write_text('{"speed": 21.3}')
    vehicle, ego = competition(root).clips[0].sequence.labels
    assert list(vehicle.targets) == ["vx", "vy"]
    assert (ego.targets, ego.frame, ego.box) == ({"ego_speed": 21.3}, 2, None)
    (root / "Train/Train/1/ego.json").write_text("{}")
    assert_only_fault(competition(root), root / "Train/Train/1/ego.json", "speed: Field required")


def test_annotation_may_be_missing_in_a_test_split_only(root: Path) -> None:
    (root / "Test/Test/1/annotation.json").unlink()
    catalogue = competition(root)
    assert catalogue.faults == ()
    (label,) = catalogue.clips[-1].sequence.labels
    assert label.frame == 2 and label.box is None and math.isnan(label.targets["vx"])
    path = root / "Validation/Validation/1/annotation.json"
    path.unlink()
    assert_only_fault(competition(root), path, "missing annotation", "no such file")


def test_velocity_of_a_test_clip_must_be_correct_if_given(root: Path) -> None:
    path = root / "Test/Test/1/annotation.json"
    path.write_text('[{"velocity": [NaN, 1]}]')
    assert_only_fault(competition(root), path, "velocity[0]: Input should be a finite number", "got NaN")


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "no annotated vehicle")])
def test_clip_with_a_wrong_annotation_is_left_out(root: Path, text: str, message: str) -> None:
    path = root / "Train/Train/2/annotation.json"
    path.write_text(text)
    catalogue = competition(root)
    assert_only_fault(catalogue, path, message)
    assert [clip.sequence.id for clip in catalogue.clips] == ["Train/1", "Train/10", "Validation/1", "Test/1"]


def remove(*names: str) -> Callable[[Path], object]:
    return lambda imgs: [(imgs / name).unlink() for name in names]


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda imgs: (imgs / name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "frames", "file", "message"),
    [
        (remove("003.jpg"), 3, "", "no frame 3; expected 3 frames from 001.jpg on; got 2 frames"),
        (remove("002.jpg"), 3, "", "no frame 2; "),
        (remove("001.jpg"), None, "", "no frame 1; expected all frames from 001.jpg on; got 2 frames"),
        (remove(*FRAME_NAMES), None, "", "no frame 1; expected all frames from 001.jpg on; got 0 frames"),
        (write("000.jpg", b""), None, "/000.jpg", "expected frames numbered from 001"),
        (write("2.png", b""), None, "/2.png", "two files for frame 2; expected one; got 002.jpg and 2.png"),
        (write("002.jpg", noise_image(1)[:-40]), None, "/002.jpg", "damaged image"),
        (
            write("002.jpg", noise_image(1, (30, 18))),
            None,
            "/002.jpg",
            "expected 32x18 like the other frames; got 30x18",
        ),
        (
            write("001.jpg", noise_image(1, (30, 18))),
            None,
            "/001.jpg",
            "expected 32x18 like the other frames; got 30x18",
        ),
        (shutil.rmtree, None, "/..", "expected a folder imgs with 001.jpg …"),
    ],
)
def test_clip_with_a_faulty_frame_is_left_out(
    root: Path, damage: Callable[[Path], object], frames: int | None, file: str, message: str
) -> None:
    imgs = root / "Train/Train/10/imgs"
    damage(imgs)
    catalogue = competition(root, frames=frames)
    assert_only_fault(catalogue, imgs.parent if file == "/.." else f"{imgs}{file}", message)
    assert "Train/10" not in [clip.sequence.id for clip in catalogue.clips] and len(catalogue.clips) == 4


def test_other_images_beside_numbered_frames_are_no_frames(root: Path) -> None:
    imgs = root / "Train/Train/10/imgs"
    expected = competition(root).clips[2].sequence
    for name in ("mask_001.png", "overview7.jpg"):
        (imgs / name).write_bytes(noise_image(5))
    assert competition(root).clips[2].sequence == expected
    (imgs / "overview7.jpg").unlink()
    for name in FRAME_NAMES:
        (imgs / name).rename(imgs / f"drive7 frame{name}")
    assert_only_fault(competition(root), imgs / "mask_001.png", "two files for frame 1")


def test_one_pass_finds_all_faults_of_all_clips(root: Path) -> None:
    (root / "Train/Train/1/imgs/002.jpg").unlink()
    (root / "Train/Train/1/imgs/003.jpg").write_bytes(b"")
    (root / "Train/Train/1/annotation.json").write_text('[{"velocity": ["a", "b"]}]')
    (root / "Test/Test/1/imgs/001.jpg").write_bytes(b"x")
    assert [line.split(": ")[0].removeprefix(f"{root}/") for line in competition(root).faults] == [
        "Train/Train/1/imgs",
        "Train/Train/1/annotation.json",
        "Train/Train/1/annotation.json",
        "Train/Train/1/imgs/003.jpg",
        "Test/Test/1/imgs/001.jpg",
    ]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read all files")
def test_unreadable_frame_is_a_fault(root: Path) -> None:
    path = root / "Train/Train/1/imgs/002.jpg"
    path.chmod(0)
    assert_only_fault(competition(root), path, "Permission denied")


def test_folder_named_like_a_frame_is_a_fault(root: Path) -> None:
    path = root / "Train/Train/1/imgs/002.jpg"
    path.unlink()
    path.mkdir()
    assert_only_fault(competition(root), path, "cannot be read; got Is a directory")


def test_frame_that_changes_after_the_scan_is_refused(root: Path) -> None:
    source = competition(root).clips[0].source
    path = root / "Train/Train/1/imgs/002.jpg"
    for data, message in ((noise_image(0), "changed since it was scanned"), (None, "no such file")):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        frames = source.read(0, 3)
        assert next(frames).shape == (18, 32, 3)
        with pytest.raises(DataError, match=f"002.jpg: .*{message}"):
            next(frames)


def test_missing_path_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder or \.zip\. Try: set data\.path"):
        competition(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Try: framebank sample"):
        scan(data_config("sample", tmp_path / "nowhere"))


def test_folder_without_one_data_set_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/Photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty: no data set; expected a folder Train.*got Photos.*Try"):
        competition(tmp_path / "empty")
    for name in ("other", "more"):
        (tmp_path / "empty" / name / "Train").mkdir(parents=True)
    with pytest.raises(DataError, match="several data sets: more, other"):
        competition(tmp_path / "empty")
    (tmp_path / "bare/Train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bare: no clips.*Try"):
        competition(tmp_path / "bare")


def test_real_competition_clip(real: Path) -> None:
    catalogue = competition(real / "competition", frames=8, label_frame=40)
    assert catalogue.faults == ()
    (clip,) = catalogue.clips
    assert (clip.sequence.id, clip.sequence.length, clip.sequence.size) == ("Train/1", 8, (1280, 720))
    (label,) = clip.sequence.labels
    assert label.frame == 39
    assert [label.targets["vx"], label.targets["vy"]] == [-1.2287469463, -0.0101401592]
    assert label.box == (784.6638793945, 340.3418273926, 868.1537475586, 393.3275146484)
