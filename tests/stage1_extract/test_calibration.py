"""calibration.txt: the camera as the competition writes it, beside the clips or where the config says."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from features.config import DataConfig
from features.errors import DataError
from features.sequences import Camera
from stage1_extract.datasets import scan
from stage1_extract.datasets.calibration import read_camera
from stage1_extract.sample import CALIBRATION
from tests.helpers import write_clips

SAMPLE = Camera(714.1526, 710.3725, 675.5754, 376.2563, 1.80)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    root = write_clips(tmp_path / "data", {"Train": 2, "Test": 1})
    (root / "calibration.txt").write_text(CALIBRATION)
    return root


def cameras(path: Path, **settings: object) -> set[Camera | None]:
    catalogue = scan(DataConfig.model_validate({"layout": "competition", "path": str(path)} | settings))
    assert not catalogue.faults
    return {clip.sequence.camera for clip in catalogue.clips}


def test_the_file_beside_the_clips(clips: Path) -> None:
    assert cameras(clips) == {SAMPLE}
    (clips / "calibration.txt").unlink()
    assert cameras(clips) == {None}


def test_within_a_zip(clips: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in clips.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    assert cameras(tmp_path / "data.zip") == {SAMPLE}


def test_the_configs_file_counts_more_than_the_one_beside(clips: Path, tmp_path: Path) -> None:
    (clips / "calibration.txt").write_text("nonsense")
    own = tmp_path / "own.txt"
    own.write_text("Intrinsic matrix:\n700 0 320\n0 700 240\n0 0 1\n")
    assert cameras(clips, calibration=str(own)) == {Camera(700, 700, 320, 240)}


def test_for_a_manifest(clips: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text(f"path,sequence,frame,split,v\n{clips}/Train/Train/1/imgs/001.jpg,a,0,train,1\n")
    assert cameras(table, layout="manifest", calibration=str(clips / "calibration.txt")) == {SAMPLE}


def test_tusimples_clips_have_it_beside_them(tmp_path: Path) -> None:
    clip = write_clips(tmp_path / "made", {"Train": 1}) / "Train/Train/1"
    for part in ("train", "test"):
        (tmp_path / "data" / part / "clips").mkdir(parents=True)
    clip.rename(tmp_path / "data/train/clips/1")
    (tmp_path / "data/train/calibration.txt").write_text(CALIBRATION)
    assert cameras(tmp_path / "data", layout="tusimple") == {SAMPLE}
    (tmp_path / "data/train/calibration.txt").rename(tmp_path / "data/calibration.txt")
    assert cameras(tmp_path / "data", layout="tusimple") == {SAMPLE}


def test_a_malformed_file_is_a_fault_of_no_clip(clips: Path) -> None:
    (clips / "calibration.txt").write_text("Intrinsic matrix:\n1 0 2\n")
    catalogue = scan(DataConfig(layout="competition", path=str(clips)))
    assert len(catalogue.clips) == 3
    (fault,) = catalogue.faults
    assert "calibration.txt: no camera matrix" in fault and "three rows of three numbers" in fault and "1 0 2" in fault


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no camera"),
        ("Camera Height:\n1.8m", "no camera"),
        ("Intrinsic matrix:\n1 0 2\n0 1 x\n0 0 1", "no camera matrix"),
        ("Intrinsic matrix:\n1 0 2 3\n0 1 2\n0 0 1", "no camera matrix"),
        ("Intrinsic matrix:\n1 0 2\n0 nan 2\n0 0 1", "no camera matrix"),
        ("Intrinsic matrix:\n-7 0 2\n0 7 2\n0 0 1", "pinhole"),
        ("Intrinsic matrix:\n7 0 2\n0 7 2\n0 0 2", "pinhole"),
        ("Intrinsic matrix:\n7 1 2\n0 7 2\n0 0 1", "pinhole"),
        ("Intrinsic matrix:\n7 0 2\n0 7 2\n0 0 1\nCamera Height:\ntall", "no camera height"),
        ("Intrinsic matrix:\n7 0 2\n0 7 2\n0 0 1\nCamera Height:\n-1m", "no camera height"),
    ],
)
def test_what_is_no_calibration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_camera(tmp_path / "c.txt")
    write_clips(tmp_path / "data", {"Train": 1})
    with pytest.raises(DataError, match=r"--data\.calibration"):
        cameras(tmp_path / "data", calibration=str(tmp_path / "c.txt"))


def test_the_published_file(real: Path) -> None:
    assert read_camera(real / "competition/calibration.txt") == SAMPLE
