"""`framebank speed` and `framebank camera` with files and options as users give them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from features.sequences import Camera
from framebank.cli import main
from stage1_extract.ground_flow.ground_flow import estimate_speeds

ROOT = Path(__file__).parents[2]
CAMERA = "fx = 70\nfy = 70\ncx = 63.5\ncy = 35.5\nsize = [128, 72]\nheight = 1.6\nhorizon = 30\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """drive.mp4, 12 frames of 128x72 px, and camera.toml, in the current folder."""
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "drive.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", 20, width=128, height=72, pix_fmt="yuv420p")
        for _ in range(12):
            image = rng.integers(0, 255, (72, 128, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "bgr24")))
        container.mux(stream.encode(None))
    (tmp_path / "camera.toml").write_text(CAMERA)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    assert main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("framebank: ")]
    return line


@pytest.mark.parametrize("output", ["drive.mp4", "camera.toml", "./drive.mp4", "known.csv", "."])
def test_input_is_not_overwritten(folder: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "known.csv").write_text("frame,speed\n3,10\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = ["speed", "drive.mp4", "--camera", "camera.toml", "--calibrate", "known.csv", "--output", output]
    assert "not an output file" in refusal(capsys, *command)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "photo.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((72, 128, 3), np.uint8))[1].tobytes())
    assert "is the input" in refusal(capsys, "camera", "--exif", "photo.jpg", "--output", "photo.jpg")


@pytest.mark.parametrize("fps", ["0", "-1", "nan", "1e9"])
def test_impossible_rate_is_refused(folder: Path, fps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fps out of range" in refusal(capsys, "speed", "drive.mp4", "--camera", "camera.toml", "--fps", fps)


def test_board_needs_three_corners_each_way(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "at least 3 inner corners each way; got 1 9" in refusal(capsys, "camera", "drive.mp4", "--board", "1", "9")


@pytest.mark.parametrize("name", ["-drive.mp4", "--drive.mp4"])
def test_name_like_an_option_is_named_with_its_folder(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "drive.mp4").rename(folder / name)
    command = ["speed", name, "--camera", "camera.toml"]
    if name == "-drive.mp4":
        assert refusal(capsys, *command).endswith("Try: ./-drive.mp4")
    assert main(["speed", f"./{name}", "--camera", "camera.toml"]) == 0


@pytest.mark.parametrize("name", ["~nobody.mp4", "12:30:05.mp4", "100% #1?.MP4", "[1] é.mp4"])
def test_any_name_is_read(folder: Path, name: str) -> None:
    (folder / "drive.mp4").rename(folder / name)
    assert main(["speed", name, "--camera", "camera.toml", "--output", "o.csv"]) == 0
    assert len((folder / "o.csv").read_text().splitlines()) == 13


def test_camera_file_of_a_windows_editor_is_read(folder: Path) -> None:
    (folder / "camera.toml").write_bytes(CAMERA.replace("\n", "\r\n").encode("utf-8-sig"))
    assert main(["speed", "drive.mp4", "--camera", "camera.toml", "--output", "o.csv"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("horizon = 30", "horizon = 400"), "its horizon is below the frames; expected a row above 71; got 400"),
        (("cx = 63.5", "cx = 640"), "its principal point is outside the frames; expected one in 128x72; got (640, 36)"),
    ],
)
def test_numbers_that_cannot_be_those_of_the_frames_are_refused(
    folder: Path, change: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "camera.toml").write_text(CAMERA.replace(*change))
    assert message in refusal(capsys, "speed", "drive.mp4", "--camera", "camera.toml")


@pytest.mark.parametrize(("scale", "named"), [(1.0, False), (1.1, False), (1.5, True), (0.5, True)])
def test_calibration_of_another_size_is_named(
    folder: Path, scale: float, named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fx, cx, cy = 70 * scale, 64 * scale - 0.5, 36 * scale - 0.5
    (folder / "c.txt").write_text(f"Intrinsic matrix:\n{fx} 0 {cx}\n0 {fx} {cy}\n0 0 1\nCamera Height:\n1.6m\n")
    assert main(["speed", "drive.mp4", "--camera", "c.txt", "--output", "o.csv"]) == 0
    assert (f"about {128 * scale:.0f}x{72 * scale:.0f}, not of 128x72" in capsys.readouterr().err) == named


@pytest.mark.parametrize("row", ["time\n1506297181,10", "frame\n12,10", "time\n-0.1,10"])
def test_known_speeds_outside_the_drive_calibrate_nothing(
    folder: Path, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "known.csv").write_text(row.replace("\n", ",speed\n") + "\n")
    command = ["speed", "drive.mp4", "--camera", "camera.toml", "--calibrate", "known.csv"]
    assert "known.csv: no known speed within the drive; expected a" in refusal(capsys, *command)


def test_archive_of_frames_is_no_video(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "1.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((72, 128, 3), np.uint8))[1].tobytes())
    with tarfile.open(folder / "frames.tar", "w") as archive:
        archive.add("1.jpg")
    line = refusal(capsys, "speed", "frames.tar", "--camera", "camera.toml", "--fps", "20")
    assert "frames.tar: a tar archive; expected a folder" in line


def test_folder_of_videos_is_no_drive(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "speed", ".", "--camera", "camera.toml")
    assert "got only 1 .mp4. Try: name one of its videos" in line


@pytest.mark.parametrize("horizon", [-500.0, 70.0, 71.9, 400.0])
def test_camera_that_sees_no_road_has_no_confidence(horizon: float) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 72, 128, 3), np.uint8)
    estimates = estimate_speeds(iter(frames), np.arange(6) / 20, Camera(70, 70, 63.5, 35.5, 1.6, horizon))
    assert estimates.confidence.max() < 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the stream")
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_done_without(folder: Path, closed: str) -> None:
    command = f'"{sys.executable}" -m framebank speed drive.mp4 --camera camera.toml --output o.csv {closed}'
    subprocess.run(  # noqa: S602 — only a shell closes streams
        command, shell=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert len((folder / "o.csv").read_text().splitlines()) == 13


@pytest.mark.skipif(sys.platform == "win32", reason="Windows deletes no current folder")
def test_deleted_current_folder_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    line = refusal(capsys, "speed", str(folder / "drive.mp4"), "--camera", str(folder / "camera.toml"))
    assert "the current folder does not exist any more" in line


@pytest.mark.parametrize("height", ["160", "1600"])
def test_height_in_another_unit_is_refused(folder: Path, height: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "camera.toml").write_text(CAMERA.replace("height = 1.6", f"height = {height}"))
    assert "less than or equal to 20" in refusal(capsys, "speed", "drive.mp4", "--camera", "camera.toml")
    (folder / "c.txt").write_text(f"Intrinsic matrix:\n70 0 64\n0 70 36\n0 0 1\nCamera Height:\n{height}\n")
    assert "no camera height; expected metres" in refusal(capsys, "speed", "drive.mp4", "--camera", "c.txt")
    assert "--height out of range" in refusal(capsys, "camera", "drive.mp4", "--height", height)
