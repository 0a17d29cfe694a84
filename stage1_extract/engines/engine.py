"""The engine: runs the trunk over batches of uint8 frames, through whichever runner suits the machine."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import ConfigError, DataError
from stage1_extract.backbone.trunk import Trunk
from stage1_extract.engines import openvino, tensorflow

COMPARED_FRAMES = 8  # frames at most that are computed by TensorFlow as well
# relative error an engine may have: float32 has about 1e-6, float16 1e-3, bfloat16 1e-2, noise or an overflow 1
MAX_RELATIVE_ERROR = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.1}


class Runner(Protocol):
    """One engine: passes of `batch` frames, of which `lanes` may be under way at once, each in a thread of its own."""

    @property
    def batch(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    def __call__(self, frames: Image) -> NDArray[Any]: ...


class Engine:
    """Runs a trunk over full batches: a shorter one is padded, so that a frame's numbers don't depend on its batch.

    Engines in float32 share one fingerprint, and a store begun with one goes on with another: their maps differ by
    rounding alone, about 1e-6 of the map's size, a five-hundredth of what half precision rounds off when it is stored.
    So frames of the same picture are equal to the bit only where one engine on one machine made both. What the first
    frames' maps differ by from TensorFlow's in float32 is measured in each run and kept in the store.

    Args:
        trunk: what to run; its recipe says in which precision.
        batch: frames a pass; 0: what suits the engine.
        asked: `auto`, `tensorflow` or `openvino`, see `choose_engine`.

    Attributes:
        name: the engine chosen.
        passes: how many were begun.
        relative_error: ‖maps − float32 TensorFlow's‖ / ‖float32 TensorFlow's‖ on the first frames; None before them.

    Raises:
        ConfigError: an engine or a precision that this machine does not have; where a network must be compiled for
            that, it is when the first frames come.
    """

    def __init__(self, trunk: Trunk, batch: int = 0, asked: str = "auto") -> None:
        self.trunk, self.passes = trunk, 0
        gpus = len(tf.config.list_physical_devices("GPU"))
        self.name = choose_engine(asked, trunk.recipe.precision, gpus, openvino.openvino_installed())
        self.relative_error: float | None = None
        self._batch = batch

    @cached_property
    def runner(self) -> Runner:
        """What passes go through; built when it is first needed, since compiling a network takes seconds."""
        recipe = self.trunk.recipe
        if self.name == "openvino":
            return openvino.OpenVinoRunner(self.trunk.model, self._batch, recipe.precision)
        return tensorflow.TensorFlowRunner(self.trunk.model, self._batch, recipe.precision, recipe.dtype)

    @property
    def batch(self) -> int:
        """Frames a pass."""
        return self.runner.batch

    @property
    def lanes(self) -> int:
        """Passes under way at once."""
        return self.runner.lanes

    def __str__(self) -> str:
        error = "" if self.relative_error is None else f" (relative error {self.relative_error:.1e})"
        return f"{self.name} in {self.trunk.recipe.precision}{error}"

    def submit(self, frames: Image) -> Future[NDArray[Any]]:
        """(n ≤ batch, height, width, 3) uint8 → the promise of (n, …) maps in the stored type.

        The frames must not change before the maps are there: full batches are not copied.

        Raises:
            ConfigError: by the promise, where maps differ from float32 TensorFlow's by more than `MAX_RELATIVE_ERROR`.
            DataError: by the promise, where maps do not fit the stored type.
        """
        count, full = len(frames), frames
        if count < self.batch:
            full = np.zeros((self.batch, *frames.shape[1:]), np.uint8)
            full[:count] = frames
        self.passes += 1
        return self._pool.submit(self._pass, full, count, self.passes == 1)

    def __call__(self, frames: Image) -> NDArray[Any]:
        """The maps of any number of frames, in as many passes as it takes; else as `submit`."""
        pending: deque[Future[NDArray[Any]]] = deque()
        maps: list[NDArray[Any]] = []
        for at in range(0, len(frames), self.batch):
            pending.append(self.submit(frames[at : at + self.batch]))
            if len(pending) > self.lanes:
                maps.append(pending.popleft().result())
        maps += [promise.result() for promise in pending]
        return maps[0] if len(maps) == 1 else np.concatenate(maps)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.lanes, "trunk")

    def _pass(self, full: Image, count: int, first: bool) -> NDArray[Any]:
        maps = self.runner(full)[:count]
        if first:
            self._compare(full[: min(count, COMPARED_FRAMES)], maps)
        if maps.dtype != self.trunk.recipe.dtype:
            # ten times as fast as NumPy's, and what overflows becomes infinite as there
            maps = tf.cast(maps, self.trunk.recipe.dtype).numpy()
        if maps.dtype == np.float16 and _overflown(maps):
            raise DataError(
                "the map at the cut does not fit half precision (over 65504)", hint="--extract.dtype float32"
            )
        return maps

    def _compare(self, frames: Image, maps: NDArray[Any]) -> None:
        precision = self.trunk.recipe.precision
        if self.name == "tensorflow" and precision == "float32":
            self.relative_error = 0.0  # by definition
            return
        expected = tensorflow.reference_maps(self.trunk.model, frames)
        error, limit = relative_error(maps[: len(frames)], expected), MAX_RELATIVE_ERROR[precision]
        if not error <= limit:  # NaN is an error too
            raise ConfigError(
                f"{self.name} in {precision}: maps that differ too much from TensorFlow's in float32",
                expected=f"a relative error of at most {limit:g}",
                got=f"{error:.2g}",
                hint="--extract.engine tensorflow" if precision == "float32" else "--extract.precision float32",
            )
        self.relative_error = error


def relative_error(maps: NDArray[Any], expected: NDArray[Any]) -> float:
    """‖maps − expected‖ / ‖expected‖, Euclidean norms over all values."""
    wanted = expected.astype(np.float64)
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(maps - wanted)) / (norm or 1.0)


def _overflown(maps: NDArray[np.float16]) -> bool:
    """Whether any value is infinite or NaN, all bits of the exponent set: 7C00 … 7FFF, or FC00 … FFFF below zero.

    NumPy's own test takes ten times as long.
    """
    return bool(maps.view(np.int16).max() >= 0x7C00 or maps.view(np.uint16).max() >= 0xFC00)


def choose_engine(asked: str, precision: str, gpus: int, openvino: bool) -> str:
    """Which engine runs: `openvino` where it is installed and there is no GPU, else `tensorflow`.

    Args:
        asked: `auto`, or the engine the user wants.
        precision: the recipe's; float16 is TensorFlow's alone.
        gpus: how many TensorFlow sees.
        openvino: whether it is installed.

    Raises:
        ConfigError: OpenVINO was asked for and is not installed, or in float16.
    """
    if asked == "auto":
        return "openvino" if openvino and not gpus and precision != "float16" else "tensorflow"
    if asked == "openvino" and not openvino:
        raise ConfigError(
            "OpenVINO is not installed",
            hint="rm .venv/.ready && make setup, or --extract.engine tensorflow where it has no wheel",
        )
    if asked == "openvino" and precision == "float16":
        raise ConfigError(
            "the openvino engine does not compute in float16",
            expected="float32 or bfloat16",
            hint="--extract.precision bfloat16",
        )
    return asked
