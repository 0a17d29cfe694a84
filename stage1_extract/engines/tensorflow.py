"""The TensorFlow engine, for GPUs, each with a copy of the trunk, or for the CPU."""

from __future__ import annotations

import queue
from typing import Any

import keras
import tensorflow as tf
from numpy.typing import NDArray

from features._common.types import Image
from stage1_extract.engines import gpu
from stage1_extract.engines.folding import fold_scales

CPU_BATCH = 32
KERAS_POLICIES = {"float32": "float32", "tf32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class TensorFlowRunner:
    """A `Runner` with one `tf.function` per device; a GPU computes a batch while the next one is transferred to it.

    Args:
        model: the trunk, uint8 frames → float32 map.
        batch: frames per call; 0: 32 on a CPU, on a GPU as many as its memory holds.
        precision: what it computes in. With half precision, weights stay in float32.
        dtype: type of the maps it returns.
        devices: TensorFlow's device names; default: all GPUs, else the CPU.

    Raises:
        ConfigError: a card does not compute in this precision, or its memory is too small.
    """

    def __init__(
        self, model: keras.Model, batch: int, precision: str, dtype: str, devices: list[str] | None = None
    ) -> None:
        gpu.check_gpu_precision(precision, gpu.capabilities())
        gpus = [d.name for d in tf.config.list_logical_devices("GPU")]
        devices = devices or gpus or ["/CPU:0"]
        # TF32 has 10 bits of mantissa, which is not the recipe's float32
        tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
        models = [_folded_on(device, model, precision) for device in devices]
        calls_per_device = 2 if gpus else 1
        self.lanes = calls_per_device * len(devices)
        self.batch = batch or CPU_BATCH
        if gpus and not batch:
            self.batch = _batch_on_gpu(models[0], dtype, devices[0], calls_per_device)
        self.replicas = [_compiled(m, self.batch, dtype, d) for m, d in zip(models, devices, strict=True)]
        if gpus:
            frames = tf.zeros((self.batch, *model.input.shape[1:]), tf.uint8)
            compiled = [_compiled(m, self.batch, dtype, d, jit=True) for m, d in zip(models, devices, strict=True)]
            self.replicas = [gpu.faster(*pair, frames) for pair in zip(self.replicas, compiled, strict=True)]
        self._free: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        for pair in list(zip(devices, self.replicas, strict=True)) * calls_per_device:
            self._free.put(pair)

    def __call__(self, frames: Image) -> dict[str, NDArray[Any]]:
        """Compute maps: (n, height, width, 3) uint8 → (n, …) by stream."""
        device, run = self._free.get()
        try:
            with tf.device(device):
                maps = {name: values.numpy() for name, values in run(tf.constant(frames)).items()}
        finally:
            self._free.put((device, run))
        return maps


def reference_maps(model: keras.Model, frames: Image) -> dict[str, NDArray[Any]]:
    """Compute the trunk's maps in float32 on the CPU, the reference for every engine."""
    with tf.device("/CPU:0"):
        maps = tf.function(lambda x: model(x, training=False), autograph=False)(frames)
    return {name: values.numpy() for name, values in maps.items()}


def _folded_on(device: str, model: keras.Model, precision: str) -> keras.Model:
    with tf.device(device):
        return fold_scales(model, KERAS_POLICIES[precision])


def _compiled(model: keras.Model, batch: int | None, dtype: str, device: str, jit: bool = False) -> Any:
    """A `tf.function` of uint8 frames; with a fixed batch, all shapes are known when its graph is optimised."""

    def run(frames: Any) -> Any:
        with tf.device(device):
            return {name: tf.cast(maps, dtype) for name, maps in model(frames, training=False).items()}

    spec = tf.TensorSpec((batch, *model.input.shape[1:]), tf.uint8)
    return tf.function(run, input_signature=[spec], autograph=False, jit_compile=jit or None)


def _batch_on_gpu(model: keras.Model, dtype: str, device: str, calls: int) -> int:
    """Frames per call for which so many calls at once fit into the card's free memory; 32 if that is not known."""
    free = gpu.free_memory()
    if free is None:
        return CPU_BATCH
    run, name = _compiled(model, None, dtype, device), device.rsplit("device:")[-1]

    def peak(count: int) -> int:
        tf.config.experimental.reset_memory_stats(name)
        before = tf.config.experimental.get_memory_info(name)["current"]
        run(tf.zeros((count, *model.input.shape[1:]), tf.uint8))
        return calls * int(tf.config.experimental.get_memory_info(name)["peak"] - before)

    return gpu.batch_for_memory(free, peak)
