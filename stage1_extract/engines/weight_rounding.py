"""Rounding a convolution's weights to 8 bits so that its outputs change least on calibration frames.

Rounding each weight to the nearest value leaves errors that add up, since neighbouring inputs are alike: in
EfficientNet-Lite0 they make up most of the error of quantisation. Here the weights are rounded one after the other, and
those that are left compensate for the error so far (E. Frantar et al., GPTQ, 2023, after B. Hassibi and D. Stork,
Optimal Brain Surgeon, 1993). What that leaves of the mean goes into the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Image

LEVELS = 127  # weights are −127 … 127 times a scale per output channel
SAMPLES = 512  # positions in a batch of maps at which inputs are sampled
VARIANCE_DAMPING = 0.01  # relative to the mean variance of the inputs


def round_weights(weights: Floats, covariance: Floats) -> Floats:
    """Round weights to multiples of each row's largest magnitude / 127, which stays as it is.

    Args:
        weights: (..., outputs, inputs).
        covariance: (..., inputs, inputs) of the inputs.

    Returns:
        The rounded weights, for which (w − r) · covariance · (w − r) is small.
    """
    count = weights.shape[-1]
    largest = np.abs(weights).argmax(-1)
    scale = np.abs(weights).max(-1) / LEVELS
    scale[scale == 0] = 1.0
    damping = VARIANCE_DAMPING * np.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / count + 1e-12
    inverse = np.linalg.inv(covariance + damping * np.eye(count))
    # the rows of this factor say how each error is best compensated by the weights after it
    factor = np.swapaxes(np.linalg.cholesky((inverse + np.swapaxes(inverse, -1, -2)) / 2), -1, -2)
    remaining, rounded = weights.copy(), np.empty_like(weights)
    for i in range(count):
        column = remaining[..., i]
        steps = np.clip(np.round(column / scale), -LEVELS, LEVELS)
        steps = np.where(largest == i, LEVELS * np.sign(weights[..., i]), steps)  # keeps the scale
        rounded[..., i] = steps * scale
        error = (column - rounded[..., i]) / factor[..., i, i][..., None]
        remaining[..., i + 1 :] -= error[..., None] * factor[..., None, i, i + 1 :]
    return rounded


@dataclass
class InputStatistics:
    """Mean and covariance of a convolution's inputs, summed over batches; one per group of a depthwise one."""

    count: int = 0
    total: Any = 0.0  # (groups, inputs)
    squares: Any = 0.0  # (groups, inputs, inputs)

    def add(self, samples: NDArray[np.float32]) -> None:
        """Add samples (n, groups, inputs)."""
        grouped = samples.swapaxes(0, 1)
        self.count += len(samples)
        self.total = self.total + grouped.sum(1, dtype=np.float64)
        self.squares = self.squares + np.matmul(grouped.swapaxes(1, 2), grouped)

    @property
    def mean(self) -> Floats:
        """(groups, inputs)"""
        return np.asarray(self.total / self.count)

    @property
    def covariance(self) -> Floats:
        """(groups, inputs, inputs)"""
        return np.asarray(self.squares / self.count - self.mean[:, :, None] * self.mean[:, None, :])


@dataclass(frozen=True)
class Convolution:
    """A convolution in an OpenVINO graph: its node, and the constants that it reads."""

    node: Any
    kernel: Any  # (outputs, inputs, h, w), or (groups, outputs, inputs, h, w)
    bias: Any  # (1, outputs, 1, 1), of the addition after it
    statistics: InputStatistics = field(default_factory=InputStatistics)

    @property
    def weights(self) -> Floats:
        """(groups, outputs, inputs · h · w)"""
        kernel = self.kernel.data.astype(np.float64)
        groups = kernel.shape[0] if kernel.ndim == 5 else 1
        return np.asarray(kernel.reshape(groups, kernel.shape[-4], -1))

    def sample(self, maps: NDArray[np.float32], random: np.random.Generator) -> None:
        """Add the inputs at random positions of maps (n, channels, h, w) to the statistics."""
        attributes = self.node.get_attributes()
        strides, size = attributes["strides"], self.kernel.data.shape[-2:]
        edges = zip(attributes["pads_begin"], attributes["pads_end"], strict=True)
        padded = np.pad(maps, [(0, 0), (0, 0), *edges])
        windows = np.lib.stride_tricks.sliding_window_view(padded, size, (2, 3))[:, :, :: strides[0], :: strides[1]]
        at = tuple(random.integers(0, n, SAMPLES) for n in (windows.shape[0], *windows.shape[2:4]))
        groups = self.kernel.data.shape[0] if self.kernel.data.ndim == 5 else 1
        self.statistics.add(windows[at[0], :, at[1], at[2]].reshape(SAMPLES, groups, -1))


def convolutions(model: Any) -> list[Convolution]:
    """The convolutions with constant kernels that are followed by a bias, in an OpenVINO model."""
    eligible = []
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "GroupConvolution"):
            continue
        kernel = node.input_value(1).get_node()
        readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
        if len(readers) == 1 and readers[0].get_type_name() == "Add" and kernel.get_type_name() == "Constant":
            bias = readers[0].input_value(1).get_node()
            if bias.get_type_name() == "Constant" and set(node.get_attributes()["dilations"]) == {1}:
                eligible.append(Convolution(node, kernel, bias))
    return eligible


def round_convolutions(model: Any, batches: Sequence[Image], core: Any) -> list[str]:
    """Round the weights of a float32 OpenVINO model's convolutions in place, and shift their biases.

    The first convolution, and a depthwise one directly after it, keep their weights: quantising their inputs and
    weights makes up a third of the error, and takes 3 % less time.

    Args:
        batches: calibration frames, each (n, height, width, 3) as the model takes them.
        core: OpenVINO's `Core`.

    Returns:
        The names of those that keep their weights, and are not to be quantised.
    """
    from openvino import Model
    from openvino import opset13 as operations

    eligible, random = convolutions(model), np.random.default_rng(0)
    kept = eligible[: 2 if len(eligible) > 1 and eligible[1].kernel.data.ndim == 5 else 1]
    names = {c.node.get_friendly_name(): c for c in eligible}
    copy = model.clone()
    nodes = [node for node in copy.get_ordered_ops() if node.get_friendly_name() in names]
    inputs = [operations.result(node.input_value(0)) for node in nodes]
    probe = core.compile_model(
        Model(inputs, copy.get_parameters(), "inputs"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for batch in batches:
        maps = probe([batch])
        for i, node in enumerate(nodes):
            names[node.get_friendly_name()].sample(maps[i], random)
    for convolution in eligible[len(kept) :]:
        weights, statistics = convolution.weights, convolution.statistics
        rounded = round_weights(weights, statistics.covariance)
        shift = ((weights - rounded) @ statistics.mean[..., None]).reshape(-1)
        kernel, bias = convolution.kernel, convolution.bias
        for constant, values in (
            (kernel, rounded.reshape(kernel.data.shape)),
            (bias, bias.data + shift.reshape(bias.data.shape)),
        ):
            constant.output(0).replace(operations.constant(values.astype(np.float32)).output(0))
    return [convolution.node.get_friendly_name() for convolution in kept]
