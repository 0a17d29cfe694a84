"""The OpenVINO engine, for CPUs: the same graph and weights as TensorFlow's, compiled for the processor."""

from __future__ import annotations

import math
import queue
import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from joblib import cpu_count
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from features._common.types import Image
from features.errors import ConfigError
from stage1_extract.backbone.onnx_graph import OnnxNetwork
from stage1_extract.engines.folding import fold_scales
from stage1_extract.engines.quantised_network import QuantisedNetwork

BATCH = 4  # frames per call
# how many of them the network computes at once, so that their activations fit into a core's cache: on Zen 4, a whole
# extraction with EfficientNet-Lite0 takes 12 % less time in float32 than with 4 frames, and 2 to 3 % less in the others
FRAMES_AT_ONCE = {"float32": 1, "bfloat16": 2, "int8": 2}
MIN_WEIGHTS = 256  # smaller constants stay in the graph that OpenVINO converts
# the layers that are not quantised compute in float32, so that every processor gives the same maps
PRECISION_NAMES = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}

# prevents OpenVINO from sending usage data over the network, also where Keras imports it to export a model
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def openvino_installed() -> bool:
    """Whether the optional extra `cpu` is installed."""
    return find_spec("openvino") is not None


@cache
def openvino_core() -> Any:
    """Return the process's only OpenVINO `Core`, which is never destroyed.

    If two are destroyed in the order of creation, a freed signal stack is left, and the next signal kills the process.
    """
    import openvino

    return openvino.Core()


def cpu_capabilities() -> list[str]:
    """What the processor computes in, such as BF16 and INT8."""
    return list(openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoRunner:
    """A `Runner` with one inference stream per core, so that no core waits for another within a layer.

    Args:
        model: the trunk, uint8 frames → float32 map, of Keras or of an ONNX file.
        batch: frames per call; 0: 4. An ONNX file may have its own.
        precision: float32, bfloat16 or int8.
        network: the quantised trunk, for int8.

    Raises:
        ConfigError: the processor does not compute in this precision.
    """

    def __init__(
        self,
        model: keras.Model | OnnxNetwork,
        batch: int,
        precision: str,
        network: QuantisedNetwork | None = None,
    ) -> None:
        capabilities = cpu_capabilities()
        if precision == "bfloat16" and "BF16" not in capabilities:  # OpenVINO would silently use float32
            raise ConfigError(
                "this processor cannot compute in bfloat16",
                expected="one with AVX512_BF16 or AMX",
                got=", ".join(sorted(capabilities)),
                hint="--extract.precision float32",
            )
        fixed = model.batch if isinstance(model, OnnxNetwork) else None
        self.batch = fixed or batch or BATCH
        self._at_once = fixed or math.gcd(self.batch, FRAMES_AT_ONCE[precision])
        if isinstance(model, OnnxNetwork):
            shape, self._outputs = (self._at_once, *model.size[::-1], 3), model.outputs
            graph = openvino_core().read_model(model.for_batch(self._at_once))
        else:
            shape = (self._at_once, *model.input.shape[1:])
            if network is None:
                graph, self._outputs = read_graph(model, shape)
            else:
                self._outputs = dict(network.outputs)
                graph = openvino_core().read_model(network.graph, network.weights)
                graph.reshape(shape)
        compiled = openvino_core().compile_model(
            graph,
            "CPU",
            {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "INFERENCE_PRECISION_HINT": PRECISION_NAMES[precision],  # default: bfloat16 if the processor has it
                "INFERENCE_NUM_THREADS": cpu_count(),
                # otherwise several processes of one machine, as on a cluster, all use its first cores
                "ENABLE_CPU_PINNING": False,
            },
        )
        streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self.lanes = streams + 1  # one copies its data while the others compute
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.lanes):
            self._free.put(compiled.create_infer_request())
        # the first call in one thread only: OpenVINO's bindings initialise NumPy in it, and two threads that do so at
        # once deadlock (2026.4)
        self(np.zeros((self.batch, *shape[1:]), np.uint8))

    def __call__(self, frames: Image) -> dict[str, NDArray[Any]]:
        """Compute maps: (batch, height, width, 3) uint8 → (batch, …) float32, by stream."""
        request = self._free.get()
        try:
            maps: dict[str, NDArray[Any]] = {}
            for start in range(0, len(frames), self._at_once):
                part = slice(start, start + self._at_once)
                request.infer([frames[part]], share_inputs=True)
                for stream, name in self._outputs.items():
                    computed = request.get_tensor(name).data
                    if stream not in maps:
                        maps[stream] = np.empty((len(frames), *computed.shape[1:]), computed.dtype)
                    maps[stream][part] = computed
            return maps
        finally:
            self._free.put(request)


def read_graph(model: keras.Model, shape: tuple[int, ...]) -> tuple[Any, dict[str, str]]:
    """Convert the model, for frames of a shape; returns the network, and by stream the name of its maps' tensor.

    Weights are inputs of the graph that OpenVINO converts, and become constants afterwards: with them, conversion takes
    up to half a minute, and without them a second.
    """
    from openvino import convert_model, opset13, passes

    spec, folded = tf.TensorSpec(shape, tf.uint8), fold_scales(model)
    graph = tf.function(lambda x: folded(x, training=False), input_signature=[spec], autograph=False)
    frozen = convert_variables_to_constants_v2(graph.get_concrete_function())
    outputs = {name: tensor.name for name, tensor in zip(sorted(model.output), frozen.outputs, strict=True)}
    definition, weights = frozen.graph.as_graph_def(), dict[str, NDArray[Any]]()
    for node in definition.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum:
            value = tf.make_ndarray(node.attr["value"].tensor)
            if value.size >= MIN_WEIGHTS:
                weights[node.name] = value
                node.op = "Placeholder"
                del node.attr["value"]
                node.attr["shape"].shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
    without_weights = tf.Graph()
    with without_weights.as_default():
        tf.import_graph_def(definition, name="")
    network = convert_model(without_weights, share_weights=False)
    for parameter in network.get_parameters():
        value = weights.get(parameter.get_friendly_name().removesuffix(":0"))
        if value is not None:
            constant = opset13.constant(value).output(0)
            for target in parameter.output(0).get_target_inputs():
                target.replace_source_output(constant)
            network.remove_parameter(parameter)
    network.validate_nodes_and_infer_types()
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())  # of transposed kernels
    folding.run_passes(network)
    return network, outputs
