"""Layouts of frame files: competition, sample, tusimple and manifest, from real folders and real zips."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.annotation_json import vehicle_labels
from stage1_extract.datasets.archive import list_folder, natural_sort_key, open_folder_or_zip, read_file
from stage1_extract.datasets.clip import Catalogue

VEHICLE = {"velocity": [-1.5, 0.25], "bbox": {"left": 1, "top": 2, "right": 9, "bottom": 7}, "position": [20.0, -1.5]}
SECOND = {"velocity": [3.0, 0.0], "bbox": {"left": 11, "top": 2, "right": 19, "bottom": 7}}
WHOLE = ["001.jpg", "002.jpg", "003.jpg"]


def image(seed: int, size: tuple[int, int] = (32, 18), suffix: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return bytes(cv2.imencode(suffix, pixels)[1])


def clip(folder: Path, annotation: object = (VEHICLE,), frames: int = 3) -> Path:
    (folder / "imgs").mkdir(parents=True)
    for i in range(1, frames + 1):
        (folder / f"imgs/{i:03d}.jpg").write_bytes(image(sum(folder.name.encode()) * 100 + i))
    if annotation is not None:
        (folder / "annotation.json").write_text(json.dumps(annotation))
    return folder


def zipped(folder: Path, at: Path) -> Path:
    with zipfile.ZipFile(at, "w", zipfile.ZIP_DEFLATED) as file:
        for p in sorted(folder.rglob("*")):
            file.write(p, p.relative_to(folder).as_posix())
    return at


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Train 1, 2, 10, Validation 1, Test 1, in the competition's layout."""
    root = tmp_path / "data"
    for name in ("1", "2", "10"):
        clip(root / f"Train/Train/{name}")
    clip(root / "Validation/Validation/1")
    clip(root / "Test/Test/1", [{"bbox": VEHICLE["bbox"]}])
    return root


def competition(path: Path, **more: Any) -> Catalogue:
    return scan(DataConfig(layout="competition", path=str(path), **more), threads=2)


def only_fault(catalogue: Catalogue, path: Path | str, *parts: str) -> None:
    """One fault, on one line, that begins with the path and says every part, and no mend."""
    assert len(catalogue.faults) == 1, catalogue.faults
    (line,) = catalogue.faults
    assert line.startswith(str(path)) and "\n" not in line and "Try" not in line, line
    for part in parts:
        assert part in line, line


# --- competition ------------------------------------------------------------------------------------------------


def test_clips_in_numeric_order_with_their_labels(root: Path) -> None:
    found = competition(root, fps=10)
    assert found.faults == ()
    sequences = [c.sequence for c in found.clips]
    assert [s.id for s in sequences] == ["Train/1", "Train/2", "Train/10", "Validation/1", "Test/1"]
    assert [s.split for s in sequences] == ["train"] * 3 + ["validation", "test"]
    first = sequences[0]
    assert (first.length, first.fps, first.size) == (3, 10.0, (32, 18))
    (label,) = first.labels
    assert label.frame == 2 and label.targets == {"vx": -1.5, "vy": 0.25}
    assert label.box == (1, 2, 9, 7) and label.position == (20.0, -1.5)
    (asked,) = sequences[-1].labels
    assert asked.box == (1, 2, 9, 7) and all(math.isnan(v) for v in asked.targets.values())
    assert list(asked.targets) == ["vx", "vy"]


def test_frames_are_read_by_any_thread_in_any_order(root: Path) -> None:
    for path in (root, zipped(root, root.parent / "data.zip")):
        source = competition(path).clips[0].source
        assert source.parallel
        want = [cv2.imread(str(root / f"Train/Train/1/imgs/{i:03d}.jpg")) for i in (1, 2, 3)]
        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(lambda i, s=source: list(s.read(i % 3, 3)), range(60)))
        for i, part in enumerate(parts):
            assert all(np.array_equal(a, b) for a, b in zip(part, want[i % 3 :], strict=True))


def test_zip_and_folder_and_every_accepted_root_are_one_data_set(root: Path, tmp_path: Path) -> None:
    want = [c.sequence for c in competition(root).clips]
    flat = tmp_path / "flat"
    for name in ("Train", "Validation", "Test"):
        shutil.copytree(root / name / name, flat / name)
    above = tmp_path / "above"
    shutil.copytree(root, above / "data")
    (above / "__MACOSX/Train").mkdir(parents=True)
    for path in (flat, above, zipped(root, tmp_path / "a.zip"), zipped(above, tmp_path / "b.zip")):
        assert [repr(c.sequence) for c in competition(path).clips] == [repr(s) for s in want], path
    assert [c.sequence.id for c in competition(root / "Train").clips] == ["Train/1", "Train/2", "Train/10"]


def test_the_digest_follows_contents_and_order_and_not_labels(root: Path) -> None:
    digest = competition(root).clips[0].sequence.digest
    imgs = root / "Train/Train/1/imgs"
    one, two = ((imgs / n).read_bytes() for n in WHOLE[:2])
    files = [hashlib.sha256((imgs / n).read_bytes()).digest() for n in WHOLE]
    assert digest == hashlib.sha256(b"".join(files)).hexdigest()
    (imgs.parent / "annotation.json").write_text(json.dumps([SECOND]))
    assert competition(root).clips[0].sequence.digest == digest
    (imgs / "001.jpg").write_bytes(two)
    (imgs / "002.jpg").write_bytes(one)
    assert competition(root).clips[0].sequence.digest != digest


def test_asked_frames_and_label_frame(root: Path) -> None:
    found = competition(root, frames=2, label_frame=40)
    assert found.faults == ()
    assert {c.sequence.length for c in found.clips} == {2}
    assert {x.frame for c in found.clips for x in c.sequence.labels} == {39}


def test_first_vehicle_only_except_in_the_sample(root: Path) -> None:
    (root / "Train/Train/1/annotation.json").write_text(json.dumps([VEHICLE, SECOND]))
    assert [x.targets["vx"] for x in competition(root).clips[0].sequence.labels] == [-1.5]
    sample = scan(DataConfig(layout="sample", path=str(root)))
    assert [x.targets["vx"] for x in sample.clips[0].sequence.labels] == [-1.5, 3.0]
    # what the rule leaves out isn't looked at either
    (root / "Train/Train/1/annotation.json").write_text(json.dumps([VEHICLE, {"velocity": "fast"}]))
    assert competition(root).faults == ()


def test_own_speed_is_a_label_of_its_own(root: Path) -> None:
    (root / "Train/Train/1/ego.json").write_text('{"speed": 21.3}')
    vehicle, own = competition(root).clips[0].sequence.labels
    assert list(vehicle.targets) == ["vx", "vy"]
    assert (own.targets, own.frame, own.box) == ({"ego_speed": 21.3}, 2, None)


def test_a_test_clip_may_lack_its_annotation(root: Path) -> None:
    (root / "Test/Test/1/annotation.json").unlink()
    found = competition(root)
    assert found.faults == ()
    (label,) = found.clips[-1].sequence.labels
    assert label.frame == 2 and label.box is None and math.isnan(label.targets["vx"])


BAD_JSON: list[tuple[str, str]] = [
    ("{", "no JSON"),
    ("\udcff", "no JSON"),
    ("[" * 100_000, "no JSON"),
    ("[]", "got an empty list"),
    ("null", "got null"),
    ('{"velocity": [1, 2]}', "expected a list of vehicles"),
    ("[3]", "is no vehicle"),
    ('[{"bbox": null}]', "[0] has no velocity"),
    ('[{"velocity": null}]', '[0] has no velocity; expected "velocity": [vx, vy]; got null'),
    ('[{"velocity": [NaN, 1]}]', "[0].velocity is no finite number; expected a finite number; got NaN"),
    ('[{"velocity": [1, -Infinity]}]', "got -Infinity"),
    ('[{"velocity": ["1.0", 1]}]', 'got "1.0"'),
    ('[{"velocity": [true, 1]}]', "got true"),
    ('[{"velocity": [1' + "0" * 400 + ", 1]}]", "is no finite number"),
    ('[{"velocity": [1]}]', "is not 2 numbers; expected a list of 2; got [1]"),
    ('[{"velocity": [1, 2, 3]}]', "is not 2 numbers"),
    ('[{"velocity": "fast"}]', "is not 2 numbers"),
    ('[{"velocity": [1, 2], "bbox": [1, 2, 3, 4]}]', "[0].bbox is no box"),
    ('[{"velocity": [1, 2], "bbox": {"left": 1, "top": 2, "right": 3}}]', "[0].bbox is no box"),
    ('[{"velocity": [1, 2], "bbox": {"left": 3, "top": 2, "right": 3, "bottom": 4}}]', "left < right"),
    ('[{"velocity": [1, 2], "bbox": {"left": "3", "top": 2, "right": 3, "bottom": 4}}]', 'got "3"'),
    ('[{"velocity": [1, 2], "position": [1]}]', "[0].position is not 2 numbers"),
]


@pytest.mark.parametrize(("text", "what"), BAD_JSON)
def test_a_faulty_annotation_is_named_and_the_rest_goes_on(root: Path, text: str, what: str) -> None:
    file = root / "Train/Train/2/annotation.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    found = competition(root)
    only_fault(found, file, what)
    assert [c.sequence.id for c in found.clips] == ["Train/1", "Train/10", "Validation/1", "Test/1"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(SCALARS, lambda s: st.lists(s, max_size=4) | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("velocity", "bbox", "position", "left", "top", "right", "bottom"), s)
))  # fmt: skip


@given(VALUES, st.booleans())
def test_any_json_gives_finite_labels_or_faults(value: object, known: bool) -> None:
    faults: list[str] = []
    labels = vehicle_labels(value, "a.json", 3, known=known, every=True, faults=faults)
    assert all(line.startswith("a.json: ") and "\n" not in line for line in faults)
    if not faults:
        assert isinstance(value, list) and len(labels) == len(value)
        numbers = [n for x in labels for n in (*(x.box or ()), *(x.position or ()))]
        assert all(map(math.isfinite, numbers))
        assert not known or all(x.known(("vx", "vy")) for x in labels)


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"speed": "fast"}', '{"speed": NaN}', '{"speed": true}'])
def test_a_faulty_own_speed_is_named(root: Path, text: str) -> None:
    file = root / "Train/Train/2/ego.json"
    file.write_text(text)
    only_fault(competition(root), file)


def test_a_test_clip_s_velocity_must_be_right_where_given(root: Path) -> None:
    file = root / "Test/Test/1/annotation.json"
    file.write_text('[{"velocity": [NaN, 1]}]')
    only_fault(competition(root), file, "velocity is no finite number")


def test_a_missing_annotation_is_named(root: Path) -> None:
    file = root / "Validation/Validation/1/annotation.json"
    file.unlink()
    only_fault(competition(root), file, "missing annotation", "no such file")


def drop(*names: str) -> Callable[[Path], object]:
    return lambda imgs: [(imgs / n).unlink() for n in names]


def put(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda imgs: (imgs / name).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "frames", "file", "what"),
    [
        (drop("003.jpg"), 3, "", "2 frames where 3 are asked; expected 3 frames; got 2"),
        (drop("002.jpg"), 3, "/002.jpg", "missing frame"),
        (drop("002.jpg"), None, "/002.jpg", "missing frame"),
        (drop("001.jpg"), None, "/001.jpg", "missing frame"),
        (drop(*WHOLE), None, "", "no frames; expected 001.jpg …"),
        (drop(*WHOLE), 3, "", "0 frames where 3 are asked"),
        (put("000.jpg", b""), None, "/000.jpg", "expected frames numbered from 001"),
        (put("2.png", b""), None, "/2.png", "two files for frame 2; expected one; got 002.jpg and 2.png"),
        (put("002.jpg", b""), None, "/002.jpg", "empty file"),
        (put("002.jpg", b"no image"), None, "/002.jpg", "not an image"),
        (put("002.jpg", image(1)[:-40]), None, "/002.jpg", "truncated JPEG"),
        (put("002.jpg", image(1, (30, 18))), None, "/002.jpg", "expected 32x18 as the sequence's others; got 30x18"),
        (put("001.jpg", image(1, (30, 18))), None, "/001.jpg", "expected 32x18 as the sequence's others; got 30x18"),
        (shutil.rmtree, None, "/..", "expected a folder imgs with 001.jpg …"),
    ],
)
def test_a_faulty_frame_is_named(
    root: Path, harm: Callable[[Path], object], frames: int | None, file: str, what: str
) -> None:
    imgs = root / "Train/Train/10/imgs"
    harm(imgs)
    found = competition(root, frames=frames)
    only_fault(found, imgs.parent if file == "/.." else f"{imgs}{file}", what)
    assert "Train/10" not in [c.sequence.id for c in found.clips] and len(found.clips) == 4


def test_more_frames_than_asked_are_left_alone(root: Path) -> None:
    (root / "Train/Train/1/imgs/003.jpg").write_bytes(b"never looked at")
    found = competition(root, frames=2)
    assert found.faults == () and found.clips[0].sequence.length == 2


def test_one_pass_names_every_fault_of_every_clip(root: Path) -> None:
    (root / "Train/Train/1/imgs/002.jpg").unlink()
    (root / "Train/Train/1/imgs/003.jpg").write_bytes(b"")
    (root / "Train/Train/1/annotation.json").write_text('[{"velocity": ["a", "b"]}]')
    (root / "Test/Test/1/imgs/001.jpg").write_bytes(b"x")
    found = competition(root)
    assert [line.split(": ")[0].removeprefix(f"{root}/") for line in found.faults] == [
        "Train/Train/1/imgs/002.jpg",
        "Train/Train/1/annotation.json",
        "Train/Train/1/annotation.json",
        "Train/Train/1/imgs/003.jpg",
        "Test/Test/1/imgs/001.jpg",
    ]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_frame_is_named(root: Path) -> None:
    file = root / "Train/Train/1/imgs/002.jpg"
    file.chmod(0)
    only_fault(competition(root), file, "Permission denied")


def test_a_folder_in_the_place_of_a_frame_is_named(root: Path) -> None:
    file = root / "Train/Train/1/imgs/002.jpg"
    file.unlink()
    file.mkdir()
    only_fault(competition(root), file, "cannot be read; got Is a directory")


def test_a_frame_that_changes_after_the_scan_is_named(root: Path) -> None:
    source = competition(root).clips[0].source
    file = root / "Train/Train/1/imgs/002.jpg"
    for data, what in (
        (image(0, (30, 18)), "changed since it was scanned"),
        (b"", "changed since it was scanned"),
        (None, "no such"),
    ):
        file.unlink()
        if data is not None:
            file.write_bytes(data)
        frames = source.read(0, 3)
        assert next(frames).shape == (18, 32, 3)
        with pytest.raises(DataError, match=f"002.jpg: .*{what}"):
            next(frames)


# --- what makes a scan impossible -------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder or \.zip\. Try: set data\.path"):
        competition(tmp_path / "nowhere")
    with pytest.raises(DataError, match="Try: make sample"):
        scan(DataConfig(layout="sample", path=str(tmp_path / "nowhere")))


def test_no_data_set_in_the_folder(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty/Photos").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty: no data set; expected a folder Train.*got Photos.*Try"):
        competition(tmp_path / "empty")
    shutil.copytree(root, tmp_path / "empty/other")
    shutil.copytree(root, tmp_path / "empty/more")
    with pytest.raises(DataError, match="several data sets: more, other"):
        competition(tmp_path / "empty")
    (tmp_path / "bare/Train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bare: no clips.*Try"):
        competition(tmp_path / "bare")


def test_not_a_zip_or_half_of_one(root: Path, tmp_path: Path) -> None:
    whole = zipped(root, tmp_path / "whole.zip").read_bytes()
    for data in (b"", b"not a zip", whole[: len(whole) // 2], whole[len(whole) // 2 :][:-30]):
        file = tmp_path / "bad.zip"
        file.write_bytes(data)
        with pytest.raises(DataError, match=r"bad\.zip: not a zip archive, or truncated.*Try"):
            competition(file)


@pytest.mark.parametrize(
    "entry", ["../evil.jpg", "Train/../../evil.jpg", "/etc/evil", "C:/evil", "c:evil", "Train\\evil", "a//b", "./a"]
)
def test_a_zip_entry_that_points_outside_is_refused(root: Path, tmp_path: Path, entry: str) -> None:
    file = zipped(root, tmp_path / "evil.zip")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(entry, "x")
    with pytest.raises(DataError) as caught:
        competition(file)
    assert str(caught.value).startswith(f"{file}: unsafe entry {entry!r}") and "Try" in str(caught.value)


def test_a_damaged_zip_entry_is_named(root: Path, tmp_path: Path) -> None:
    file = zipped(root, tmp_path / "data.zip")
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("Train/Train/2/imgs/002.jpg")
    data = bytearray(file.read_bytes())
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    data[middle : middle + 4] = bytes(b ^ 0xFF for b in data[middle : middle + 4])
    file.write_bytes(data)
    only_fault(competition(file), f"{file}/Train/Train/2/imgs/002.jpg", "damaged or unreadable zip entry")


def test_an_encrypted_zip_entry_is_named(root: Path, tmp_path: Path) -> None:
    file = zipped(root, tmp_path / "data.zip")
    data = bytearray(file.read_bytes())
    name = b"Train/Train/2/imgs/002.jpg"
    data[data.find(name) - 30 + 6] |= 1  # the local header's flag, and the central directory's
    data[data.rfind(name) - 46 + 8] |= 1
    file.write_bytes(data)
    only_fault(competition(file), f"{file}/{name.decode()}", "encrypted")


def test_places(tmp_path: Path) -> None:
    (tmp_path / "a/imgs").mkdir(parents=True)
    for name in ("10.txt", "9.txt", ".hidden"):
        (tmp_path / "a/imgs" / name).write_text(name)
    for place in (
        open_folder_or_zip(tmp_path / "a", hint=""),
        open_folder_or_zip(zipped(tmp_path / "a", tmp_path / "a.zip"), hint=""),
    ):
        (imgs,) = list_folder(place)
        assert (imgs.name, imgs.is_dir(), imgs.is_file()) == ("imgs", True, False)
        assert [read_file(p) for p in list_folder(imgs)] == [b"9.txt", b"10.txt"]
        with pytest.raises(DataError, match="imgs/no: no such file"):
            read_file(imgs.joinpath("no"))
    assert sorted(["10", "9", "a2", "a10", "a"], key=natural_sort_key) == ["9", "10", "a", "a2", "a10"]


# --- tusimple ---------------------------------------------------------------------------------------------------


def tusimple(path: Path) -> Catalogue:
    return scan(DataConfig(layout="tusimple", path=str(path)))


def test_tusimple_labels_every_vehicle(tmp_path: Path) -> None:
    clip(tmp_path / "clips/2", [VEHICLE, SECOND])
    clip(tmp_path / "clips/10")
    found = tusimple(tmp_path)
    assert [(c.sequence.id, c.sequence.split) for c in found.clips] == [("clips/2", "train"), ("clips/10", "train")]
    assert [x.targets["vx"] for x in found.clips[0].sequence.labels] == [-1.5, 3.0]


def test_tusimple_splits_and_answers(tmp_path: Path) -> None:
    clip(tmp_path / "train/clips/1")
    for name in ("2", "10"):
        box = VEHICLE if name == "2" else SECOND
        clip(tmp_path / "test/clips" / name, [{"bbox": box["bbox"]}])
    found = tusimple(tmp_path)
    assert found.faults == ()
    assert [c.sequence.id for c in found.clips] == ["test/clips/2", "test/clips/10", "train/clips/1"]
    assert [c.sequence.split for c in found.clips] == ["test", "test", "train"]
    assert math.isnan(found.clips[0].sequence.labels[0].targets["vx"])
    (tmp_path / "test/gt.json").write_text(json.dumps([[VEHICLE], [SECOND]]))
    found = tusimple(tmp_path)
    assert found.faults == ()
    assert [x.targets["vx"] for c in found.clips[:2] for x in c.sequence.labels] == [-1.5, 3.0]
    # the folder's own name says the split where it holds clips itself
    assert {c.sequence.split for c in tusimple(tmp_path / "test").clips} == {"test"}
    (tmp_path / "test/gt.json").write_text(json.dumps([[SECOND], [VEHICLE]]))
    faults = tusimple(tmp_path).faults
    assert len(faults) == 2 and all(f"{tmp_path}/test/gt.json: [{i}] belongs" in faults[i] for i in (0, 1))
    (tmp_path / "test/gt.json").write_text(json.dumps([[VEHICLE]]))
    only_fault(tusimple(tmp_path), tmp_path / "test/gt.json", "expected a list of 2; got 1")
    (tmp_path / "test/gt.json").write_text("[")
    only_fault(tusimple(tmp_path), tmp_path / "test/gt.json", "no JSON")


def test_tusimple_needs_clips(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no TuSimple data; expected clips.*Try"):
        tusimple(tmp_path)
    clip(tmp_path / "clips/1", [{"bbox": VEHICLE["bbox"]}])
    only_fault(tusimple(tmp_path), tmp_path / "clips/1/annotation.json", "[0] has no velocity")


# --- manifest ---------------------------------------------------------------------------------------------------


def write_manifest(at: Path, header: str, *rows: str) -> Catalogue:
    at.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return scan(DataConfig(layout="manifest", path=str(at), fps=7))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    (tmp_path / "f").mkdir()
    for i in range(4):
        (tmp_path / f"f/{i}.png").write_bytes(image(i, suffix=".png"))
    return tmp_path


def test_manifest_orders_frames_and_keeps_every_label(frames: Path) -> None:
    found = write_manifest(
        frames / "m.csv",
        "path,sequence,frame,split,speed,gap,left,top,right,bottom,x,y,fps",
        "f/2.png,b,10,train,,,,,,,,,12.5",
        "f/1.png,b,9,train,1.5,,1,2,3,4,20,-1,12.5",
        f"{frames}/f/0.png,a,0,validation,3,4,,,,,,,",
        "f/1.png,b,9,train,2.5,8,5,6,7,8,,,",
        "f/3.png,b,2.5,train,,,,,,,,5,".replace(",5,", ",,"),
    )
    assert found.faults == ()
    b, a = (c.sequence for c in found.clips)
    assert (b.id, b.split, b.length, b.fps, b.size) == ("b", "train", 3, 12.5, (32, 18))
    assert (a.id, a.split, a.length, a.fps) == ("a", "validation", 1, 7.0)
    assert [x.frame for x in b.labels] == [1, 1] and [x.targets["speed"] for x in b.labels] == [1.5, 2.5]
    assert math.isnan(b.labels[0].targets["gap"]) and list(b.labels[0].targets) == ["speed", "gap"]
    assert (b.labels[0].box, b.labels[0].position) == ((1, 2, 3, 4), (20, -1))
    assert (b.labels[1].box, b.labels[1].position) == ((5, 6, 7, 8), None)
    read = list(found.clips[0].source.read(0, 3))
    assert all(np.array_equal(r, cv2.imread(str(frames / f"f/{i}.png"))) for r, i in zip(read, (3, 1, 2), strict=True))


BAD_ROWS = [
    ("f/1.png,a,1,training,1,,,,,", "line 3: unknown split; expected one of train, validation, test; got 'training'"),
    ("f/1.png,a,1,test,1,,,,,", "line 3: sequence a is in two splits; expected train; got test"),
    ("f/1.png,a,one,train,1,,,,,", "line 3: frame is no number"),
    ("f/1.png,a,,train,1,,,,,", "line 3: no frame"),
    (",a,1,train,1,,,,,", "line 3: no path"),
    ("f/1.png,,1,train,1,,,,,", "line 3: no sequence"),
    ("f/1.png,a,1,train,fast,,,,,", "line 3: speed is no number; expected a finite number, or an empty cell"),
    ("f/1.png,a,1,train,nan,,,,,", "got 'nan'"),
    ("f/1.png,a,1,train,inf,,,,,", "got 'inf'"),
    ("f/1.png,a,1,train,1,0,,,,", "line 3: wrong fps; expected more than 0"),
    ("f/1.png,a,1,train,1,,1,2,3,", "line 3: incomplete"),
    ("f/1.png,a,1,train,1,,3,2,1,4", "line 3: no box"),
    ("f/1.png,a,1,train,1,,x,2,1,4", "line 3: left is no number"),
    ("f/1.png,a,0,train,1,,,,,", "line 3: frame 0 of a is there twice; expected f/0.png; got f/1.png"),
    ("f/1.png,a,1,train", "line 3: wrong number of cells; expected 10; got 4"),
]


@pytest.mark.parametrize(("row", "what"), BAD_ROWS)
def test_a_faulty_row_is_named(frames: Path, row: str, what: str) -> None:
    header = "path,sequence,frame,split,speed,fps,left,top,right,bottom"
    found = write_manifest(frames / "m.csv", header, "f/0.png,a,0,train,1,,,,,", row, "f/3.png,z,0,train,1,,,,,")
    only_fault(found, frames / "m.csv", what)
    assert "z" in [c.sequence.id for c in found.clips]


def test_fps_of_a_sequence_agree(frames: Path) -> None:
    found = write_manifest(
        frames / "m.csv", "path,sequence,frame,split,fps", "f/0.png,a,0,train,10", "f/1.png,a,1,train,20"
    )
    only_fault(found, frames / "m.csv", "line 3: wrong fps; expected 10.0, as above; got 20.0")


def test_a_missing_and_an_odd_frame_of_a_manifest_are_named(frames: Path) -> None:
    header, rows = "path,sequence,frame,split", ("f/0.png,a,0,train", "f/9.png,a,1,train")
    only_fault(write_manifest(frames / "m.csv", header, *rows), frames / "f/9.png", "no such file")
    (frames / "f/9.png").write_bytes(image(9, (40, 18)))
    only_fault(write_manifest(frames / "m.csv", header, *rows), frames / "f/9.png", "got 40x18")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "empty file"),
        (b"path,frame,split\n", "no column sequence; expected the columns path, sequence, frame, split"),
        (b"path,sequence,frame,split\n", "no rows"),
        (b"path,sequence,frame,split,a,a\n", "bad header"),
        (b"path,sequence,frame,split,\n", "bad header"),
        (b"path,sequence,frame,split\n\xff,a,0,train\n", "not a CSV file"),
        (b'path,sequence,frame,split\n"a"b,a,0,train\n', "not a CSV file"),
    ],
)
def test_a_manifest_that_cannot_be_one(tmp_path: Path, text: bytes, what: str) -> None:
    (tmp_path / "m.csv").write_bytes(text)
    with pytest.raises(DataError) as caught:
        scan(DataConfig(layout="manifest", path=str(tmp_path / "m.csv")))
    assert str(caught.value).startswith(f"{tmp_path}/m.csv: {what}") and "Try" in str(caught.value)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.csv: no such file"):
        scan(DataConfig(layout="manifest", path=str(tmp_path / "m.csv")))


# --- real material ----------------------------------------------------------------------------------------------


def test_real_competition_clip(real: Path) -> None:
    found = competition(real / "competition", frames=8, label_frame=40)
    assert found.faults == ()
    (one,) = found.clips
    assert (one.sequence.id, one.sequence.length, one.sequence.size) == ("Train/1", 8, (1280, 720))
    (label,) = one.sequence.labels
    assert label.frame == 39
    assert [label.targets["vx"], label.targets["vy"]] == [-1.2287469463, -0.0101401592]
    assert label.box == (784.6638793945, 340.3418273926, 868.1537475586, 393.3275146484)


def test_real_tusimple_clip(real: Path) -> None:
    found = tusimple(real / "tusimple")
    assert found.faults == ()
    (one,) = found.clips
    assert (one.sequence.id, one.sequence.length) == ("clips/1", 40)
    assert [x.frame for x in one.sequence.labels] == [39]
    assert [im.shape for im in one.source.read(38, 40)] == [(720, 1280, 3)] * 2


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
    lines = [
        f"{next((real / scene).rglob(row['frame']))},{scene},{i},train,{row[column]}" for i, row in enumerate(rows)
    ]
    found = write_manifest(tmp_path / "kitti.csv", f"path,sequence,frame,split,{column}", *lines)
    assert found.faults == ()
    (one,) = found.clips
    assert (one.sequence.length, one.sequence.size) == (length, size)
    assert [x.targets[column] for x in one.sequence.labels] == [float(row[column]) for row in rows]
    (image,) = one.source.read(length - 1, length)
    assert image.shape == (size[1], size[0], 3)
