"""Folding: batch normalisation and scales go into the kernels of the convolutions before them, once, for every engine.

After training, batch normalisation multiplies each channel by a constant and adds another. A convolution whose kernel
and bias were multiplied and shifted computes the same with one operation less, and engines fuse it with its activation
(B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
# InceptionResNetV2 adds its residual branches with a constant factor: inputs[0] + scale · inputs[1]
SCALED_ADDITION = inspect.getmodule(keras.applications.InceptionResNetV2).CustomScaleLayer  # type: ignore[union-attr]


@dataclass(frozen=True)
class _Affine:
    """What follows a convolution, per output channel: scale · x + shift."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]


def fold_scales(model: keras.Model, policy: str = "float32") -> keras.Model:
    """Copy a functional model for inference, with weights of its own.

    A batch normalisation that alone reads a convolution's output is folded into it, and so is the scale of a residual
    branch; the rest stays as it is. The outputs differ by rounding, about 1e-6 of their size.

    Args:
        model: may contain models; none of its layers is changed.
        policy: Keras dtype policy of the copy.
    """
    following = dict(_foldable(model))  # id of a convolution → the layer to fold into it
    folded_ids = {id(layer) for layer in following.values()}
    weights: list[tuple[keras.Layer, list[NDArray[Any]]]] = []

    def copy(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):  # a plain operation has no policy and no weights
            return layer.__class__.from_config(layer.get_config())
        if id(layer) in folded_ids:
            replacement = layers.Add if isinstance(layer, SCALED_ADDITION) else layers.Identity
            return replacement(name=layer.name, dtype=policy)
        config = layer.get_config() | {"dtype": policy}
        values = layer.get_weights()
        if id(layer) in following:
            config["use_bias"] = True
            values = _scaled_weights(layer, _affine(following[id(layer)]))
        new = layer.__class__.from_config(config)
        weights.append((new, values))
        return new

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        return args[0] if isinstance(layer, layers.Identity) else layer(*args, **kwargs)

    folded = keras.models.clone_model(model, clone_function=copy, call_function=call, recursive=True)
    for layer, values in weights:  # which are built now
        layer.set_weights(values)
    folded.trainable = False
    return folded


def _foldable(model: keras.Model) -> Iterator[tuple[int, keras.Layer]]:
    """Yield the id of each convolution into which the layer after it can be folded, and that layer."""
    nodes = [node for depth in model._nodes_by_depth.values() for node in depth if not node.is_input]
    calls = Counter(id(node.operation) for node in nodes)
    readers = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    readers.update(id(tensor) for tensor in model.outputs)
    for node in nodes:
        layer = node.operation
        if isinstance(layer, keras.Model):
            yield from _foldable(layer)
        elif isinstance(layer, (layers.BatchNormalization, SCALED_ADDITION)):
            tensor = node.input_tensors[-1]
            source = tensor._keras_history.operation
            if (
                type(source) in CONVOLUTIONS
                and source.activation is keras.activations.linear
                and source.data_format == "channels_last"
                and getattr(layer, "axis", -1) in (-1, len(tensor.shape) - 1)
                and calls[id(source)] == calls[id(layer)] == readers[id(tensor)] == 1
            ):
                yield id(source), layer


def _affine(layer: keras.Layer) -> _Affine:
    if isinstance(layer, SCALED_ADDITION):
        return _Affine(np.array([layer.scale]), np.zeros(1))
    mean, variance = (np.asarray(w, np.float64) for w in (layer.moving_mean, layer.moving_variance))
    scale = 1 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        scale = scale * np.asarray(layer.gamma, np.float64)
    return _Affine(scale, (np.asarray(layer.beta, np.float64) if layer.center else 0.0) - mean * scale)


def _scaled_weights(convolution: keras.Layer, affine: _Affine) -> list[NDArray[Any]]:
    """The weights, with a bias, of a convolution that is followed by `affine`."""
    values = [np.asarray(w, np.float64) for w in convolution.get_weights()]
    *depthwise, kernel = values[:-1] if convolution.use_bias else values
    is_depthwise = isinstance(convolution, layers.DepthwiseConv2D)  # its kernel is (h, w, channels, multiplier)
    outputs = kernel.shape[2:] if is_depthwise else kernel.shape[-1:]
    bias = values[-1] if convolution.use_bias else np.zeros(np.prod(outputs))
    scale = np.broadcast_to(affine.scale, bias.shape)
    return [w.astype(np.float32) for w in (*depthwise, kernel * scale.reshape(outputs), bias * scale + affine.shift)]
