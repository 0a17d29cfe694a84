"""A camera's numbers from rendered views of a checkerboard, and from a photo's EXIF tags."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from features._common.types import Floats, Image
from framebank.cli import main
from stage1_extract.camera_calibration import camera_from_exif, find_corners
from stage1_extract.datasets.camera_file import read_camera_file

SIZE = (960, 540)
MATRIX = np.array([[812.0, 0, 470], [0, 805, 281], [0, 0, 1]])
BOARD = (9, 6)  # inner corners


def board_view(turn: tuple[float, float, float], distance: float) -> Image:
    """A checkerboard of 10x7 squares of 30 mm, turned by angles in rad about x, y and z, `distance` m away."""
    square, cell, edge = 0.03, 40, 40
    columns, rows = BOARD[0] + 1, BOARD[1] + 1
    paper = np.full((rows * cell + 2 * edge, columns * cell + 2 * edge), 255, np.uint8)
    for i in range(rows):
        for j in range(columns):
            if (i + j) % 2 == 0:
                paper[edge + i * cell : edge + (i + 1) * cell, edge + j * cell : edge + (j + 1) * cell] = 0
    # from px of the paper to m on it, about its middle
    to_board = np.array([[square / cell, 0, 0], [0, square / cell, 0], [0, 0, 1.0]])
    to_board[:2, 2] = -0.5 * square / cell * (np.array(paper.shape[::-1]) - 1)
    rotation: Floats = cv2.Rodrigues(np.array(turn))[0]
    pose = np.column_stack([rotation[:, 0], rotation[:, 1], [0.02, -0.01, distance]])
    view = cv2.warpPerspective(paper, MATRIX @ pose @ to_board, SIZE, borderValue=150, flags=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(cv2.GaussianBlur(view, (0, 0), 0.7), cv2.COLOR_GRAY2BGR), np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    turns = [(0.5, 0, 0), (-0.5, 0, 0.1), (0, 0.5, 0), (0, -0.5, 0.2), (0.4, 0.4, 0), (-0.3, 0.5, 0.3), (0.3, -0.4, 0)]
    for i, turn in enumerate(turns):
        cv2.imwrite(str(folder / f"{i}.png"), board_view(turn, 0.42 + 0.03 * i))
    cv2.imwrite(str(folder / "99.png"), np.full((SIZE[1], SIZE[0], 3), 120, np.uint8))  # shows no board
    return folder


def test_checkerboard_gives_the_camera(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "camera.toml"
    assert main(["camera", str(photos), "--height", "1.4", "--output", str(out)]) == 0
    assert "7 views" in capsys.readouterr().out
    camera = read_camera_file(out)
    assert camera.fx == pytest.approx(MATRIX[0, 0], rel=0.01)
    assert camera.fy == pytest.approx(MATRIX[1, 1], rel=0.01)
    assert (camera.cx, camera.cy) == pytest.approx((470, 281), abs=6)
    assert camera.size == SIZE and camera.height == 1.4


def test_checkerboard_gives_the_distortion(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terms = np.array([-0.2, 0.05, 0, 0])
    pixels = np.stack(np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1])), -1).reshape(-1, 1, 2).astype(np.float32)
    places = cv2.undistortPoints(pixels, MATRIX, terms, P=MATRIX).reshape(SIZE[1], SIZE[0], 2)
    (tmp_path / "bent").mkdir()
    for file in photos.iterdir():
        bent = cv2.remap(cv2.imread(str(file)), places, None, cv2.INTER_CUBIC, borderValue=(150, 150, 150))
        cv2.imwrite(str(tmp_path / "bent" / file.name), bent)
    assert main(["camera", str(tmp_path / "bent"), "--output", str(tmp_path / "camera.toml")]) == 0
    warning = capsys.readouterr().err
    assert "moves the corners of the frame by -" in warning and "framebank speed" in warning
    camera = read_camera_file(tmp_path / "camera.toml")
    r = np.linspace(0, 0.4, 9)  # the board reaches this far from the middle, in focal lengths
    bent, true = (k1 * r**2 + k2 * r**4 for k1, k2 in (camera.distortion[:2], terms[:2]))
    assert bent == pytest.approx(true, abs=0.003)
    assert camera.distortion[2:] == (0, 0)
    assert camera.fx == pytest.approx(MATRIX[0, 0], rel=0.01)


def test_too_few_views_are_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["camera", str(photos), "--board", "8", "5", "--output", str(tmp_path / "camera.toml")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "too few views" in error and "--board" in error
    assert not (tmp_path / "camera.toml").exists()


@pytest.mark.parametrize("scale", [1, 3])  # a large frame is searched at a smaller size
def test_corners_are_exact_to_a_fraction_of_a_pixel(scale: int) -> None:
    turn, distance = (0.3, 0.2, 0.1), 0.45
    view = cv2.resize(board_view(turn, distance), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    corners = find_corners(np.asarray(view, np.uint8), BOARD)
    assert corners is not None
    columns, rows = np.meshgrid(np.arange(BOARD[0]) - 4.0, np.arange(BOARD[1]) - 2.5)
    points = np.stack([columns, rows, np.zeros_like(rows)], -1).reshape(-1, 3) * 0.03
    true = cv2.projectPoints(points, np.array(turn), np.array([0.02, -0.01, distance]), MATRIX, None)[0].reshape(-1, 2)
    in_frame = (corners + 0.5) / scale - 0.5
    if np.linalg.norm(in_frame[0] - true[0]) > 50:
        in_frame = in_frame[::-1]  # the board looks the same from both ends
    assert np.sqrt(np.mean((in_frame - true) ** 2)) < 0.2


def photo(path: Path, focal: int | None, size: tuple[int, int] = (4032, 3024)) -> Path:
    image = PIL.Image.new("RGB", size)
    exif = PIL.Image.Exif()
    if focal is not None:
        exif.get_ifd(0x8769)[0xA405] = focal
    image.save(path, exif=exif)
    return path


def test_exif_gives_the_focal_length(tmp_path: Path) -> None:
    out = tmp_path / "camera.toml"
    picture = photo(tmp_path / "p.jpg", 26)
    assert main(["camera", "--exif", str(picture), "--size", "1920", "1080", "--output", str(out)]) == 0
    camera = read_camera_file(out)
    # 26 mm on a diagonal of 43.27 mm, by 5040 px, then 1920 of 4032 px
    assert camera.fx == camera.fy == pytest.approx(26 / 43.267 * 5040 * 1920 / 4032, rel=1e-3)
    assert (camera.cx, camera.cy) == (959.5, 539.5)
    assert camera.height is None


def test_photo_without_a_focal_length_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["camera", "--exif", str(photo(tmp_path / "p.jpg", None))]) == 2
    assert "35 mm" in capsys.readouterr().err
    (tmp_path / "no.jpg").write_text("text")
    assert main(["camera", "--exif", str(tmp_path / "no.jpg")]) == 2


def test_portrait_photo_has_its_long_side_upright(tmp_path: Path) -> None:
    assert camera_from_exif(photo(tmp_path / "p.jpg", 28, (600, 800))).size == (600, 800)


def test_camera_needs_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["camera"]) == 2
    assert "from what?" in capsys.readouterr().err
