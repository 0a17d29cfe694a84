"""Batches of image windows, decoded in threads and augmented: one draw for all frames of a window and its targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from features._common.console import logger
from features._common.types import Floats, Image
from features.config import FinetuneConfig
from features.errors import ConfigError
from features.streams import MIRROR_SIGNS
from stage2_temporal.data.batches import Batches
from stage2_temporal.fused.fuse import ReadWindow

QUEUED_BATCHES = 2  # finished batches per thread that may wait for the network

# Powers of the factor by which a picture is enlarged, for each target. A point on a flat road at (x, y) is seen at
# (y/x, height/x), so the enlarged picture is that of a scene whose distances ahead are divided by the factor.
ZOOM_POWERS = {"vx": -1, "vy": 0, "x": -1, "y": 0, "ego_speed": -1}

SHIFT_INVARIANT = {"ego_speed"}  # targets that stay the same if the camera looks a little to the side, up or down

Targets = NDArray[np.float32]
Augment = Callable[[Image, Targets, np.random.Generator], tuple[Image, Targets]]


def make_augmentation(options: FinetuneConfig, columns: tuple[str, ...]) -> Augment:
    """Return a function that augments a window (T, height, width, 3) and its targets (K,).

    Windows are mirrored only if the sign of every target in a mirrored scene is known.

    Raises:
        ConfigError: windows are to be zoomed or shifted, and the effect on a target is unknown.
    """
    known = set(columns) <= set(MIRROR_SIGNS)
    if options.flip and not known:
        logger.info(f"finetune: windows are not mirrored, since the effect on {', '.join(columns)} is unknown")
    unknown = [c for c in columns if c not in ZOOM_POWERS]
    if options.zoom > 1 and unknown:
        raise ConfigError(f"finetune.zoom: its effect on {', '.join(unknown)} is unknown", hint="--finetune.zoom 1")
    moved = [c for c in columns if c not in SHIFT_INVARIANT]
    if options.shift and moved:
        raise ConfigError(f"finetune.shift: its effect on {', '.join(moved)} is unknown", hint="--finetune.shift 0")
    signs = np.array([MIRROR_SIGNS.get(c, np.nan) for c in columns], np.float32)
    powers = np.array([ZOOM_POWERS.get(c, 0) for c in columns], np.float32)

    def augment(window: Image, targets: Targets, rng: np.random.Generator) -> tuple[Image, Targets]:
        mirrored = rng.random() < 0.5
        shift = 255 * options.brightness * rng.uniform(-1, 1)
        stretch = 1 + options.contrast * rng.uniform(-1, 1)
        if mirrored and options.flip and known:
            window, targets = window[:, :, ::-1], targets * signs
        if options.zoom > 1 or options.shift:
            factor, shift_by = float(options.zoom ** rng.uniform(-1, 1)), options.shift * rng.uniform(-1, 1, 2)
            window, targets = _zoom(window, factor, shift_by), targets * factor**powers
        mean = float(window.mean())
        levels = (np.arange(256) - mean) * stretch + mean + shift
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[window], targets

    return augment


def _zoom(window: Image, factor: float, shift: Floats) -> Image:
    """Enlarge (T, height, width, 3) about the middle, or shrink it, then shift it; fill the rim with its mirror image.

    `shift` is a share of the width and of the height.
    """
    height, width = window.shape[1:3]
    scale = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 0, factor)
    scale[:, 2] += shift * (width, height)
    size, border = (width, height), cv2.BORDER_REFLECT_101
    frames = [cv2.warpAffine(np.ascontiguousarray(frame), scale, size, borderMode=border) for frame in window]
    return np.stack(frames).astype(np.uint8, copy=False)


class ImageWindowBatches(Batches):
    """Batches of windows (n, T, height, width, 3) and targets (n, K), decoded ahead of the network in bounded memory.

    Order and augmentation depend only on the seed, the epoch and the example, not on how threads interleave.
    """

    def __init__(
        self,
        read: ReadWindow,
        indices: NDArray[np.int64],
        targets: Floats,
        batch: int,
        *,
        threads: int = 0,
        seed: int | None = None,
        augment: Augment | None = None,
        only_full: bool = False,
    ) -> None:
        """Plan batches of `batch` examples each, out of `indices`.

        Args:
            read: returns an example's window; called by several threads at once.
            targets: (N, K) of all examples.
            threads: that decode; 0: one per core.
            seed: for shuffling in each epoch; None keeps the order.
            augment: changes each window in each epoch.
            only_full: leave out an epoch's last batch if it is not full.
        """

        def read_windows(examples: NDArray[np.int64]) -> Image:
            return np.stack([read(int(i)) for i in examples])

        super().__init__(read_windows, indices, targets[indices], batch, seed)
        self.workers = threads or cpu_count()
        self.max_queue_size = QUEUED_BATCHES * self.workers
        self._augment, self._only_full = augment, only_full

    def __len__(self) -> int:
        return max(1, len(self._rows) // self._batch) if self._only_full else super().__len__()

    @property
    def examples(self) -> int:
        """The number of windows."""
        return len(self._rows)

    def begin(self, epoch: int, *, shuffle: bool = True) -> None:
        """Draw an epoch's order; call it before `fit`, since Keras' threads start before `on_epoch_begin`."""
        self._epoch = epoch
        if shuffle:
            self._order = np.random.default_rng((self._seed or 0, epoch)).permutation(len(self._rows))

    def on_epoch_begin(self) -> None:
        """Keep the order that `begin` drew."""

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        windows, targets = super().__getitem__(index)
        if self._augment is not None:
            examples = self._rows[self._chosen(index)]
            for k, i in enumerate(examples):
                rng = np.random.default_rng((self._seed or 0, self._epoch, int(i)))
                windows[k], targets[k] = self._augment(windows[k], targets[k], rng)
        return windows, targets
