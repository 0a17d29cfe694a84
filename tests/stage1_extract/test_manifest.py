"""Data sets listed by a CSV manifest."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from features.errors import DataError
from features.sequences import FrameSequence
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue
from tests.dataset_helpers import assert_only_fault, data_config, noise_image

HEADER = "path,sequence,frame,split"


def scan_manifest(path: Path, header: str, *rows: str) -> Catalogue:
    """Write a manifest and scan it."""
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return scan(data_config("manifest", path, fps=7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images f/0.png … f/3.png."""
    (tmp_path / "f").mkdir()
    for i in range(4):
        (tmp_path / f"f/{i}.png").write_bytes(noise_image(i, suffix=".png"))
    return tmp_path


def test_frames_are_ordered_and_all_labels_kept(folder: Path) -> None:
    catalogue = scan_manifest(
        folder / "m.csv",
        "path,sequence,frame,split,speed,gap,left,top,right,bottom,x,y,fps",
        "f/2.png,b,10,train,,,,,,,,,12.5",
        "f/1.png,b,9,train,1.5,,1,2,3,4,20,-1,12.5",
        f"{folder}/f/0.png,a,0,validation,3,4,,,,,,,",
        "f/1.png,b,9,train,2.5,8,5,6,7,8,,,",
        "f/3.png,b,2.5,train,,,,,,,,,",
    )
    assert catalogue.faults == ()
    b, a = (clip.sequence for clip in catalogue.clips)
    assert (b.id, b.split, b.length, b.fps, b.size) == ("b", "train", 3, 12.5, (32, 18))
    assert (a.id, a.split, a.length, a.fps) == ("a", "validation", 1, 7.0)
    first, second = b.labels
    assert [first.frame, second.frame] == [1, 1]
    assert [first.targets["speed"], second.targets["speed"]] == [1.5, 2.5]
    assert math.isnan(first.targets["gap"]) and list(first.targets) == ["speed", "gap"]
    assert (first.box, first.position) == ((1, 2, 3, 4), (20, -1))
    assert (second.box, second.position) == ((5, 6, 7, 8), None)
    images = catalogue.clips[0].source.read(0, 3)
    for image, i in zip(images, (3, 1, 2), strict=True):
        assert np.array_equal(image, cv2.imread(str(folder / f"f/{i}.png")))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("f/1.png,a,1,training,1,,,,,", "unknown split; got 'training'; expected one of train, validation, test"),
        ("f/1.png,a,1,test,1,,,,,", "sequence a is in two splits; expected train; got test"),
        ("f/1.png,a,one,train,1,,,,,", "frame is not a number"),
        ("f/1.png,a,,train,1,,,,,", "no frame"),
        (",a,1,train,1,,,,,", "no path"),
        ("f/1.png,,1,train,1,,,,,", "no sequence"),
        ("f/1.png,a,1,train,fast,,,,,", "speed is not a number; "),
        ("f/1.png,a,1,train,nan,,,,,", "speed is not a number"),
        ("f/1.png,a,1,train,1,0,,,,", "wrong fps; "),
        ("f/1.png,a,1,train,1,20,,,,", "wrong fps; expected 10.0, as above; got 20.0"),
        ("f/1.png,a,1,train,1,,1,2,3,", "incomplete; "),
        ("f/1.png,a,1,train,1,,3,2,1,4", "not a box"),
        ("f/1.png,a,0,train,1,,,,,", "two files for frame 0 of a; expected f/0.png; got f/1.png"),
        ("f/1.png,a,1,train", "wrong number of cells; expected 10; got 4"),
    ],
)
def test_wrong_row_is_a_fault_of_its_sequence(folder: Path, row: str, message: str) -> None:
    header = f"{HEADER},speed,fps,left,top,right,bottom"
    rows = ["f/0.png,a,0,train,1,10,,,,", row, "f/3.png,z,0,train,1,,,,,"]
    if message.startswith("wrong fps; expected more"):
        rows[0] = "f/0.png,a,0,train,1,,,,,"
    catalogue = scan_manifest(folder / "m.csv", header, *rows)
    assert_only_fault(catalogue, f"{folder}/m.csv, line 3: {message}")
    assert "z" in [clip.sequence.id for clip in catalogue.clips]


def sequence_with_times(folder: Path, *times: str) -> FrameSequence:
    rows = [f"f/{i}.png,a,{i},train,{time}" for i, time in enumerate(times)]
    catalogue = scan_manifest(folder / "m.csv", HEADER + ",time", *rows)
    assert catalogue.faults == ()
    return catalogue.clips[0].sequence


def test_times_are_read_from_their_column(folder: Path) -> None:
    even = sequence_with_times(folder, "1506297181.0", "1506297181.05", "1506297181.1", "1506297181.15")
    assert (even.fps, even.times) == (pytest.approx(20), None)
    uneven = sequence_with_times(folder, "3", "3.05", "3.15", "3.2")
    assert uneven.times == pytest.approx((0, 0.05, 0.15, 0.2))
    assert uneven.fps == pytest.approx(15)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["0", "0.1", "0.1"], "line 4: time does not increase; expected more than 0.1 s"),
        (["0", "0.1", "0.05"], "line 4: time does not increase"),
        (["0", "", "0.2"], "line 3: time is missing"),
        (["0", "noon", "0.2"], "line 3: time is not a number"),
    ],
)
def test_wrong_time_is_a_fault(folder: Path, times: list[str], message: str) -> None:
    rows = [f"f/{i}.png,a,{i},train,{time}" for i, time in enumerate(times)]
    catalogue = scan_manifest(folder / "m.csv", HEADER + ",time", *rows)
    assert catalogue.clips == () and message in catalogue.faults[0]


@pytest.mark.parametrize(
    ("frames", "times"),
    [
        ((0, 1, 602, 603), (0, 1 / 7, 602 / 7, 603 / 7)),
        ((10, 20, 30, 60), (0, 1 / 7, 2 / 7, 5 / 7)),
        ((4, 6, 8, 10), None),
        ((1, 2, 3, 4), None),
    ],
)
def test_gap_in_the_frame_numbers_is_a_gap_in_time(
    folder: Path, frames: tuple[int, ...], times: tuple[float, ...] | None
) -> None:
    rows = [f"f/{i}.png,a,{frame},train" for i, frame in enumerate(frames)]
    sequence = scan_manifest(folder / "m.csv", HEADER, *rows).clips[0].sequence
    assert sequence.times == (None if times is None else pytest.approx(times)) and sequence.fps == 7


def test_remarks_and_repeated_rows_are_named_and_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"f/{i}.png,a,{i},train,{3 + i},{('sunny', '')[i % 2]}" for i in range(4)]
    catalogue = scan_manifest(folder / "m.csv", HEADER + ",speed,weather", *rows, *rows[1:3])
    (clip,) = catalogue.clips
    assert [dict(label.targets) for label in clip.sequence.labels] == [{"speed": v} for v in (3.0, 4.0, 5.0, 6.0)]
    err = capsys.readouterr().err
    assert "ignored weather, which has no number" in err and "2 rows of the manifest are repeated" in err


def test_text_among_numbers_is_a_fault(folder: Path) -> None:
    rows = [f"f/{i}.png,a,{i},train,{('3', 'fast', '4', '5')[i]}" for i in range(4)]
    catalogue = scan_manifest(folder / "m.csv", HEADER + ",speed", *rows)
    assert_only_fault(catalogue, f"{folder}/m.csv, line 3: speed is not a number")


@pytest.mark.parametrize("value", ["10.5 m/s", '"1,234"', "1_0"])
def test_target_without_a_number_is_refused(folder: Path, value: str) -> None:
    with pytest.raises(DataError, match=r"m\.csv, line 2: ego_speed has no number; .* got '1"):
        rows = [f"f/{i}.png,a,{i},train,{value}" for i in range(3)]
        path = folder / "m.csv"
        path.write_text("\n".join([f"{HEADER},ego_speed", *rows]))
        scan(data_config("manifest", path, target="ego_speed"))


def test_decimal_commas_of_a_spreadsheet_are_read(folder: Path) -> None:
    rows = [f"f/{i}.png;a;{i};train;{10 + i},5;0,{5 * i:02d}" for i in range(3)]
    catalogue = scan_manifest(folder / "m.csv", f"{HEADER};ego_speed;time".replace(",", ";"), *rows)
    (sequence,) = (clip.sequence for clip in catalogue.clips)
    assert [label.targets["ego_speed"] for label in sequence.labels] == [10.5, 11.5, 12.5]
    assert sequence.fps == pytest.approx(20)


@pytest.mark.parametrize("pattern", ["f\\{}.png", ".\\f\\{}.png", "~/f/{}.png"])
def test_paths_of_windows_and_of_the_home_folder_are_found(
    folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    rows = [f"{pattern.format(i)},a,{i},train" for i in range(3)]
    catalogue = scan_manifest(folder / "m.csv", HEADER, *rows)
    assert [clip.sequence.length for clip in catalogue.clips] == [3]


def test_times_in_another_unit_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"f/{i}.png,a,{i},train,{1000 + 50 * i}" for i in range(3)]
    scan_manifest(folder / "m.csv", f"{HEADER},time", *rows)
    assert "line 2: 50 s between frames of a; the column time is in seconds" in capsys.readouterr().err


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_read(folder: Path, separator: str) -> None:
    lines = [HEADER + ",speed", *(f"f/{i}.png,a,{i},train,{i}.5" for i in range(4))]
    header, *rows = (line.replace(",", separator) for line in lines)
    (clip,) = scan_manifest(folder / "m.csv", header, *rows).clips
    assert [label.targets["speed"] for label in clip.sequence.labels] == [0.5, 1.5, 2.5, 3.5]


def test_missing_frame_and_frame_of_another_size_are_faults(folder: Path) -> None:
    rows = ("f/0.png,a,0,train", "f/9.png,a,1,train")
    assert_only_fault(scan_manifest(folder / "m.csv", HEADER, *rows), folder / "f/9.png", "no such file")
    (folder / "f/9.png").write_bytes(noise_image(9, (40, 18)))
    assert_only_fault(scan_manifest(folder / "m.csv", HEADER, *rows), folder / "f/9.png", "got 40x18")


def test_manifest_without_rows_or_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with pytest.raises(DataError, match=r"m\.csv: no rows.*Try"):
        scan_manifest(path, HEADER)
    with pytest.raises(DataError, match=r"m\.csv: no column sequence; .*Try: set data\.path"):
        scan_manifest(path, "path,frame,split")
    path.unlink()
    with pytest.raises(DataError, match=r"m\.csv: no such file"):
        scan(data_config("manifest", path))


@pytest.mark.parametrize(
    ("scene", "column", "length", "size"),
    [
        ("kitti_lead_car", "relative_velocity_mps", 78, (1242, 375)),
        ("kitti_odometry", "ego_speed_mps", 51, (1226, 370)),
    ],
)
def test_real_kitti_scene(
    real: Path, tmp_path: Path, scene: str, column: str, length: int, size: tuple[int, int]
) -> None:
    with (real / scene / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [f"{real / scene}/frames/{row['frame']},{scene},{i},train,{row[column]}" for i, row in enumerate(rows)]
    catalogue = scan_manifest(tmp_path / "kitti.csv", f"{HEADER},{column}", *lines)
    assert catalogue.faults == ()
    (clip,) = catalogue.clips
    assert (clip.sequence.length, clip.sequence.size) == (length, size)
    assert [label.targets[column] for label in clip.sequence.labels] == [float(row[column]) for row in rows]
    (image,) = clip.source.read(length - 1, length)
    assert image.shape == (size[1], size[0], 3)
