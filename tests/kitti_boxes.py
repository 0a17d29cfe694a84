"""Windows of KITTI's labelled boxes, for tests of vehicles' velocities on real boxes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.sequences import Camera

KITTI_CAMERA = Camera(721.54, 721.54, 609.56, 172.85, 1.65)
KITTI_SIZE = (1242, 375)
SECONDS = 0.1037  # between frames
LENGTH, STEP = 8, 5  # frames of a window, and between the first ones of two windows
COLUMNS = {"box": slice(6, 10), "location": slice(13, 16)}


@dataclass(frozen=True)
class KittiWindows:
    """Windows of 8 frames of a vehicle whose box is wholly visible."""

    boxes: Floats  # (n, 8, 4) px
    velocity: Floats  # (n, 2) slopes of z and x over the window, m/s
    position: Floats  # (n, 2) z and x of the vehicle's middle in the last frame, m
    ordinary: NDArray[np.bool_]  # (n,) along the road, and less than 12 m/s faster or slower than the camera
    scene: NDArray[np.str_]  # (n,) number of the scene

    @property
    def times(self) -> Floats:
        """(8,) seconds from the last frame."""
        return np.arange(1 - LENGTH, 1) * SECONDS


def read_kitti_windows(folder: Path) -> KittiWindows:
    """Read the label files of KITTI's tracking benchmark; every fifth frame of a vehicle begins a window."""
    rows = []
    for file in sorted(folder.glob("*.txt")):
        tracks: defaultdict[str, dict[int, list[str]]] = defaultdict(dict)
        for line in file.read_text().splitlines():
            cells = line.split()
            if cells[2] in ("Car", "Van", "Truck"):
                tracks[cells[1]][int(cells[0])] = cells
        for track in tracks.values():
            for first in range(min(track), max(track) - LENGTH + 2, STEP):
                window = [track.get(frame) for frame in range(first, first + LENGTH)]
                labels = [cells for cells in window if cells is not None and cells[3:5] == ["0", "0"]]
                if len(labels) == LENGTH and (row := _window(labels)) is not None:
                    rows.append((*row, file.stem))
    boxes, velocity, position, ordinary, scene = zip(*rows, strict=True)
    return KittiWindows(np.array(boxes), np.array(velocity), np.array(position), np.array(ordinary), np.array(scene))


def _window(labels: list[list[str]]) -> tuple[Floats, Floats, Floats, bool] | None:
    """Boxes, velocity, position, and whether it is ordinary; None if a box is cut off, or too near or far."""
    boxes, location = (np.array([cells[s] for cells in labels], np.float64) for s in COLUMNS.values())
    position = location[-1, [2, 0]]
    inside = boxes[:, :2].min() >= 2 and (boxes[:, 2:] <= np.array(KITTI_SIZE) - 2).all()
    if not inside or not 5 <= position[0] <= 80:
        return None
    velocity = np.polyfit(np.arange(LENGTH) * SECONDS, location[:, [2, 0]], 1)[0]
    along = abs(abs(float(labels[-1][16])) - np.pi / 2) <= 0.2
    return boxes, velocity, position, bool(along and abs(velocity[0]) < 12)
