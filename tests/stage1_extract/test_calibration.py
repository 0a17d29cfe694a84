"""calibration.txt: the camera, from a file beside the clips or the one that the config names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from features.errors import ConfigError, DataError
from features.sequences import Camera
from stage1_extract.datasets import scan
from stage1_extract.datasets.calibration import read_camera
from stage1_extract.datasets.camera_file import read_camera_file
from stage1_extract.sample.dataset import CALIBRATION
from tests.dataset_helpers import assert_only_fault, data_config, write_clip, zip_folder

SAMPLE_CAMERA = Camera(714.1526, 710.3725, 675.5754, 376.2563, 1.80)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set in the competition's layout, with a calibration.txt beside Train."""
    write_clip(tmp_path / "data/Train/Train/1")
    (tmp_path / "data/calibration.txt").write_text(CALIBRATION)
    return tmp_path / "data"


def cameras(path: Path, layout: str = "competition", **settings: object) -> set[Camera | None]:
    catalogue = scan(data_config(layout, path, **settings))
    assert not catalogue.faults
    return {clip.sequence.camera for clip in catalogue.clips}


def test_file_beside_the_clips_is_read(folder: Path, tmp_path: Path) -> None:
    assert cameras(folder) == {SAMPLE_CAMERA}
    assert cameras(zip_folder(folder, tmp_path / "data.zip")) == {SAMPLE_CAMERA}
    (folder / "calibration.txt").unlink()
    assert cameras(folder) == {None}


def test_file_named_by_the_config_comes_first(folder: Path, tmp_path: Path) -> None:
    (folder / "calibration.txt").write_text("nonsense")
    other = tmp_path / "other.txt"
    other.write_text("Intrinsic matrix:\n700 0 320\n0 700 240\n0 0 1\n")
    assert cameras(folder, calibration=str(other)) == {Camera(700, 700, 320, 240)}


def test_manifest_takes_the_file_named_by_the_config(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text(f"path,sequence,frame,split,v\n{folder}/Train/Train/1/imgs/001.jpg,a,0,train,1\n")
    assert cameras(table, "manifest", calibration=str(folder / "calibration.txt")) == {SAMPLE_CAMERA}


def test_tusimple_has_a_file_for_all_splits_or_for_each(tmp_path: Path) -> None:
    write_clip(tmp_path / "train/clips/1")
    (tmp_path / "train/calibration.txt").write_text(CALIBRATION)
    assert cameras(tmp_path, "tusimple") == {SAMPLE_CAMERA}
    (tmp_path / "train/calibration.txt").rename(tmp_path / "calibration.txt")
    assert cameras(tmp_path, "tusimple") == {SAMPLE_CAMERA}


def test_malformed_file_beside_the_clips_is_a_fault(folder: Path) -> None:
    (folder / "calibration.txt").write_text("Intrinsic matrix:\n1 0 2\n")
    catalogue = scan(data_config("competition", folder))
    assert len(catalogue.clips) == 1
    path = folder / "calibration.txt"
    assert_only_fault(catalogue, path, "no camera matrix", "three rows of three numbers", "1 0 2")


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
def test_malformed_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_camera(tmp_path / "c.txt")


def test_malformed_file_named_by_the_config_is_refused_with_a_hint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("")
    with pytest.raises(DataError, match=r"no camera.*--data\.calibration"):
        cameras(folder, calibration=str(tmp_path / "c.txt"))


def test_published_calibration_is_read(real: Path) -> None:
    assert read_camera(real / "competition/calibration.txt") == SAMPLE_CAMERA


CAMERA_TOML = "fx = 714.0\nfy = 710.0\ncx = 639.5\ncy = 359.5\nsize = [1280, 720]\nheight = 1.8\nhorizon = 339.5\n"


def test_camera_file_is_adapted_to_the_size_of_the_frames(tmp_path: Path) -> None:
    (tmp_path / "camera.toml").write_text(CAMERA_TOML)
    camera = read_camera_file(tmp_path / "camera.toml")
    assert camera.camera((1280, 720)) == Camera(714, 710, 639.5, 359.5, 1.8, 339.5)
    assert camera.camera((640, 360)) == Camera(357, 355, 319.5, 179.5, 1.8, 169.5)


def test_camera_file_for_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "camera.toml").write_text(CAMERA_TOML)
    with pytest.raises(DataError, match=r"expected 1280x720.*got 1242x375"):
        read_camera_file(tmp_path / "camera.toml").camera((1242, 375))


@pytest.mark.parametrize("line", ["fx = 0.0", 'fx = "714"', "focal = 3.0"])
def test_wrong_value_in_a_camera_file_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "camera.toml").write_text(CAMERA_TOML.replace("fx = 714.0", line))
    with pytest.raises(ConfigError, match=line.split()[0]):
        read_camera_file(tmp_path / "camera.toml")


def test_clip_may_have_a_camera_of_its_own(folder: Path) -> None:
    write_clip(folder / "Train/Train/2")
    (folder / "Train/Train/2/calibration.txt").write_text("Intrinsic matrix:\n700 0 320\n0 700 240\n0 0 1\n")
    assert cameras(folder) == {SAMPLE_CAMERA, Camera(700, 700, 320, 240)}


def test_horizon_is_read(folder: Path) -> None:
    (folder / "calibration.txt").write_text(CALIBRATION + "\nHorizon:\n\n341.25\n")
    assert cameras(folder) == {replace(SAMPLE_CAMERA, horizon=341.25)}


def test_horizon_that_is_no_number_is_a_fault(folder: Path) -> None:
    (folder / "calibration.txt").write_text(CALIBRATION + "\nHorizon:\n\nlow\n")
    assert_only_fault(scan(data_config("competition", folder)), folder / "calibration.txt", "no row of the horizon")
