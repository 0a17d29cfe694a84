"""The video layout, with real videos written by cv2."""

from __future__ import annotations

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from features._common.types import Image
from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.datasets.video import Video, split_of

FORMATS = [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "mp4v")]


def write(
    path: Path, frames: int = 30, code: str = "mp4v", size: tuple[int, int] = (64, 48), fps: float = 12.0
) -> Path:
    """A video whose frame i has the grey 8·i, so that a frame's mean says its number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, size)  # type: ignore[attr-defined]
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 8 * i, np.uint8))
    writer.release()
    return path


def speeds(path: Path, count: int = 30) -> Path:
    path.write_text("".join(f"{i / 10}\n" for i in range(count)))
    return path


def videos(path: Path, **more: Any) -> Catalogue:
    return scan(DataConfig(layout="video", path=str(path), **more), threads=2)


def number(image: Image) -> int:
    return round(float(image.mean()) / 8)


def only_fault(catalogue: Catalogue, path: Path, *parts: str) -> None:
    assert len(catalogue.faults) == 1 and not catalogue.clips, catalogue.faults
    (line,) = catalogue.faults
    assert line.startswith(str(path)) and "\n" not in line and "Try" not in line, line
    for part in parts:
        assert part in line, line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train.mp4 and train.txt, as in comma.ai's speed challenge."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write(folder / "train.mp4")
    speeds(folder / "train.txt")
    return folder


@pytest.mark.parametrize(("name", "code"), FORMATS)
def test_frames_labels_and_rate(tmp_path: Path, name: str, code: str) -> None:
    file = write(tmp_path / name, code=code)
    speeds(tmp_path / "a.txt")
    (tmp_path / "notes.md").write_text("no video")
    for path in (file, tmp_path):
        found = videos(path)
        assert found.faults == ()
        (one,) = found.clips
        s = one.sequence
        assert (s.id, s.split, s.length, s.fps, s.size) == ("a", "train", 30, 12.0, (64, 48))
        assert s.digest == hashlib.sha256(file.read_bytes()).hexdigest()
        assert [(x.frame, x.targets["ego_speed"]) for x in s.labels] == [(i, i / 10) for i in range(30)]
        assert not one.source.parallel
        images = list(one.source.read(0, 30))
        assert [number(im) for im in images] == list(range(30))
        assert images[0].shape == (48, 64, 3) and images[0].dtype == np.uint8


def test_segments_cut_frames_and_labels(folder: Path) -> None:
    found = videos(folder, segment=12)
    sequences = [c.sequence for c in found.clips]
    assert [s.id for s in sequences] == ["train/00000-00011", "train/00012-00023", "train/00024-00029"]
    assert [s.length for s in sequences] == [12, 12, 6] and len({s.digest for s in sequences}) == 3
    assert [(x.frame, x.targets["ego_speed"]) for x in sequences[1].labels] == [(i, (12 + i) / 10) for i in range(12)]
    assert [s.digest for s in sequences] == [c.sequence.digest for c in videos(folder, segment=12).clips]
    for start, one in zip((0, 12, 24), found.clips, strict=True):
        assert [number(im) for im in one.source.read(0, one.sequence.length)] == list(
            range(start, start + one.sequence.length)
        )


def test_any_order_gives_the_exact_frames(folder: Path) -> None:
    one, two, three = (c.source for c in videos(folder, segment=12).clips)
    assert [number(im) for im in three.read(2, 5)] == [26, 27, 28]
    assert [number(im) for im in one.read(3, 5)] == [3, 4]
    assert [number(im) for im in one.read(5, 7)] == [5, 6]
    a, b = one.read(0, 3), two.read(0, 3)  # two readers in turn share the capture
    assert [number(next(x)) for x in (a, b, a, b, a, b)] == [0, 12, 1, 13, 2, 14]


def test_threads_share_a_video_safely(folder: Path) -> None:
    clips = videos(folder, segment=5).clips
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda c: [number(im) for im in c.source.read(0, 5)], clips * 2))
    assert read == [list(range(i, i + 5)) for i in range(0, 30, 5)] * 2


def test_going_on_where_the_last_call_stopped_opens_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = videos(folder, segment=12).clips
    opened = []
    begin = Video._begin
    monkeypatch.setattr(Video, "_begin", lambda self: opened.append(1) or begin(self))
    for one in clips:
        for start in range(0, one.sequence.length, 4):
            list(one.source.read(start, min(start + 4, one.sequence.length)))
    assert len(opened) == 1


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("train", "train"),
        ("2024-03-01", "train"),
        ("val_3", "validation"),
        ("Validation", "validation"),
        ("test", "test"),
    ],
)
def test_the_stem_says_the_split(stem: str, split: str) -> None:
    assert split_of(stem) == split


def test_a_test_video_may_lack_labels_and_no_other(folder: Path) -> None:
    write(folder / "test.mp4", 5)
    found = videos(folder)
    assert found.faults == () and [c.sequence.id for c in found.clips] == ["test", "train"]
    assert found.clips[0].sequence.labels == ()
    (folder / "train.txt").unlink()
    only_fault(
        videos(folder / "train.mp4"), folder / "train.mp4", "no labels; expected train.txt or train.csv beside it"
    )


def test_table_labels(folder: Path) -> None:
    (folder / "train.txt").unlink()
    table = folder / "train.csv"
    table.write_text("ego_speed,yaw\n" + "".join(f"{i},\n" for i in range(29)) + ",0.5\n")
    labels = videos(folder).clips[0].sequence.labels
    assert [x.frame for x in labels] == list(range(30)) and labels[29].targets["yaw"] == 0.5
    assert labels[3].targets["ego_speed"] == 3 and math.isnan(labels[3].targets["yaw"])
    table.write_text("frame,vx,vy,left,top,right,bottom\n7,1,2,3,4,5,6\n2,0,0,,,,\n7,3,4,,,,\n")
    first, second, third = videos(folder).clips[0].sequence.labels
    assert (first.frame, second.frame, third.frame) == (2, 7, 7)
    assert second.targets == {"vx": 1, "vy": 2} and second.box == (3, 4, 5, 6)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("train.txt", "1\n" * 29, ": 29 labels for 30 frames; expected 30 labels; got 29"),
        ("train.txt", "1\n" * 31, ": 31 labels for 30 frames"),
        ("train.txt", "", ": 0 labels for 30 frames"),
        ("train.txt", "fast\n" + "1\n" * 28 + "nan\n", ", line 1: no number; expected a finite number; got 'fast'"),
        ("train.csv", "ego_speed\n" + "1\n" * 29, ": 29 labels for 30 frames"),
        ("train.csv", "ego_speed\n" + "1\n" * 29 + "x\n", ", line 31: ego_speed is no number"),
        ("train.csv", "frame,ego_speed\n30,1\n", ", line 2: no such frame; expected 0 … 29; got '30'"),
        ("train.csv", "frame,ego_speed\n1.5,1\n", ", line 2: no such frame"),
        ("train.csv", "frame,ego_speed\n,1\n", ", line 2: no such frame; expected 0 … 29; got ''"),
        ("train.csv", "ego_speed,ego_speed\n", ": bad header"),
    ],
)  # fmt: skip
def test_faulty_labels_are_named(folder: Path, name: str, text: str, what: str) -> None:
    (folder / "train.txt").unlink()
    (folder / name).write_text(text)
    only_fault(videos(folder), folder / name, what)


def test_labels_that_are_no_text(folder: Path) -> None:
    (folder / "train.txt").write_bytes(b"\xff\xfe1")
    only_fault(videos(folder), folder / "train.txt", "no text")


def test_two_label_files(folder: Path) -> None:
    (folder / "train.csv").write_text("ego_speed\n")
    only_fault(videos(folder), folder / "train.mp4", "two label files; expected one; got train.txt and train.csv")


def test_two_videos_of_one_name(folder: Path) -> None:
    write(folder / "train.avi", code="MJPG")
    found = videos(folder)
    assert len(found.clips) == 1 and len(found.faults) == 1
    assert found.faults[0].startswith(f"{folder}/train.mp4: two videos named train")


@pytest.mark.parametrize("data", [b"", b"no video" * 100])
def test_a_file_cv2_cannot_open_is_named(folder: Path, data: bytes) -> None:
    (folder / "train.mp4").write_bytes(data)
    only_fault(videos(folder), folder / "train.mp4", "not a video cv2 can open")


def test_half_a_video(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "train.mp4").read_bytes()
    (folder / "train.mp4").write_bytes(whole[: len(whole) // 2])  # the index is at the end
    only_fault(videos(folder), folder / "train.mp4", "not a video")
    file = write(tmp_path / "b.avi", code="MJPG")
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 4 // 5])
    speeds(tmp_path / "b.txt")
    # the header still says 30: what can be read is counted
    (line,) = videos(file).faults
    frames = int(line.split(" labels for ")[1].split(" ")[0])
    assert line.startswith(f"{tmp_path}/b.txt: 30 labels for") and 1 < frames < 30
    speeds(tmp_path / "b.txt", frames)
    assert [number(im) for im in videos(file).clips[0].source.read(0, frames)] == list(range(frames))


def test_a_video_that_shrinks_after_the_scan_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = videos(folder).clips[0].source
    write(folder / "train.mp4", 10)
    with pytest.raises(DataError, match=r"train\.mp4: ends early; expected 30 frames; got none at 10"):
        list(source.read(0, 30))
    opened = []
    begin = Video._begin
    monkeypatch.setattr(Video, "_begin", lambda self: opened.append(1) or begin(self))
    for start in range(10, 30, 5):  # what lies behind the end is known to be gone
        with pytest.raises(DataError, match=r"got none at 10"):
            list(source.read(start, start + 5))
    assert opened == [] and number(next(source.read(9, 10))) == 9
    write(folder / "train.mp4", size=(80, 48))
    with pytest.raises(DataError, match=r"train\.mp4: frame 0 has another size; expected 64x48; got 80x48"):
        list(source.read(0, 30))


def test_a_stream_without_a_header_is_counted(tmp_path: Path) -> None:
    """A bare stream, as comma.ai's cameras write it, says neither its length nor its rate."""
    file = tmp_path / "test.mjpeg"
    images = [np.full((48, 64, 3), 8 * i, np.uint8) for i in range(30)]
    file.write_bytes(b"".join(bytes(cv2.imencode(".jpg", image)[1]) for image in images))
    assert not 1 <= cv2.VideoCapture(str(file), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) < 2**31
    (one,) = videos(file).clips
    assert one.sequence.length == 30
    assert [number(im) for im in one.source.read(0, 30)] == list(range(30))


def test_no_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such video or folder\. Try"):
        videos(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no videos; expected files ending in .*\.mp4.*Try"):
        videos(tmp_path)
