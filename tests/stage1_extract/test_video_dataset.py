"""The video data set, with real videos written by OpenCV."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from features._common.types import Image
from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.datasets.single_video import read_single_clip, use_single_clip
from stage1_extract.datasets.video import UnexpectedFramesError, Video, split_of
from tests.dataset_helpers import assert_only_fault, data_config


def write_video(
    path: Path, frames: int = 30, codec: str = "mp4v", size: tuple[int, int] = (64, 48), fps: float = 12.0
) -> Path:
    """Write a video whose frame i has the grey level 8·i, so that a frame's mean tells its number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)  # type: ignore[attr-defined]
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 8 * i, np.uint8))
    writer.release()
    return path


def write_speeds(path: Path, count: int = 30) -> Path:
    path.write_text("".join(f"{i / 10}\n" for i in range(count)))
    return path


def scan_videos(path: Path, **settings: Any) -> Catalogue:
    return scan(data_config("video", path, **settings), threads=2)


def number(image: Image) -> int:
    """The number of a frame written by `write_video`."""
    return round(float(image.mean()) / 8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train.mp4 and train.txt, as in comma.ai's speed challenge."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "train.mp4")
    write_speeds(folder / "train.txt")
    return folder


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos that were opened; the test may clear it."""
    openings: list[str] = []
    open_container = av.open

    def recorded(name: str, **options: Any) -> av.container.InputContainer:
        openings.append(name)
        return open_container(name, **options)

    monkeypatch.setattr(av, "open", recorded)
    return openings


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The videos whose last frame was decoded; the test may clear it."""
    decodings: list[Path] = []
    decode = Video._decode

    def recorded(video: Video) -> Generator[av.VideoFrame, None, None]:
        yield from decode(video)
        decodings.append(video.path)

    monkeypatch.setattr(Video, "_decode", recorded)
    return decodings


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mp4", "mp4v"), ("a.mkv", "mp4v")])
def test_frames_labels_and_rate(tmp_path: Path, name: str, codec: str) -> None:
    file = write_video(tmp_path / name, codec=codec)
    write_speeds(tmp_path / "a.txt")
    (tmp_path / "notes.md").write_text("not a video")
    for path in (file, tmp_path):
        catalogue = scan_videos(path)
        assert catalogue.faults == ()
        (clip,) = catalogue.clips
        s = clip.sequence
        assert (s.id, s.split, s.length, s.fps, s.size) == ("a", "train", 30, 12.0, (64, 48))
        assert s.digest == hashlib.sha256(file.read_bytes()).hexdigest()
        assert [(x.frame, x.targets["ego_speed"]) for x in s.labels] == [(i, i / 10) for i in range(30)]
        assert not clip.source.parallel
        images = list(clip.source.read(0, 30))
        assert [number(image) for image in images] == list(range(30))
        assert images[0].shape == (48, 64, 3) and images[0].dtype == np.uint8


def test_segments_split_frames_and_labels(folder: Path) -> None:
    clips = scan_videos(folder, segment=12).clips
    sequences = [clip.sequence for clip in clips]
    assert [s.id for s in sequences] == ["train/00000-00011", "train/00012-00023", "train/00024-00029"]
    assert [s.length for s in sequences] == [12, 12, 6] and len({s.digest for s in sequences}) == 3
    assert [(x.frame, x.targets["ego_speed"]) for x in sequences[1].labels] == [(i, (12 + i) / 10) for i in range(12)]
    assert [s.digest for s in sequences] == [clip.sequence.digest for clip in scan_videos(folder, segment=12).clips]
    for start, clip in zip((0, 12, 24), clips, strict=True):
        images = list(clip.source.read(0, clip.sequence.length))
        assert [number(image) for image in images] == list(range(start, start + len(images)))


def test_frames_are_exact_in_any_order(folder: Path) -> None:
    first, second, third = (clip.source for clip in scan_videos(folder, segment=12).clips)
    assert [number(image) for image in third.read(2, 5)] == [26, 27, 28]
    assert [number(image) for image in first.read(3, 5)] == [3, 4]
    a, b = first.read(0, 3), second.read(0, 3)  # two readers in turn share one capture
    assert [number(next(reader)) for reader in (a, b, a, b, a, b)] == [0, 12, 1, 13, 2, 14]


def test_threads_share_a_video(folder: Path) -> None:
    clips = scan_videos(folder, segment=5).clips
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda clip: [number(image) for image in clip.source.read(0, 5)], clips * 2))
    assert numbers == [list(range(i, i + 5)) for i in range(0, 30, 5)] * 2


def test_reading_forwards_opens_the_video_once(folder: Path, openings: list[str]) -> None:
    clips = scan_videos(folder, segment=12).clips
    openings.clear()
    for clip in clips:
        for start in range(0, clip.sequence.length, 4):
            list(clip.source.read(start, min(start + 4, clip.sequence.length)))
    assert len(openings) == 1


def test_video_name_determines_its_split() -> None:
    expected = {"train": "train", "2024-03-01": "train", "val_3": "validation", "Validation": "validation"}
    assert {stem: split_of(stem) for stem in expected} == expected
    assert split_of("test") == "test"


def test_only_a_test_video_may_lack_labels(folder: Path) -> None:
    write_video(folder / "test.mp4", 5)
    catalogue = scan_videos(folder)
    assert catalogue.faults == () and [clip.sequence.id for clip in catalogue.clips] == ["test", "train"]
    assert catalogue.clips[0].sequence.labels == ()
    (folder / "train.txt").unlink()
    path = folder / "train.mp4"
    assert_only_fault(scan_videos(path), path, "no labels; ", "expected train.txt or train.csv beside it")


def test_empty_line_among_speeds_is_unknown(folder: Path) -> None:
    (folder / "train.txt").write_text("0.5\n\n" + "1\n" * 28)
    (clip,) = scan_videos(folder).clips
    assert [label.frame for label in clip.sequence.labels] == [0, *range(2, 30)]


def test_labels_in_a_table(folder: Path) -> None:
    (folder / "train.txt").unlink()
    table = folder / "train.csv"
    table.write_text("ego_speed,yaw\n" + "".join(f"{i},\n" for i in range(29)) + ",0.5\n")
    labels = scan_videos(folder).clips[0].sequence.labels
    assert [label.frame for label in labels] == list(range(30)) and labels[29].targets["yaw"] == 0.5
    assert labels[3].targets["ego_speed"] == 3 and math.isnan(labels[3].targets["yaw"])
    table.write_text("frame,vx,vy,left,top,right,bottom\n7,1,2,3,4,5,6\n2,0,0,,,,\n7,3,4,,,,\n")
    first, second, third = scan_videos(folder).clips[0].sequence.labels
    assert (first.frame, second.frame, third.frame) == (2, 7, 7)
    assert second.targets == {"vx": 1, "vy": 2} and second.box == (3, 4, 5, 6)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train.txt", b"1\n" * 29, ": 29 labels for 30 frames; expected 30 labels; got 29"),
        ("train.txt", b"1\n" * 31, ": 31 labels for 30 frames"),
        ("train.txt", b"", ": 0 labels for 30 frames"),
        ("train.txt", b"fast\n" + b"1\n" * 29, ", line 1: ego_speed is not a number"),
        ("train.txt", b"1\n" * 29 + b"nan\n", ", line 30: ego_speed is not a number"),
        ("train.txt", b"\xff\xfe1", ": not text"),
        ("train.csv", b"ego_speed\n" + b"1\n" * 29, ": 29 labels for 30 frames"),
        ("train.csv", b"ego_speed\n" + b"1\n" * 29 + b"x\n", ", line 31: ego_speed is not a number"),
        ("train.csv", b"frame,ego_speed\n30,1\n", ", line 2: no such frame; expected 0 … 29; got '30'"),
        ("train.csv", b"frame,ego_speed\n1.5,1\n", ", line 2: no such frame"),
        ("train.csv", b"frame,ego_speed\n,1\n", ", line 2: no such frame; expected 0 … 29; got ''"),
        ("train.csv", b"ego_speed,ego_speed\n", ": bad header"),
    ],
)  # fmt: skip
def test_wrong_labels_are_a_fault(folder: Path, name: str, data: bytes, message: str) -> None:
    (folder / "train.txt").unlink()
    (folder / name).write_bytes(data)
    catalogue = scan_videos(folder)
    assert_only_fault(catalogue, folder / name, message)
    assert not catalogue.clips


def test_two_label_files_are_a_fault(folder: Path) -> None:
    (folder / "train.csv").write_text("ego_speed\n")
    message = "two label files; expected one; got train.txt and train.csv"
    assert_only_fault(scan_videos(folder), folder / "train.mp4", message)


def test_second_video_of_the_same_name_is_a_fault(folder: Path) -> None:
    write_video(folder / "train.avi", codec="MJPG")
    catalogue = scan_videos(folder)
    assert len(catalogue.clips) == 1
    assert_only_fault(catalogue, f"{folder}/train.mp4: two videos named train")


@pytest.mark.parametrize("part", [0.0, 0.5])  # an mp4's index is at its end
def test_incomplete_video_is_a_fault(folder: Path, part: float) -> None:
    path = folder / "train.mp4"
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert_only_fault(scan_videos(folder), path, "not a video that FFmpeg can decode")


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_truncated_video_is_a_fault(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"b{suffix}"
    with av.open(str(path), "w", options={"movflags": "faststart"} if suffix == ".mp4" else {}) as container:
        stream = container.add_stream("mjpeg", 12, width=64, height=48, pix_fmt="yuvj420p")
        for i in range(30):
            image = np.full((48, 64, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(stream.encode(None))
    write_speeds(tmp_path / "b.txt")
    assert scan_videos(path).clips[0].sequence.length == 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])  # its header still says 30 frames
    assert_only_fault(scan_videos(path), path, "expected a complete video")


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mkv"), ("libvpx-vp9", ".webm"), ("ffv1", ".mkv")])
def test_video_that_breaks_off_is_read_as_far_as_it_goes_if_allowed(
    tmp_path: Path, codec: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"test{suffix}"
    write_timed(path, np.arange(60) / 20, codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match=r"ends early.*allow_truncated true to use it"):
        Video(path)
    video = Video(path, allow_truncated=True)
    assert 5 < video.length < 50
    assert capsys.readouterr().err.count("It is read as far as it goes") == 1
    assert len([video.frame(i) for i in range(video.length)]) == video.length
    clips = scan(data_config("video", path, allow_truncated=True)).clips
    assert clips[0].sequence.length == video.length


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", ".mp4"), ("libx264", ".mkv"), ("libx264", ".ts")])
@pytest.mark.parametrize("kind", ["even", "variable", "offset"])
def test_times_are_the_timestamps(tmp_path: Path, codec: str, suffix: str, kind: str) -> None:
    times = np.arange(60) / 20 + 3.7 * (kind == "offset")
    if kind == "variable":
        times = np.r_[times[:30], 1.5 + np.arange(30) / 10]
    write_timed(tmp_path / f"t{suffix}", times, codec)
    video = Video(tmp_path / f"t{suffix}")
    assert (video.facts.times is None) == (kind != "variable")
    found = np.arange(60) / 20 if video.facts.times is None else np.array(video.facts.times)
    np.testing.assert_allclose(found, times - times[0], atol=1e-3)
    with av.open(str(tmp_path / f"t{suffix}")) as container:
        stamps = np.array([frame.time for frame in container.decode(video=0)])
    np.testing.assert_allclose(found, stamps - stamps[0], atol=1e-3)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("mpeg4", ".mp4"), ("libx264", ".mp4"), ("libx264", ".ts"), ("libvpx-vp9", ".webm")]
)
@pytest.mark.parametrize("kind", ["even", "variable", "offset"])
def test_packets_tell_what_decoding_tells(
    tmp_path: Path, codec: str, suffix: str, kind: str, decodings: list[Path]
) -> None:
    times = np.arange(40) / 20 + 3.7 * (kind == "offset")
    if kind == "variable":
        times[20:] += np.arange(20) / 10
    path = tmp_path / f"t{suffix}"
    write_timed(path, times, codec)
    decoded, announced = Video(path), Video(path, by_packets=True)
    assert announced.facts == decoded.facts
    assert all(np.array_equal(announced.frame(i), decoded.frame(i)) for i in range(40))
    decodings.clear()
    clip = use_single_clip(path, DataConfig(), None, lambda clip: list(clip.source.read(0, 40)) and clip)
    assert clip.sequence.length == 40
    assert decodings == [path]


def test_packet_without_a_frame_is_noticed_while_decoding(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "t.mp4"
    write_timed(whole, np.arange(15) / 20, "mpeg4")
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(p for p in source.demux(video=0) if p.size):
            data = bytearray(packet)
            if i == 10:
                # after the start code and the type: 0, 1, ten bits of time, 1, and whether the picture is coded
                data[5] &= 0b11111110
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.duration, copy.is_keyframe, copy.stream = packet.duration, packet.is_keyframe, stream
            target.mux(copy)
    lengths = []

    def use(clip: Clip) -> int:
        lengths.append(clip.sequence.length)
        return len(list(clip.source.read(0, clip.sequence.length)))

    assert use_single_clip(path, DataConfig(), None, use) == 14
    assert lengths == [15, 14]
    whole.unlink()
    (announced,) = scan(folder_of_videos(tmp_path), need_labels=False, by_packets=True).clips
    with pytest.raises(UnexpectedFramesError):
        all_frames(announced)


def folder_of_videos(path: Path) -> DataConfig:
    return DataConfig(layout="video", path=str(path))


def test_videos_of_a_folder_are_decoded_once(tmp_path: Path, decodings: list[Path]) -> None:
    files = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for file in files:
        write_timed(file, np.arange(12) / 20, "mpeg4")
    scanned = scan(folder_of_videos(tmp_path), need_labels=False).clips
    decodings.clear()
    announced = scan(folder_of_videos(tmp_path), need_labels=False, by_packets=True).clips
    assert [c.sequence for c in announced] == [c.sequence for c in scanned]
    assert [len(list(c.source.read(0, c.sequence.length))) for c in announced] == [12, 12]
    assert sorted(decodings) == files


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_damage_is_reported_as_if_all_frames_had_been_counted(
    tmp_path: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.mkv"
    write_timed(path, np.arange(40) / 20, codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    results = []
    ways = partial(read_single_clip, path, fps=None), partial(use_single_clip, path, fps=None, use=all_frames)
    for open_clip in ways:
        with pytest.raises(DataError, match="--allow-truncated") as caught:
            open_clip(DataConfig())
        results.append((str(caught.value), open_clip(DataConfig(allow_truncated=True)).sequence.length))
    assert results[0] == results[1]
    assert capsys.readouterr().err.count("It is read as far as it goes") == 2


def all_frames(clip: Clip) -> Clip:
    """The clip, after its frames have been read."""
    assert len(list(clip.source.read(0, clip.sequence.length))) == clip.sequence.length
    return clip


def test_segments_of_a_variable_rate_video_keep_its_times(tmp_path: Path) -> None:
    times = np.r_[np.arange(30) / 20, 1.5 + np.arange(30) / 10]
    write_timed(tmp_path / "test.mkv", times, "libx264")
    clips = scan(data_config("video", tmp_path, segment=20)).clips
    spacing = [np.diff(clip.sequence.frame_times) for clip in clips]
    np.testing.assert_allclose(np.concatenate(spacing), np.diff(times)[np.arange(59) % 20 != 19], atol=1e-3)


def write_timed(path: Path, times: np.ndarray, codec: str) -> None:
    """Encode noise that moves, with timestamps in seconds."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 1000, width=64, height=48, pix_fmt="yuv420p")
        for i, time in enumerate(times.tolist()):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * i, 1), "bgr24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_video_that_changes_after_the_scan_is_refused(folder: Path, openings: list[str]) -> None:
    source = scan_videos(folder).clips[0].source
    write_video(folder / "train.mp4", 10)
    with pytest.raises(DataError, match=r"train\.mp4: ends early; expected 30 frames; got no frame 10"):
        list(source.read(0, 30))
    openings.clear()
    for start in range(10, 30, 5):  # frames beyond the end are refused without reading the video again
        with pytest.raises(DataError, match="ends early; expected 30 frames"):
            list(source.read(start, start + 5))
    assert openings == [] and number(next(source.read(9, 10))) == 9
    write_video(folder / "train.mp4", size=(80, 48))
    with pytest.raises(DataError, match=r"frame size changes at frame 0; expected 64x48 throughout; got 80x48"):
        list(source.read(0, 30))


def test_frames_of_a_stream_without_header_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "test.mjpeg"
    images = [np.full((48, 64, 3), 8 * i, np.uint8) for i in range(30)]
    path.write_bytes(b"".join(bytes(cv2.imencode(".jpg", image)[1]) for image in images))
    (clip,) = scan_videos(path, fps=15).clips
    assert (clip.sequence.length, clip.sequence.fps) == (30, 15)  # FFmpeg would make up 25
    assert [number(image) for image in clip.source.read(0, 30)] == list(range(30))


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_video_is_decoded_upright_with_the_pixels_of_opencv(tmp_path: Path, quarter_turns: int) -> None:
    path = tmp_path / "test.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 12, (64, 48))  # type: ignore[attr-defined]
    writer.write(cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (64, 48)))
    writer.release()
    content = bytearray(path.read_bytes())
    # the matrix of the track's header
    c, s = round(math.cos(quarter_turns * math.pi / 2)) << 16, round(math.sin(quarter_turns * math.pi / 2)) << 16
    struct.pack_into(
        ">9i", content, content.index(b"tkhd") + 44, c, -s, 0, s, c, 0, 0, 0, 1 << 30
    )  # the track's matrix
    path.write_bytes(content)
    (clip,) = scan_videos(path).clips
    image = next(iter(clip.source.read(0, 1)))
    assert clip.sequence.size == image.shape[1::-1] == ((48, 64) if quarter_turns % 2 else (64, 48))
    assert np.array_equal(image, cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).read()[1])


def test_unknown_codec_is_a_fault(folder: Path) -> None:
    path = write_video(folder / "train.avi", codec="MJPG")
    (folder / "train.mp4").unlink()
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZZ"))
    assert_only_fault(scan_videos(folder), path, "not a video that FFmpeg can decode", "unknown codec")


@pytest.mark.parametrize("name", ["12:30:05.mp4", "http:clip.mp4", "-1.mp4", "100% rain #2?.mp4", "concat:a|b.mp4"])
def test_any_relative_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_video(tmp_path / "plain.mp4", 5).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert Video(Path(name)).length == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_first_of_several_video_streams_is_used(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / f"test{suffix}"
    write_streams(path, [(64, 48), (32, 32), (128, 64)])
    (clip,) = scan_videos(path).clips
    assert (clip.sequence.size, clip.sequence.length) == ((64, 48), 5)
    assert [image.shape for image in clip.source.read(0, 5)] == [(48, 64, 3)] * 5
    assert f"{path}: 3 video streams, of which the first, 64x48, is used." in caplog.text


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_cover_picture_is_no_video(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tmp_path / f"test{suffix}"
    write_streams(path, [(32, 32), (64, 48)], cover=True)
    (clip,) = scan_videos(path).clips
    assert (clip.sequence.size, clip.sequence.length) == ((64, 48), 5) and "streams" not in caplog.text
    write_streams(path, [(32, 32)], cover=True)
    assert_only_fault(scan_videos(path), path, "no video in it")


def write_streams(path: Path, sizes: list[tuple[int, int]], *, cover: bool = False) -> None:
    """Write a video with a stream of 5 frames per size, as in `write_video`; `cover` makes the first a picture."""
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in sizes:
            stream = container.add_stream("mpeg4" if streams or not cover else "mjpeg", 20)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuv420p" if streams or not cover else "yuvj420p"
            streams.append(stream)
        if cover:
            streams[0].disposition = av.stream.Disposition.attached_pic
        for i in range(5):
            for stream in streams:
                if i == 0 or not (cover and stream is streams[0]):
                    pixels = np.full((stream.height, stream.width, 3), 8 * i, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        for stream in streams:
            container.mux(stream.encode())


def test_path_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such video or folder\. Try"):
        scan_videos(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no videos; expected files ending in .*\.mp4.*Try"):
        scan_videos(tmp_path)
