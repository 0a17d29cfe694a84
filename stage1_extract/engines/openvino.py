"""The OpenVINO engine, for CPUs: the same graph and weights as the TensorFlow engine's, compiled for the processor."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from features._common.types import Image
from features.errors import ConfigError

# measured: 1 to 4 frames fit the caches, larger batches are slower by up to a third
BATCH = 4
HINT = {"float32": "f32", "bfloat16": "bf16"}


def openvino_installed() -> bool:
    """Whether the optional extra `cpu` is there."""
    return find_spec("openvino") is not None


@cache
def openvino_core() -> Any:
    """OpenVINO's entry, the same for all of this process and never given up.

    Each `Core` puts up a stack for signals and takes it down with itself: when two end in the order they began, what is
    left is a stack that is gone, and the next signal, Ctrl-C for one, ends the process (2026.4).
    """
    # without this it reports its use to its makers over the network
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def check_precision(precision: str, able: Sequence[str]) -> None:
    """Refuse bfloat16 on a processor that is not `able` to compute in it; OpenVINO would quietly take float32.

    Raises:
        ConfigError: says what the processor can do.
    """
    if precision == "bfloat16" and "BF16" not in able:
        raise ConfigError(
            "this processor does not compute in bfloat16",
            expected="one with AVX512_BF16 or AMX",
            got=", ".join(sorted(able)),
            hint="--extract.precision float32",
        )


class OpenVinoRunner:
    """Passes of a trunk in OpenVINO, one stream of passes a core; `lanes` threads may call it at once.

    Streams run independently of each other: cores do not wait for one another within a layer, and copying frames in
    and maps out goes on beside them. A frame's numbers depend neither on the stream nor on the frames beside it.

    Args:
        model: the trunk, uint8 frames → float32 map.
        batch: frames a pass; 0: 4.
        precision: `float32`, or `bfloat16` where the processor computes in it.

    Raises:
        ConfigError: a precision the processor lacks.

    Attributes:
        lanes: passes in flight.
    """

    def __init__(self, model: keras.Model, batch: int, precision: str) -> None:
        check_precision(precision, openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        self.batch = batch or BATCH
        with TemporaryDirectory() as folder:
            network = openvino_core().read_model(_frozen(model, (self.batch, *model.input.shape[1:]), Path(folder)))
        compiled = openvino_core().compile_model(
            network,
            "CPU",
            {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "INFERENCE_PRECISION_HINT": HINT[precision],  # its default is bfloat16 where the processor has it
                "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
            },
        )
        streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.lanes = streams + 1  # one copies while the others compute
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.lanes):
            self._free.put(compiled.create_infer_request())
        # OpenVINO's bindings set up their use of NumPy at the first pass: two threads that do so at once wait for each
        # other for ever, one for the interpreter's lock and one with it (2026.4)
        self(np.zeros((self.batch, *model.input.shape[1:]), np.uint8))

    def __call__(self, frames: Image) -> NDArray[Any]:
        """(batch, height, width, 3) uint8 → (batch, …) float32 maps."""
        request = self._free.get()
        try:
            request.infer([frames], share_inputs=True)
            return np.array(request.get_output_tensor().data)
        finally:
            self._free.put(request)


def _frozen(model: keras.Model, shape: tuple[int, ...], folder: Path) -> Path:
    """The model as a graph with its weights in it, for one batch size.

    OpenVINO reads this file within a second; walking the same graph in memory takes it up to half a minute.
    """
    spec = tf.TensorSpec(shape, tf.uint8)
    graph = tf.function(lambda x: model(x, training=False), input_signature=[spec], autograph=False)
    whole = convert_variables_to_constants_v2(graph.get_concrete_function()).graph
    return Path(tf.io.write_graph(whole, str(folder), "trunk.pb", as_text=False))
