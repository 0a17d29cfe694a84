"""How much arithmetic a network needs per frame, and how much this machine does per second at most."""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
from keras import layers

SIZE, ROUNDS = 2048, 5


def operations(model: keras.Model) -> float:
    """Multiplications and additions of a model's convolutions for one input."""
    total = 0.0
    for layer in model._flatten_layers():
        if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)):
            positions = np.prod(layer.output.shape[1:3])
            kernels = [w.shape for w in layer.weights if len(w.shape) == 4]
            total += 2 * float(positions) * sum(float(np.prod(shape)) for shape in kernels)
    return total


def peak(precision: str) -> float | None:
    """Operations per second of a large matrix product in OpenVINO; None without it, or without the precision."""
    try:
        import openvino as ov
        from openvino import opset13 as ops

        from stage1_extract.engines.openvino import cpu_capabilities, openvino_core
    except ImportError:
        return None
    needed = {"float32": "FP32", "bfloat16": "BF16", "int8": "INT8"}[precision]
    if needed not in cpu_capabilities():
        return None

    def factor(node: Any) -> Any:
        if precision != "int8":
            return node
        edges = [ops.constant(np.float32(x)) for x in (-128 / 64, 127 / 64, -128 / 64, 127 / 64)]
        return ops.fake_quantize(node, *edges, levels=256)

    values = np.random.default_rng(0).integers(-127, 128, (SIZE, SIZE)).astype(np.float32) / 64
    x = ops.parameter([SIZE, SIZE], np.float32)
    y = ops.matmul(factor(x), factor(ops.constant(values)), False, False)
    hint = "bf16" if precision == "bfloat16" else "f32"
    model = ov.Model([ops.reduce_sum(y, ops.constant([0, 1]), False)], [x], "product")
    run = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    run([values])
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run([values])
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds)
