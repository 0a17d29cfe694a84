"""Augment windows of images: one draw for all frames of a window, and targets that follow it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features._common.types import Image

MIRROR_SIGNS = {"vx": 1.0, "vy": -1.0, "x": 1.0, "y": -1.0, "ego_speed": 1.0}  # of each target in a mirrored scene


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each window."""

    flip: bool  # whether half of the windows are mirrored, left to right
    brightness: float  # largest shift, as a share of 255
    contrast: float  # largest stretch around the window's mean, as a share
    signs: tuple[float, ...]  # (K,) of the targets in a mirrored window

    def __call__(
        self, window: Image, targets: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[Image, NDArray[np.float32]]:
        """Return an augmented copy of a window (T, height, width, 3) and its targets (K,)."""
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


def mirror_window(window: Image) -> Image:
    """Exchange left and right of a window (T, height, width, 3)."""
    return window[:, :, ::-1]


def mirror_signs(columns: tuple[str, ...]) -> tuple[float, ...] | None:
    """The sign of each target column in a mirrored window; None unless all are known."""
    return tuple(MIRROR_SIGNS[c] for c in columns) if set(columns) <= set(MIRROR_SIGNS) else None
