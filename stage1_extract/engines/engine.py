"""The engine: runs the trunk over batches of uint8 frames, with TensorFlow, OpenVINO or ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from features._common.plain_text import one_line
from features._common.types import Image
from features.errors import ConfigError, DataError, FramebankError
from stage1_extract.backbone.onnx_graph import OnnxNetwork
from stage1_extract.backbone.onnx_trunk import OnnxTrunk
from stage1_extract.backbone.trunk import Trunk
from stage1_extract.engines import onnxruntime, openvino, tensorflow
from stage1_extract.engines.quantised_network import QuantisedNetwork

MAX_COMPARED_FRAMES = 8  # frames that TensorFlow computes too, to measure the engine's relative error
# float32 has a relative error of about 1e-6, float16 1e-3, bfloat16 1e-2; noise or an overflow 1
MAX_RELATIVE_ERROR = {"float32": 1e-4, "tf32": 1e-2, "float16": 0.1, "bfloat16": 0.1, "int8": 0.2}
INFINITE_HALF = 0x7C00  # the bits of infinity in half precision
OPENVINO_PRECISIONS = ("float32", "bfloat16", "int8")

Maps = dict[str, NDArray[Any]]  # maps of the same frames, by stream


class Runner(Protocol):
    """Runs batches of `batch` frames through a network; up to `lanes` threads may call it at once."""

    batch: int
    lanes: int

    def __call__(self, frames: Image) -> Maps: ...


class Engine:
    """Runs a trunk over full batches; smaller ones are padded, so that a frame's map doesn't depend on its batch.

    All engines in float32 share one fingerprint, so one engine can continue a store that another began: their maps
    differ by rounding only, about 1e-6 of the map's size, 500 times less than the rounding to half precision. Each run
    measures the relative error of its first frames' maps and records it in the store.

    Args:
        trunk: the network; its recipe has the precision.
        batch: frames per batch; 0: the engine's default.
        engine: `auto`, or what `choose_engine` returns.
        network: the quantised trunk, for int8, whose digest the recipe then states.

    Raises:
        ConfigError: this machine lacks the engine or the precision; some are known only with the first batch.
    """

    def __init__(
        self,
        trunk: Trunk | OnnxTrunk,
        batch: int = 0,
        engine: str = "auto",
        network: QuantisedNetwork | None = None,
    ) -> None:
        if network is not None and isinstance(trunk, Trunk):
            recipe = replace(trunk.recipe, quantised=network.digest)
            trunk = replace(trunk, recipe=recipe, quantisation_error=network.errors)
        self.trunk, self.passes, self._network = trunk, 0, network  # passes: number of batches so far
        gpus, has_openvino = len(tf.config.list_physical_devices("GPU")), openvino.openvino_installed()
        if isinstance(trunk, OnnxTrunk):
            self.name = choose_onnx_engine(engine, trunk.recipe.precision, has_openvino)
        else:
            self.name = choose_engine(engine, trunk.recipe.precision, gpus, has_openvino)
        self.relative_error: float | None = None  # of the first frames, compared with TensorFlow in float32
        self._batch = batch

    @cached_property
    def runner(self) -> Runner:
        """The compiled network. Built on first use, because compiling takes seconds."""
        recipe = self.trunk.recipe
        if isinstance(self.trunk, OnnxTrunk):
            return self._onnx_runner(self.trunk.network)
        if recipe.precision == "int8" and self._network is None:
            raise RuntimeError("int8 without a quantised network would be float32")
        if self.name == "openvino":
            return openvino.OpenVinoRunner(self.trunk.model, self._batch, recipe.precision, self._network)
        return tensorflow.TensorFlowRunner(self.trunk.model, self._batch, recipe.precision, recipe.dtype)

    def _onnx_runner(self, network: OnnxNetwork) -> Runner:
        recipe = self.trunk.recipe
        try:
            if self.name == "openvino":
                return openvino.OpenVinoRunner(network, self._batch, recipe.precision)
            return onnxruntime.OnnxRuntimeRunner(network, self._batch)
        except (FramebankError, MemoryError):
            raise
        except Exception as e:  # the engines' errors have no common base
            line = one_line(" ".join(str(e).split())[:300])
            hint = "--extract.engine auto, or export the network again"
            raise DataError(f"{recipe.weights}: {self.name} cannot run this network ({line})", hint=hint) from None

    @property
    def batch(self) -> int:
        """Frames per batch."""
        return self.runner.batch

    def __str__(self) -> str:
        error = "" if self.relative_error is None else f" (relative error {self.relative_error:.1e})"
        return f"{self.name} in {self.trunk.recipe.precision}{error}"

    def submit(self, frames: Image) -> Future[Maps]:
        """Start computing the maps of one batch, (n, height, width, 3) uint8, n ≤ batch; a full one is not copied.

        Returns:
            A future of the maps by stream, (n, …) each, in the stored type. It raises ConfigError if the relative error
            exceeds `MAX_RELATIVE_ERROR`, and DataError if a map exceeds the range of the stored type.
        """
        padding = [(0, self.batch - len(frames)), (0, 0), (0, 0), (0, 0)]
        batch = np.pad(frames, padding) if len(frames) < self.batch else frames
        self.passes += 1
        return self._pool.submit(self._run, batch, len(frames), self.passes == 1)

    def __call__(self, frames: Image) -> Maps:
        """Compute the maps of any number of frames, in several batches if needed; see `submit`."""
        futures = [self.submit(frames[i : i + self.batch]) for i in range(0, len(frames), self.batch)]
        batches = [future.result() for future in futures]
        return {name: np.concatenate([maps[name] for maps in batches]) for name in batches[0]}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.runner.lanes, "trunk")

    def _run(self, batch: Image, count: int, first: bool) -> Maps:
        maps = {name: values[:count] for name, values in self.runner(batch).items()}
        if first:
            self._measure_error(batch[: min(count, MAX_COMPARED_FRAMES)], maps)
        return {name: self._stored(name, values) for name, values in maps.items()}

    def _stored(self, stream: str, maps: NDArray[Any]) -> NDArray[Any]:
        """Cast the maps of a stream to the stored type."""
        if maps.dtype != self.trunk.recipe.dtype:
            # ten times as fast as NumPy's cast; values that overflow become infinite in both
            maps = tf.cast(maps, self.trunk.recipe.dtype).numpy()
        # by their bits, which takes a tenth of the time of np.isfinite: those of infinity and NaN are the largest
        if maps.dtype == np.float16 and (maps.view(np.uint16) & 0x7FFF).max() >= INFINITE_HALF:
            raise DataError(
                f"the maps of {stream} exceed the range of half precision (65504)", hint="--extract.dtype float32"
            )
        return maps

    def _measure_error(self, frames: Image, maps: Maps) -> None:
        precision = self.trunk.recipe.precision
        if self.name == "onnxruntime":
            self.relative_error = 0.0  # it is the reference
            return
        if isinstance(self.trunk, OnnxTrunk):
            reference, expected = "ONNX Runtime", onnxruntime.onnxruntime_maps(self.trunk.network, frames)
            if expected is None:
                return
        else:
            reference, expected = "TensorFlow", tensorflow.reference_maps(self.trunk.model, frames)
        errors = [  # without that of rounding to half precision, which TensorFlow does inside its graph
            relative_error(maps[name][: len(frames)], values.astype(maps[name].dtype))
            for name, values in expected.items()
        ]
        error, limit = float(np.max(errors)), MAX_RELATIVE_ERROR[precision]
        if not error <= limit:  # NaN is an error too
            raise ConfigError(
                f"{self.name} in {precision}: maps differ too much from those of {reference} in float32",
                expected=f"a relative error of at most {limit:g}",
                got=f"{error:.2g}",
                hint=f"--extract.engine {reference.replace(' ', '').lower()}"
                if precision == "float32"
                else "--extract.precision float32",
            )
        # TensorFlow in float32 is the reference itself, but for the folding, which was checked here
        self.relative_error = 0.0 if self.name == "tensorflow" and precision == "float32" else error


def relative_error(maps: NDArray[Any], expected: NDArray[Any]) -> float:
    """‖maps − expected‖ / ‖expected‖, Euclidean norms over all values."""
    reference = expected.astype(np.float64)
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(maps - reference)) / (norm or 1.0)


def choose_engine(engine: str, precision: str, gpus: int, openvino: bool) -> str:
    """For `auto`, choose `openvino` if it is installed, has the precision, and there is no GPU, else `tensorflow`.

    Only OpenVINO computes in int8. A ConfigError if the engine lacks the precision, or OpenVINO is not installed.
    """
    if engine == "onnxruntime":
        raise ConfigError("ONNX Runtime runs ONNX files only", hint="--extract.engine auto")
    if engine == "auto" and precision != "int8":
        return "openvino" if openvino and not gpus and precision in OPENVINO_PRECISIONS else "tensorflow"
    if engine == "tensorflow":
        if precision == "int8":
            raise ConfigError("the tensorflow engine cannot compute in int8", hint="--extract.engine openvino")
        return engine
    if not openvino:
        hint = 'pip install "framebank[cpu]"'
        if precision != "int8":
            hint += ", or --extract.engine tensorflow if there is no wheel for this platform"
        raise ConfigError("OpenVINO is not installed", hint=hint)
    if precision not in OPENVINO_PRECISIONS:
        hint = "--extract.precision bfloat16" if precision == "float16" else "--extract.engine tensorflow"
        raise ConfigError(f"the openvino engine cannot compute in {precision}", hint=hint)
    return "openvino"


def choose_onnx_engine(engine: str, precision: str, openvino: bool) -> str:
    """For an ONNX file and `auto`, choose `openvino` if it is installed, else `onnxruntime`.

    A ConfigError for an engine that does not run ONNX files, or not in this precision.
    """
    if precision == "int8":
        raise ConfigError("ONNX files are not quantised here", hint="--extract.precision float32, or a quantised file")
    if engine == "tensorflow":
        raise ConfigError("TensorFlow does not run ONNX files", hint="--extract.engine auto")
    if engine == "onnxruntime" or (engine == "auto" and not openvino):
        if precision != "float32":
            raise ConfigError(f"ONNX Runtime does not compute in {precision} here", hint="--extract.precision float32")
        return "onnxruntime"
    return choose_engine("openvino", precision, 0, openvino)
