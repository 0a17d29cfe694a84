"""The TensorFlow engine, for GPUs, each with a copy of the trunk, or for the CPU."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray

from features._common.types import Image
from features.errors import ConfigError

CPU_BATCH = 32
KERAS_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class TensorFlowRunner:
    """A `Runner` with one `tf.function` per device; a GPU computes a batch while the next one is transferred to it.

    Args:
        model: the trunk, uint8 frames → float32 map.
        batch: frames per call; 0: 32 on a CPU, on a GPU as many as its memory holds.
        precision: what it computes in. With half precision, weights and batch norm stay in float32.
        dtype: type of the maps it returns.
        devices: TensorFlow's device names; default: all GPUs, else the CPU.
    """

    def __init__(
        self, model: keras.Model, batch: int, precision: str, dtype: str, devices: list[str] | None = None
    ) -> None:
        gpus = [d.name for d in tf.config.list_logical_devices("GPU")]
        devices = devices or gpus or ["/CPU:0"]
        if gpus and precision == "float32":
            # TF32 has 10 bits of mantissa, which is not the recipe's float32
            tf.config.experimental.enable_tensor_float_32_execution(False)
        self.replicas = [_replica(model, precision, dtype, device) for device in devices]
        calls_per_device = 2 if gpus else 1
        self.lanes = calls_per_device * len(devices)
        self._free: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        for pair in list(zip(devices, self.replicas, strict=True)) * calls_per_device:
            self._free.put(pair)

        def run_all_lanes(size: int) -> None:
            frames = tf.zeros((size, *model.input.shape[1:]), tf.uint8).numpy()
            with ThreadPoolExecutor(self.lanes) as pool:
                list(pool.map(self, [frames] * self.lanes))

        self.batch = batch or (largest_batch(run_all_lanes) if gpus else CPU_BATCH)

    def __call__(self, frames: Image) -> dict[str, NDArray[Any]]:
        """Compute maps: (n, height, width, 3) uint8 → (n, …) by stream."""
        device, run = self._free.get()
        try:
            with tf.device(device):
                maps = {name: values.numpy() for name, values in run(tf.constant(frames)).items()}
        finally:
            self._free.put((device, run))
        return maps


def largest_batch(run: Callable[[int], object]) -> int:
    """The largest power of two, up to 512, for which `run` does not exhaust the memory; a ConfigError if 1 does."""
    largest = 0
    try:
        for exponent in range(10):
            run(2**exponent)
            largest = 2**exponent
    except tf.errors.ResourceExhaustedError:
        if largest == 0:
            raise ConfigError(
                "the GPU's memory is too small for even one frame",
                hint="smaller --frames.width and --frames.height, or CUDA_VISIBLE_DEVICES= to run on the CPU",
            ) from None
    return largest


def reference_maps(model: keras.Model, frames: Image) -> dict[str, NDArray[Any]]:
    """Compute the trunk's maps in float32 on the CPU, the reference for every engine."""
    with tf.device("/CPU:0"):
        maps = tf.function(lambda x: model(x, training=False), autograph=False)(frames)
    return {name: values.numpy() for name, values in maps.items()}


def _replica(model: keras.Model, precision: str, dtype: str, device: str) -> Any:
    policy = KERAS_POLICIES[precision]
    with tf.device(device):
        replica = model if policy == "float32" and device == "/CPU:0" else _clone_with_policy(model, policy)

    def run(frames: Any) -> Any:
        with tf.device(device):
            return {name: tf.cast(maps, dtype) for name, maps in replica(frames, training=False).items()}

    # one trace for all batch sizes, several of which are tried on a GPU
    spec = tf.TensorSpec((None, *model.input.shape[1:]), tf.uint8)
    return tf.function(run, input_signature=[spec], autograph=False)


def _clone_with_policy(model: keras.Model, policy: str) -> keras.Model:
    """Clone the model so that it computes under a Keras dtype policy."""

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # plain operations have no policy
            config["dtype"] = policy
        return layer.__class__.from_config(config)

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    clone.set_weights(model.get_weights())
    return clone
