"""Videos as phones, dash-cams, recorders and lossless cutters leave them, read by packets and by decoding."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from features._common.types import Image
from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.single_video import use_single_clip
from stage1_extract.datasets.video_timing import repair_timestamps

COUNT, FPS = 24, 20


def write(
    path: Path,
    codec: str = "libx264",
    *,
    audio: float = 0.0,
    options: dict[str, str] | None = None,
    format: str | None = None,
    pixel_ratio: Fraction | None = None,
    change: Callable[[Any, int], None] = lambda packet, i: None,
) -> Path:
    """Write a video of `COUNT` grey frames, frame i of level 40 + 8·i, with `audio` seconds of silence.

    `change` may change a packet before it is written.
    """
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        sound = container.add_stream("aac" if path.suffix == ".mp4" else "libopus", 48_000) if audio else None
        stream: Any = container.add_stream(codec, FPS, width=64, height=48, pix_fmt="yuv420p")
        context: Any = stream.codec_context
        context.max_b_frames, context.bit_rate, context.gop_size = 0, 4_000_000, 6
        if pixel_ratio is not None:
            context.sample_aspect_ratio = pixel_ratio
        frames = [av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 + 8 * i, np.uint8), "bgr24") for i in range(COUNT)]
        packets = [packet for frame in (*frames, None) for packet in stream.encode(frame)]
        if sound is not None:
            packets += _sound_packets(sound, int(audio * 48_000))
        packets.sort(key=lambda p: (p.dts or 0) * (p.time_base or 0))
        index = 0
        for packet in packets:
            if packet.stream is stream:
                change(packet, index)
                index += 1
            container.mux(packet)
    return path


def _sound_packets(stream: Any, count: int) -> list[Any]:
    packets: list[Any] = []
    size = 960 if stream.codec_context.name == "libopus" else 1024
    for start in range(0, count - size, size):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, size), np.float32), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    return packets


def read(path: Path, **settings: object) -> tuple[Clip, list[Image]]:
    """The clip and its frames, by packets where that serves; a scan, which decodes, must find the same sequence."""
    data = DataConfig.model_validate({"layout": "video", "path": str(path), **settings})
    clip, images = use_single_clip(path, data, None, lambda c: (c, list(c.source.read(0, c.sequence.length))))
    (scanned,) = scan(data, need_labels=False).clips
    assert scanned.sequence.length == clip.sequence.length and scanned.sequence.size == clip.sequence.size
    np.testing.assert_allclose(scanned.sequence.frame_times, clip.sequence.frame_times)
    return clip, images


def levels(images: Sequence[Image]) -> list[int]:
    return [round(float(np.median(image)) / 8) - 5 for image in images]


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264")])
def test_recording_without_a_length_has_its_timestamps(name: str, codec: str, tmp_path: Path) -> None:
    def twice_as_slow(packet: Any, i: int) -> None:  # from the twelfth frame on
        packet.pts = packet.dts = i + max(0, i - 12)
        packet.time_base = Fraction(1, FPS)

    path = write(tmp_path / name, codec, options={"live": "1"}, change=twice_as_slow)
    with av.open(str(path)) as container:
        assert container.duration is None
    clip, images = read(path)
    expected = (np.arange(COUNT) + np.maximum(0, np.arange(COUNT) - 12)) / FPS
    np.testing.assert_allclose(clip.sequence.frame_times, expected, atol=1e-3)
    assert levels(images) == list(range(COUNT))


@pytest.mark.parametrize("audio", [1.2, 3.0])
@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264")])
def test_truncated_video_with_sound_is_refused(audio: float, name: str, codec: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, codec, audio=audio, options={"cluster_time_limit": "200"})
    assert read(path)[0].sequence.length == COUNT
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.pos]
    path.write_bytes(path.read_bytes()[: places[16]])
    with pytest.raises(DataError, match=r"ends early; expected .* by its header") as error:
        read(path)
    assert "--allow-truncated" in str(error.value)
    assert 1 < read(path, allow_truncated=True)[0].sequence.length < COUNT


@pytest.mark.parametrize("name", ["a.ts", "a.mts"])
def test_transport_stream_that_ends_within_a_packet_is_refused(name: str, tmp_path: Path) -> None:
    options = {"mpegts_m2ts_mode": "1"} if name == "a.mts" else {}
    path = write(tmp_path / name, options=options, format="mpegts")
    assert levels(read(path)[1]) == list(range(COUNT))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 50)  # what some cameras append
    assert read(path)[0].sequence.length == COUNT
    path.write_bytes(whole[:-70])
    with pytest.raises(DataError, match=r"ends early; .* a part of one more"):
        read(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_last_frame_may_be_shown_long(name: str, tmp_path: Path) -> None:
    def longer(packet: Any, i: int) -> None:
        packet.duration = packet.duration * (10 if i == COUNT - 1 else 1)

    clip, images = read(write(tmp_path / name, change=longer))
    assert (clip.sequence.fps, levels(images)) == (FPS, list(range(COUNT)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_video_that_was_cut_without_encoding_it_again_begins_where_it_was_cut(name: str, tmp_path: Path) -> None:
    data = bytearray(write(tmp_path / name).read_bytes())
    with av.open(str(tmp_path / name)) as container:
        base = container.streams.video[0].time_base
    assert base is not None
    edit = data.index(b"elst") + 12  # behind version and number: its duration in ms, and where it begins in the stream
    data[edit : edit + 8] = struct.pack(">Ii", 880, int(0.32 / base))
    (tmp_path / name).write_bytes(data)
    clip, images = read(tmp_path / name)
    assert levels(images) == list(range(7, COUNT))
    assert (clip.sequence.fps, clip.sequence.times) == (FPS, None)


@pytest.mark.parametrize(("ratio", "size"), [(Fraction(4, 3), (85, 48)), (Fraction(8, 9), (64, 54))])
def test_frames_with_pixels_that_are_not_square_are_as_they_are_shown(
    ratio: Fraction, size: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip, images = read(write(tmp_path / "a.mp4", pixel_ratio=ratio))
    assert clip.sequence.size == size and images[5].shape == (size[1], size[0], 3)
    assert levels(images) == list(range(COUNT))


def test_repeated_timestamp_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    def repeated(packet: Any, i: int) -> None:  # a variable rate, with one time twice
        packet.time_base = Fraction(1, 1000)
        packet.pts = packet.dts = (11 if i == 12 else i) * 50 + 3 * (i % 5) * (i > 14)

    clip, images = read(write(tmp_path / "a.mkv", "mpeg4", change=repeated))
    expected = [i * 50 + 3 * (i % 5) * (i > 14) for i in range(COUNT)]
    np.testing.assert_allclose(clip.sequence.frame_times, np.array(expected) / 1000, atol=1e-9)
    assert levels(images) == list(range(COUNT))


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10, 11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ([*range(11), *range(11)], [*range(22)]),  # two recordings in one file
        ([*range(12), 30, 31, 31, 31, 34, *range(35, 60)], [*range(12), *range(30, 60)]),
    ],
)
def test_few_timestamps_that_do_not_increase_are_repaired(times: list[float], expected: list[float]) -> None:
    repaired = repair_timestamps(np.array(times, np.float64))
    assert repaired is not None
    np.testing.assert_allclose(repaired, expected)


def test_many_timestamps_that_do_not_increase_are_not_trusted() -> None:
    assert repair_timestamps(np.array([0, 2, 1, 4, 3, 6, 5, 8, 7])) is None


@pytest.mark.parametrize("name", ["A.MTS", "clip.3gp", "drive.H264"])
def test_every_usual_suffix_is_a_video(name: str, tmp_path: Path) -> None:
    format = {"A.MTS": "mpegts", "clip.3gp": "3gp", "drive.H264": "h264"}[name]
    write(tmp_path / name, format=format)
    data = DataConfig(layout="video", path=str(tmp_path), fps=12.5)
    (clip,) = scan(data, need_labels=False).clips
    assert (clip.sequence.length, clip.sequence.fps) == (COUNT, 12.5 if name == "drive.H264" else FPS)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_speeds_that_a_windows_shell_wrote_are_read(encoding: str, tmp_path: Path) -> None:
    write(tmp_path / "train.mp4")
    (tmp_path / "train.txt").write_bytes("".join(f"{i / 2}\r\n" for i in range(COUNT)).encode(encoding))
    (clip,) = scan(DataConfig(layout="video", path=str(tmp_path))).clips
    assert [label.targets["ego_speed"] for label in clip.sequence.labels] == [i / 2 for i in range(COUNT)]


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_opening_a_large_video_does_not_take_its_size_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream: Any = container.add_stream("mjpeg", FPS, width=640, height=480, pix_fmt="yuvj420p")
        stream.codec_context.options = {"qmin": "2", "qmax": "2"}
        images = [av.VideoFrame.from_ndarray(rng.integers(0, 255, (480, 640, 3), np.uint8), "bgr24") for _ in range(3)]
        for i in range(150):
            images[i % 3].pts = i
            container.mux(stream.encode(images[i % 3]))
        container.mux(stream.encode(None))
    size = (tmp_path / "a.avi").stat().st_size
    assert size > 25e6
    code = (
        "from pathlib import Path; from stage1_extract.datasets.video import Video\n"
        "def peak(): return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) * 1024\n"
        "before = peak(); Video(Path('a.avi'), by_packets=True); print(peak() - before)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    print(f"{int(result.stdout) / 1e6:.1f} MB for a file of {size / 1e6:.1f} MB")
    assert int(result.stdout) < size / 2
