"""The TensorFlow engine: on GPUs, each with a copy of the trunk and two passes in flight, or on the CPU."""

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
FIRST_TRY, LARGEST = 8, 512
POLICY = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class TensorFlowRunner:
    """Passes of a trunk in one `tf.function` a device; `lanes` threads may call it at once.

    A device computes one pass while the next one's frames are on their way to it as uint8, in one transfer. With
    several devices each has a replica of the weights and takes the next pass that comes.

    Args:
        model: the trunk, uint8 frames → float32 map.
        batch: frames a pass; 0: on a GPU as many as its memory holds for all passes in flight, on a CPU 32.
        precision: what it computes in. In half precision weights stay float32 and batch norm is computed in it.
        dtype: what it returns.
        devices: where; default: all GPUs, else the CPU.

    Attributes:
        lanes: passes in flight.
    """

    def __init__(
        self, model: keras.Model, batch: int, precision: str, dtype: str, devices: list[str] | None = None
    ) -> None:
        graphics = [d.name for d in tf.config.list_logical_devices("GPU")]
        devices = devices or graphics or ["/CPU:0"]
        if graphics and precision == "float32":
            # 10 bits of mantissa are not what a recipe of float32 says
            tf.config.experimental.enable_tensor_float_32_execution(False)
        self.replicas = [_replica(model, precision, dtype, device) for device in devices]
        copies = 2 if graphics else 1
        self.lanes = copies * len(devices)
        self._free: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        for pair in list(zip(devices, self.replicas, strict=True)) * copies:
            self._free.put(pair)
        self.batch = batch or (largest_batch(self._fits(model.input.shape[1:])) if graphics else CPU_BATCH)

    def __call__(self, frames: Image) -> NDArray[Any]:
        """(n, height, width, 3) uint8 → (n, …) maps."""
        device, run = self._free.get()
        try:
            with tf.device(device):
                maps: NDArray[Any] = run(tf.constant(frames)).numpy()
        finally:
            self._free.put((device, run))
        return maps

    @property
    def traces(self) -> int:
        """How often a graph was traced; one a device, whatever the batches."""
        return sum(run.experimental_get_tracing_count() for run in self.replicas)

    def _fits(self, shape: tuple[int, ...]) -> Callable[[int], object]:
        """Runs all passes in flight at a batch size, which raises ResourceExhaustedError where memory says no."""

        def attempt(batch: int) -> object:
            frames = tf.zeros((batch, *shape), tf.uint8).numpy()
            with ThreadPoolExecutor(self.lanes) as pool:
                return list(pool.map(lambda _: self(frames).shape, range(self.lanes)))

        return attempt


def largest_batch(fits: Callable[[int], object]) -> int:
    """The largest power of two, up to 512, at which `fits` raises no ResourceExhaustedError.

    Raises:
        ConfigError: not even one frame fits.
    """
    size = FIRST_TRY
    while not _runs(fits, size):
        if size == 1:
            raise ConfigError(
                "the GPU's memory does not hold one frame's pass",
                hint="--frames.width and --frames.height smaller, or CUDA_VISIBLE_DEVICES= to run on the CPU",
            )
        size //= 2
    while size >= FIRST_TRY and size < LARGEST and _runs(fits, 2 * size):
        size *= 2
    return size


def _runs(fits: Callable[[int], object], size: int) -> bool:
    try:
        fits(size)
    except tf.errors.ResourceExhaustedError:
        return False
    return True


def reference_maps(model: keras.Model, frames: Image) -> NDArray[Any]:
    """The trunk's maps in float32 on the CPU: what every engine is measured against."""
    with tf.device("/CPU:0"):
        maps: NDArray[Any] = tf.function(lambda x: model(x, training=False), autograph=False)(frames).numpy()
    return maps


def _replica(model: keras.Model, precision: str, dtype: str, device: str) -> Any:
    policy = POLICY[precision]
    with tf.device(device):
        own = model if policy == "float32" and device == "/CPU:0" else _twin(model, policy)

    def run(frames: Any) -> Any:
        with tf.device(device):
            return tf.cast(own(frames, training=False), dtype)

    # any batch in one trace; only full batches come, but a batch size is tried out here too
    spec = tf.TensorSpec((None, *model.input.shape[1:]), tf.uint8)
    return tf.function(run, input_signature=[spec], autograph=False)


def _twin(model: keras.Model, policy: str) -> keras.Model:
    """A copy of the model that computes under a Keras dtype policy."""

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        if isinstance(layer, keras.Layer):  # operations are cloned as they are
            config["dtype"] = policy
        return layer.__class__.from_config(config)

    twin = keras.models.clone_model(model, clone_function=copy, recursive=True)
    twin.set_weights(model.get_weights())
    return twin
