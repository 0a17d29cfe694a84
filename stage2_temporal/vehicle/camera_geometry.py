"""Camera geometry of a run: the grounds and cameras of its training footage, and the geometry vectors of tracks.

It is saved in the run's folder (`ground.json`), so that prediction computes the same vectors. Footage of other cameras
has grounds of its own, see `view_grounds`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from features._common.plain_text import one_line
from features._common.strict_json import read_json_file
from features._common.types import Floats, Size
from features.errors import DataError
from features.limits import LARGEST_COORDINATE
from features.sequences import Camera, FrameSequence
from stage2_temporal.vehicle.geometry import (
    GEOMETRY_NAMES,
    MATCH_NOISE,
    SIZE_NOISE,
    TRACK_NAMES,
    confidence_weights,
    geometry_vector,
)
from stage2_temporal.vehicle.ground import Ground, fit_camera, fit_ground, fit_ground_from_motion

FrameSide = Annotated[int, Field(gt=0, le=1 << 20)]
Positive = Annotated[float, Field(gt=0, le=LARGEST_COORDINATE)]
CAMERA_GEOMETRY_FILE = "ground.json"
MIN_VIEW_LABELS = 20  # labels with box and position from which a further camera has a fitted ground
USUAL_NOISE_COUNT = 100  # second differences that the usual noise of boxes counts for


@dataclass(frozen=True)
class View:
    """What decides how footage sees the road: its calibration and its size, or the sequence where none is known."""

    camera: Camera | None
    size: Size
    sequence: str | None = None  # id of a sequence without calibration, which may be of any camera


def view_of(sequence: FrameSequence) -> View:
    """The view of a sequence, which it shares with those of the same calibration."""
    return View(sequence.camera, sequence.size, sequence.id if sequence.camera is None else None)


@dataclass(frozen=True)
class WindowTracks:
    """The tracks of a vehicle in each of n windows."""

    boxes: Floats  # (n, T, 4) left, top, right, bottom in full-resolution px, NaN where lost
    confidence: Floats  # (n, T) 0 to 1
    times: Floats  # (n, T) of the frames, in seconds from the window's last one
    views: Sequence[View]  # one per window


@dataclass(frozen=True)
class SeenGround:
    """A view's ground and camera."""

    ground: Ground
    camera: Camera


@dataclass(frozen=True)
class CameraGeometry:
    """Ground and camera, fitted to a run's training labels."""

    ground: Ground
    camera: Camera  # the calibration, or without one fitted to labels
    size: Size  # width and height of the training frames, px
    calibrated: bool = False  # whether `camera` is a calibration
    noise: float = SIZE_NOISE  # px: the usual standard deviation of the width and height of a well matched box
    others: tuple[tuple[View, Ground], ...] = ()  # further cameras of the training footage
    noise_given: bool = False  # whether the config says the noise, which then holds for all footage
    names: tuple[str, ...] = field(default=GEOMETRY_NAMES, compare=False)  # columns of the vectors; fewer in older runs

    @property
    def view(self) -> View:
        """The view that most training labels have."""
        return View(self.camera if self.calibrated else None, self.size)

    def resized(self, size: Size) -> CameraGeometry:
        """The geometry of the same footage, enlarged or reduced to another size."""
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        others = tuple(
            (View(view.camera and view.camera.resized(self.size, size), size), ground.resized(x, y))
            for view, ground in self.others
            if view.size == self.size
        )
        camera, ground = self.camera.resized(self.size, size), self.ground.resized(x, y)
        return replace(self, ground=ground, camera=camera, size=size, others=others)

    def vectors(
        self, tracks: WindowTracks, grounds: Mapping[View, SeenGround], noise: float = SIZE_NOISE
    ) -> NDArray[np.float32]:
        """Compute the `geometry_vector` of each window, (n, columns of `names`).

        Args:
            grounds: of each view, as `view_grounds.find_view_grounds` finds them.
            noise: of the footage's boxes, px.
        """
        windows = zip(tracks.boxes, tracks.confidence, tracks.times, tracks.views, strict=True)
        seen = ((b, c, t, grounds[view]) for b, c, t, view in windows)
        rows = [geometry_vector(b, c, t, s.ground, s.camera, noise) for b, c, t, s in seen]
        return np.array(rows, np.float32).reshape(-1, len(GEOMETRY_NAMES))[:, : len(self.names)]

    def write(self, folder: Path) -> None:
        """Save it in a run's folder."""
        (folder / CAMERA_GEOMETRY_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_camera_geometry(folder: Path) -> CameraGeometry:
    """Read the camera geometry of a run; DataError if the file is missing or incomplete."""
    file = folder / CAMERA_GEOMETRY_FILE
    value = read_json_file(file, "train again")
    try:
        return _from_json(value)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        got = one_line(" ".join(str(e).split())[:200])
        raise DataError(f"{file}: cannot be read as camera geometry", got=got, hint="train again") from None


def _from_json(value: Mapping[str, Any]) -> CameraGeometry:
    read_camera: Callable[[Any], Camera | None] = TypeAdapter(Camera | None).validate_python
    read_ground = TypeAdapter(Ground).validate_python
    read_size = TypeAdapter(tuple[FrameSide, FrameSide]).validate_python
    read_number = TypeAdapter(Positive).validate_python
    others = [
        (View(read_camera(view["camera"]), read_size(tuple(view["size"]))), read_ground(ground))
        for view, ground in value.get("others", ())
    ]
    camera = read_camera(value["camera"])
    names = value.get("names", TRACK_NAMES)  # older versions did not write them
    if camera is None or not (camera.fx > 0 and camera.fy > 0) or list(names) != list(GEOMETRY_NAMES[: len(names)]):
        raise ValueError("camera or names out of range")
    return CameraGeometry(
        read_ground(value["ground"]),
        camera,
        read_size(tuple(value["size"])),
        value.get("calibrated", False) is True,
        read_number(value.get("noise", SIZE_NOISE)),
        tuple(others),
        value.get("noise_given", False) is True,
        tuple(names),
    )


def fit_camera_geometry(
    tracks: WindowTracks, boxes: Floats, positions: Floats, vx: Floats, noise: float = SIZE_NOISE
) -> CameraGeometry:
    """Fit grounds and cameras to training labels: to boxes and positions, or else to velocities and tracks.

    Args:
        tracks: of the labels' windows; the most frequent of their views is the run's.
        boxes, positions, vx: the labels' (n, 4) px, (n, 2) x and y in m, and (n,) m/s; NaN if unknown.
        noise: of the boxes, px, see `box_noise`.

    A DataError if there are too few labels to fit the ground, or they contradict flat ground.
    """
    located: NDArray[np.bool_] = np.isfinite(np.c_[boxes, positions]).all(axis=1)
    rows: dict[View, list[int]] = {}
    views = [replace(view, sequence=None) for view in tracks.views]  # sequences without calibration share a ground
    for i, view in enumerate(views):
        rows.setdefault(view, []).append(i)
    main, *others = sorted(rows, key=lambda view: (int(located[rows[view]].sum()), len(rows[view])), reverse=True)
    chosen = np.array(rows[main])
    if located.any():
        if located[chosen].sum() < MIN_VIEW_LABELS and others:  # many cameras with few labels each
            ground = fit_ground(_seen_by(main.camera, boxes, views), positions)
        else:
            ground = fit_ground(boxes[chosen], positions[chosen])
    else:
        any_ground, any_camera = Ground(0.0, 1.0, 1.0), Camera(1.0, 1.0, 0.0, 0.0)  # closing does not depend on them
        seen = dict.fromkeys(rows, SeenGround(any_ground, any_camera))
        main_tracks = WindowTracks(
            tracks.boxes[chosen], tracks.confidence[chosen], tracks.times[chosen], [main] * len(chosen)
        )
        any_geometry = CameraGeometry(any_ground, any_camera, main.size)
        closing = any_geometry.vectors(main_tracks, seen)[:, GEOMETRY_NAMES.index("closing")]
        ground = fit_ground_from_motion(boxes[chosen], closing, vx[chosen])
    camera = main.camera or fit_camera(boxes[chosen], positions[chosen], main.size)
    fitted = [view for view in others if located[rows[view]].sum() >= MIN_VIEW_LABELS]
    grounds = tuple((view, fit_ground(boxes[rows[view]], positions[rows[view]])) for view in fitted)
    return CameraGeometry(ground, camera, main.size, main.camera is not None, noise, grounds)


def _seen_by(camera: Camera | None, boxes: Floats, views: Sequence[View]) -> Floats:
    """Boxes (n, 4) as another camera, in the place of each view's, would see them, but for their columns.

    Where one of the two cameras is not wholly known, boxes are left as they are.
    """
    boxes, road = boxes.copy(), _road(camera)
    for i, other in enumerate(view.camera for view in views):
        other_road = _road(other)
        if camera is not None and other is not None and road is not None and other_road is not None:
            wide, high = (boxes[i, 2:] - boxes[i, :2]) * (camera.fx / other.fx, camera.fy / other.fy)
            bottom = road[0] + (boxes[i, 3] - other_road[0]) * road[1] / other_road[1]
            boxes[i] = 0.0, bottom - high, wide, bottom
    return boxes


def _road(camera: Camera | None) -> tuple[float, float] | None:
    """The horizon and the scale of a camera's ground, if its calibration says both."""
    if camera is None or camera.height is None or camera.horizon is None:
        return None
    return camera.horizon, camera.fy * camera.height


def box_noise(tracks: Iterable[tuple[Floats, Floats]], usual: float = SIZE_NOISE) -> float:
    """Estimate the standard deviation in px of the width and height of well matched boxes.

    It follows from the second differences of sizes in consecutive frames, which in steady motion are nearly zero.
    `tracks` are boxes (T, 4) and confidence (T,); the usual deviation counts for `USUAL_NOISE_COUNT` differences.
    """
    squares = []
    for boxes, confidence in tracks:
        sizes = boxes[:, 2:] - boxes[:, :2]
        weight = MATCH_NOISE * confidence_weights(confidence)
        weight = np.minimum(np.minimum(weight[:-2], weight[1:-1]), weight[2:])
        squares.append((weight[:, None] * np.diff(sizes, 2, axis=0) ** 2 / 6).ravel())  # variance 1 + 4 + 1
    known = np.concatenate([np.zeros(0), *squares])
    known = known[np.isfinite(known)]
    variance = float(np.median(known)) / 0.455 if len(known) else 0.0  # the median of chi² with one degree of freedom
    count = USUAL_NOISE_COUNT
    return math.sqrt((count * usual**2 + len(known) * variance) / (count + len(known)))
