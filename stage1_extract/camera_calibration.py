"""A camera's numbers from views of a printed checkerboard, or from a photo's EXIF tags."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import PIL.Image

from features._common.atomic import atomic_write
from features._common.bounded_file import open_regular
from features._common.console import logger
from features._common.plain_text import one_line
from features._common.types import Floats, Image, Size
from features.config import DataConfig
from features.errors import DataError
from stage1_extract.datasets.camera_file import CameraFile
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.single_video import use_single_clip
from stage1_extract.datasets.undistortion import corner_shift

LEAST_VIEWS = 5
MOST_FRAMES = 60  # of a video that are searched, evenly spread
DETECTION_WIDTH = 1280  # px; the board is looked for in frames reduced to this width, and then refined
LARGE_ERROR = 1.0  # px
STRONG_DISTORTION = 0.02  # of the distance from the principal point, at the frame's corners
EXIF_TAGS, FOCAL_LENGTH_35MM = 0x8769, 0xA405
LONGEST_FOCAL_LENGTH = 10_000.0  # mm, in 35 mm terms
DIAGONAL_35MM = 43.267  # mm, of a frame of 36 mm x 24 mm


@dataclass(frozen=True)
class CheckerboardResult:
    """A calibrated camera, and how well it explains the board's corners."""

    camera: CameraFile
    views: int
    error: float  # RMS distance of the corners, px
    distortion: float  # at the corners of the frame, as a share of their distance from the principal point


def camera_from_checkerboard(path: Path, board: tuple[int, int], height: float | None = None) -> CheckerboardResult:
    """Calibrate with a video or a folder of photos that show a checkerboard.

    Args:
        path: the video or folder; all frames of one size.
        board: inner corners along a row and along a column.
        height: of the camera above the road in m, to be written too.

    Raises:
        FramebankError: it cannot be read, or fewer than `LEAST_VIEWS` frames show the whole board.
    """

    def read(clip: Clip) -> tuple[Size, list[Floats]]:
        views = (find_corners(frame, board) for frame in _spread_frames(clip))
        return clip.sequence.size, [corners for corners in views if corners is not None]

    size, corners = use_single_clip(path, DataConfig(), None, read)
    if len(corners) < LEAST_VIEWS:
        raise DataError(
            f"{path}: too few views of the checkerboard",
            expected=f"{LEAST_VIEWS} frames that show a whole board with {board[0]}x{board[1]} inner corners",
            got=len(corners),
            hint="--board COLUMNS ROWS (squares less one), more light, or the board flat and larger in the frame",
        )
    return calibrate_views(corners, board, size, height)


def find_corners(frame: Image, board: tuple[int, int]) -> Floats | None:
    """The inner corners of a checkerboard in a BGR frame, row by row: (n, 2) in px; None if it is not whole."""
    grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    scale = max(1.0, grey.shape[1] / DETECTION_WIDTH)
    small = cv2.resize(grey, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA) if scale > 1 else grey
    shown, corners = cv2.findChessboardCornersSB(small, board, flags=cv2.CALIB_CB_NORMALIZE_IMAGE)
    if not shown:
        return None
    corners = (corners.reshape(-1, 2) + 0.5) * scale - 0.5
    if scale > 1:
        criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 30, 0.01)
        window = 2 * (round(2 * scale),)
        corners = cv2.cornerSubPix(grey, corners.astype(np.float32), window, (-1, -1), criteria)
    return np.asarray(corners, np.float64)


def calibrate_views(
    corners: list[Floats], board: tuple[int, int], size: Size, height: float | None = None
) -> CheckerboardResult:
    """Zhang's method: intrinsics from several views of a plane, with two terms of radial distortion."""
    columns, rows = np.meshgrid(np.arange(board[0]), np.arange(board[1]))
    plane = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).reshape(-1, 3).astype(np.float32)
    flags = cv2.CALIB_FIX_K3 | cv2.CALIB_ZERO_TANGENT_DIST
    views = [c.astype(np.float32) for c in corners]
    error, matrix, terms, _, _ = cv2.calibrateCamera([plane] * len(views), views, size, None, None, flags=flags)
    k1, k2 = np.ravel(terms)[:2]
    numbers = {"fx": matrix[0, 0], "fy": matrix[1, 1], "cx": matrix[0, 2], "cy": matrix[1, 2]}
    camera = CameraFile(
        **{name: float(value) for name, value in numbers.items()},
        size=size, height=height, distortion=(float(k1), float(k2)),
    )  # fmt: skip
    shift = corner_shift(camera.camera(size), size, camera.distortion)
    return CheckerboardResult(camera, len(views), float(error), shift)


def checkerboard_summary(result: CheckerboardResult) -> str:
    """One line about a calibration; a warning is logged if it is not to be relied on."""
    if result.error > LARGE_ERROR:
        logger.warning(
            f"The corners are {result.error:.1f} px off on average: use a flat board, sharp photos and a fixed focus."
        )
    if abs(result.distortion) > STRONG_DISTORTION:
        logger.warning(
            f"The lens moves the corners of the frame by {100 * result.distortion:+.0f} %, which only `framebank "
            "speed` corrects: for predict, choose the camera's linear (undistorted) mode if it has one."
        )
    return f"{result.views} views, corners within {result.error:.2f} px"


def camera_from_exif(photo: Path, height: float | None = None, size: Size | None = None) -> CameraFile:
    """The camera of a photo, from its focal length in 35 mm terms; the principal point is taken to be the middle.

    Args:
        photo: an unedited photo.
        height: of the camera above the road in m, to be written too.
        size: width and height of the video's frames in px, which are taken to show the photo's full width.

    Raises:
        DataError: it cannot be read, or does not state its focal length.
    """
    try:
        with open_regular(photo) as file, PIL.Image.open(file) as image:
            tags, (width, rows) = image.getexif(), image.size
            on_its_side = tags.get(0x0112, 1) > 4  # orientation
            focal = float(tags.get_ifd(EXIF_TAGS).get(FOCAL_LENGTH_35MM) or 0)
    except DataError:
        raise
    except Exception as e:  # Pillow raises a dozen types of exceptions on damaged files
        got = one_line(str(e))[:200]
        raise DataError(f"{photo}: not a photo that can be read", got=got, hint="--exif PHOTO.jpg") from None
    if on_its_side:
        width, rows = rows, width
    if not 0 < focal < LONGEST_FOCAL_LENGTH:
        raise DataError(
            f"{photo}: its EXIF tags do not state the focal length in 35 mm terms",
            hint="an unedited photo from the phone itself, or framebank camera FOLDER with photos of a checkerboard",
        )
    f = focal * float(np.hypot(width, rows)) / DIAGONAL_35MM
    if size is not None:
        f *= size[0] / width
        width, rows = size
    return CameraFile(fx=f, fy=f, cx=(width - 1) / 2, cy=(rows - 1) / 2, size=(width, rows), height=height)


def write_camera_file(path: Path, camera: CameraFile) -> None:
    """Write a camera file, with comments that say what each number is."""
    lines = [
        f"fx = {camera.fx:.2f}  # focal lengths, px",
        f"fy = {camera.fy:.2f}",
        f"cx = {camera.cx:.2f}  # principal point, px",
        f"cy = {camera.cy:.2f}",
        f"size = [{camera.size[0]}, {camera.size[1]}]  # width and height of the frames, px",
    ]
    if camera.height is None:
        lines.append("# height = 1.40  # of the lens above the road, m: measure it with a tape")
    else:
        lines.append(f"height = {camera.height:g}  # of the lens above the road, m")
    if camera.horizon is not None:
        lines.append(f"horizon = {camera.horizon:.1f}  # row at which a flat road would end, px")
    if any(camera.distortion):
        terms = ", ".join(f"{term:.5f}" for term in camera.distortion)
        lines.append(f"distortion = [{terms}]  # k1, k2, p1, p2: how the lens bends straight lines")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _spread_frames(clip: Clip) -> Iterable[Image]:
    """At most `MOST_FRAMES` frames of a clip, evenly spread."""
    step = max(1, clip.sequence.length // MOST_FRAMES)
    for i, frame in enumerate(clip.source.read(0, clip.sequence.length)):
        if i % step == 0:
            yield frame
