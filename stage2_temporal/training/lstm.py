"""A faster form of Keras' LSTM to train and predict with: one matrix product for the inputs of all time steps.

Keras multiplies a step's input with the kernel inside its loop: T products of (batch, F) and T partial gradients as
large as the kernel, 200 MB each for the published head. The input's share of the gates doesn't depend on the state, so
here it is computed for all steps at once, and what is left of the loop, a product with the small recurrent kernel, is
unrolled. Equations as in Keras (S. Hochreiter, J. Schmidhuber, Long Short-Term Memory, 1997, with a forget gate).
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from stage2_temporal.training.pointwise import product

LONGEST = 64  # time steps that are unrolled at most: the graph grows with each


def replaceable(layer: Any) -> bool:
    """Whether `LSTM` does what this layer does, and faster."""
    return (
        type(layer) is keras.layers.LSTM
        and 1
        < (layer.get_build_config()["input_shape"][1] or 0)
        <= LONGEST  # of one frame, the recurrent weights have no gradient
        and not (layer.return_sequences or layer.return_state or layer.stateful or layer.go_backwards)
        and not (layer.dropout or layer.recurrent_dropout)
        and not (layer.activation is keras.activations.tanh and tf.config.list_physical_devices("GPU"))  # cuDNN's own
    )


class LSTM(keras.layers.Layer):  # type: ignore[misc]
    """A Keras LSTM's last output (batch, units) for vectors (batch, T, F), from its own variables.

    Args:
        lstm: a built layer; its cell is shared, so that weights have the same names, shapes and values.
        precision: type of the factors in the inputs' product.
    """

    def __init__(self, lstm: keras.layers.LSTM, precision: str) -> None:
        super().__init__(name=lstm.name, trainable=lstm.trainable, dtype=lstm.dtype_policy)
        self.cell = lstm.cell
        self.precision, self.built = precision, True

    def call(self, vectors: Any, initial_state: None = None, mask: None = None, training: bool | None = None) -> Any:
        """(batch, T, F) → (batch, units); what else Keras' LSTM is called with has no part in it here."""
        del initial_state, mask, training
        cell, (time, features) = self.cell, vectors.shape[1:]
        projected = product(keras.ops.reshape(vectors, (-1, features)), cell.kernel, self.precision)
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
