"""Augmentation that knows its labels: one draw for all frames of a window, and targets that follow it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# what a mirrored scene does to each target; a column that is not here is not flipped
MIRRORED = {"vx": 1.0, "vy": -1.0, "x": 1.0, "y": -1.0, "ego_speed": 1.0}


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each window.

    Attributes:
        flip: whether half of the windows are mirrored, left for right.
        brightness: largest shift, as a share of 255.
        contrast: largest stretch around the window's mean, as a share.
        signs: (K,) what mirroring does to the targets.
    """

    flip: bool
    brightness: float
    contrast: float
    signs: tuple[float, ...]

    def __call__(
        self, window: NDArray[np.uint8], targets: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A window (T, height, width, 3) and its targets (K,), augmented; the originals stay as they are."""
        mirrored = bool(rng.random() < 0.5) and self.flip
        shift = 255 * self.brightness * rng.uniform(-1, 1)
        stretch = 1 + self.contrast * rng.uniform(-1, 1)
        if mirrored:
            window, targets = mirror_window(window), targets * np.asarray(self.signs, np.float32)
        if self.brightness or self.contrast:
            mean = float(window.mean())
            levels = (np.arange(256) - mean) * stretch + mean + shift
            window = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[window]
        return window, targets


def mirror_window(window: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(T, height, width, 3) with left and right exchanged."""
    return window[:, :, ::-1]


def mirror_signs(columns: tuple[str, ...]) -> tuple[float, ...] | None:
    """What mirroring does to each target column; None where that is not known of every one."""
    return tuple(MIRRORED[c] for c in columns) if all(c in MIRRORED for c in columns) else None
