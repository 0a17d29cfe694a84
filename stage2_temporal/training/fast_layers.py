"""Faster forms of two Keras layers for training and prediction: the LSTM, and the 1x1 convolution.

`with_fast_layers` copies a model, shares its variables and replaces these layers. What is saved, fused and exported is
the model with Keras' own layers. An epoch of the published model takes 60 % of the time with both.
"""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from features._common.types import Tensor

Precision = Literal["float32", "bfloat16"]
MAX_UNROLLED_STEPS = 64  # the graph grows with each step of an LSTM

_copies: WeakKeyDictionary[keras.Model, dict[Precision, keras.Model]] = WeakKeyDictionary()


def with_fast_layers(model: keras.Model, precision: Precision = "float32") -> keras.Model:
    """Copy a functional model with the same variables but faster LSTM and 1x1-convolution layers.

    Training the copy trains `model`. A second call returns the same copy, whose functions are traced already; it lives
    as long as the model. A model without such layers is returned as it is.

    `precision` is that of the factors in the replaced layers' matrix products; sums and weights stay float32.
    """
    fast_layers = (FastLSTM, FastPointwiseConv)
    if not any(fast.replaces(layer) for layer in model._flatten_layers() for fast in fast_layers):
        return model

    def replace(layer: Any) -> Any:
        return next((fast(layer, precision) for fast in fast_layers if fast.replaces(layer)), layer)

    copies = _copies.setdefault(model, {})
    if precision not in copies:
        copies[precision] = keras.models.clone_model(model, clone_function=replace, recursive=True)
    return copies[precision]


class FastLSTM(keras.layers.Layer):  # type: ignore[misc]
    """A Keras LSTM's last output (batch, units) for vectors (batch, T, F), from that layer's variables.

    Keras multiplies each step's input by the kernel inside its loop: T products of (batch, F), and T partial gradients
    as large as the kernel, 200 MB each for the published head. The inputs' part of the gates does not depend on the
    state, so it is one product for all steps here. The rest, products with the small recurrent kernel, is unrolled.
    Equations as in Keras (S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, 1997, with a forget gate).
    The built layer's cell is shared, so that weights keep their names, shapes and values.
    """

    def __init__(self, lstm: keras.layers.LSTM, precision: str) -> None:
        super().__init__(name=lstm.name, trainable=lstm.trainable, dtype=lstm.dtype_policy)
        self.cell = lstm.cell
        self.precision, self.built = precision, True

    @staticmethod
    def replaces(layer: Any) -> bool:
        """Whether this layer computes the same as `layer`, and faster."""
        if type(layer) is not keras.layers.LSTM:
            return False
        steps = layer.get_build_config()["input_shape"][1] or 0
        uses_cudnn = layer.activation is keras.activations.tanh and bool(tf.config.list_physical_devices("GPU"))
        return (
            1 < steps <= MAX_UNROLLED_STEPS  # the recurrent weights have no gradient with a single step
            and not (layer.return_sequences or layer.return_state or layer.stateful or layer.go_backwards)
            and not (layer.dropout or layer.recurrent_dropout or uses_cudnn)
        )

    def call(
        self, vectors: Tensor, initial_state: None = None, mask: None = None, training: bool | None = None
    ) -> Tensor:
        """(batch, T, F) → (batch, units). The other arguments are those of Keras' LSTM, and unused."""
        del initial_state, mask, training
        cell, (time, features) = self.cell, vectors.shape[1:]
        projected = _matmul(keras.ops.reshape(vectors, (-1, features)), cell.kernel, self.precision)
        if cell.use_bias:
            projected = projected + cell.bias
        steps = keras.ops.unstack(keras.ops.reshape(projected, (-1, time, 4 * cell.units)), time, axis=1)
        output = carry = None  # zeros, which add nothing
        for gates in steps:
            if output is not None:
                gates = gates + keras.ops.matmul(output, cell.recurrent_kernel)
            i, f, g, o = keras.ops.split(gates, 4, axis=-1)
            new = cell.recurrent_activation(i) * cell.activation(g)
            carry = new if carry is None else cell.recurrent_activation(f) * carry + new
            output = cell.recurrent_activation(o) * cell.activation(carry)
        return output


class FastPointwiseConv(keras.layers.Layer):  # type: ignore[misc]
    """A Keras Conv2D with a 1x1 kernel as the matrix product that it is, from that built layer's variables."""

    def __init__(self, convolution: keras.layers.Conv2D, precision: str) -> None:
        super().__init__(name=convolution.name, trainable=convolution.trainable, dtype=convolution.dtype_policy)
        self.kernel, self.bias, self.activation = convolution.kernel, convolution.bias, convolution.activation
        self.precision, self.built = precision, True

    @staticmethod
    def replaces(layer: Any) -> bool:
        """Whether this layer computes the same as `layer`."""
        return (
            type(layer) is keras.layers.Conv2D
            and layer.kernel_size == layer.strides == layer.dilation_rate == (1, 1)
            and layer.groups == 1
            and layer.data_format == "channels_last"
            and None not in layer.get_build_config()["input_shape"][1:]
        )

    def call(self, maps: Tensor) -> Tensor:
        """(batch, h, w, c) → (batch, h, w, filters)."""
        channels, filters = self.kernel.shape[-2:]
        flat, kernel = keras.ops.reshape(maps, (-1, channels)), keras.ops.reshape(self.kernel, (channels, filters))
        values = keras.ops.reshape(_matmul(flat, kernel, self.precision), (-1, *maps.shape[1:3], filters))
        if self.bias is not None:
            values = values + self.bias
        return self.activation(values)


def _matmul(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """Multiply matrices whose entries are rounded to `precision` first; the result has a's type."""
    if precision == "float32":
        return keras.ops.matmul(a, b)
    return keras.ops.cast(keras.ops.matmul(keras.ops.cast(a, precision), keras.ops.cast(b, precision)), a.dtype)
