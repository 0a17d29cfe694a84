"""Which of the backbone's layers train, and the copy of the fused model in which they do.

In Keras 3 a nested model follows its parent's `training`, whatever it was called with when the graph was made. So in
the copy each layer of the backbone that behaves differently in training is wrapped, and stays in inference mode: batch
norm keeps its statistics while its scale and offset train, and what is frozen is never noisy. The head trains as usual.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

from features.errors import ConfigError


class InferenceMode(keras.layers.Layer):  # type: ignore[misc]
    """Runs a layer in inference mode, whatever the model around it does; exists in the copy only, is never saved."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        super().__init__(name=f"{layer.name}_still", dtype=layer.dtype_policy)
        self.layer = layer

    def build(self, input_shape: Any) -> None:
        """Build the layer inside."""
        self.layer.build(input_shape)

    def call(self, inputs: Any) -> Any:
        """The layer's answer, as at inference."""
        return self.layer(inputs, training=False)


def backbone_layers(fused: keras.Model) -> list[keras.layers.Layer]:
    """A fused model's backbone layers in order: the trunk's up to the cut, then the top's, inputs left out."""
    stage_two = fused.get_layer("framebank")
    parts = [_frozen(fused), *(layer for layer in stage_two.layers if layer.name == "top")]
    return [layer for part in parts for layer in part.layers if not isinstance(layer, keras.layers.InputLayer)]


def count_unfrozen(names: list[str], unfreeze: int | str) -> int:
    """How many of the backbone's last layers `finetune.unfreeze` means.

    Raises:
        ConfigError: more than there are, or no layer of that name.
    """
    if unfreeze == "all":
        return len(names)
    if isinstance(unfreeze, str):
        if unfreeze in names:
            return len(names) - names.index(unfreeze)
        near = [n for n in names if unfreeze.lower() in n.lower()] or names[-8:]
        raise ConfigError(
            "no such layer to unfreeze from",
            expected=f"a number, all, or e.g. {', '.join(near[:8])}",
            got=unfreeze,
            hint="--finetune.unfreeze LAYER",
        )
    if unfreeze > len(names):
        raise ConfigError(
            "finetune.unfreeze is more than the backbone has below its output or cut",
            expected=f"0 to {len(names)} layers",
            got=unfreeze,
            hint="--finetune.unfreeze all",
        )
    return unfreeze


def unfreeze_layers(
    fused: keras.Model, count: int, *, batch_norm: bool = False, policy: str = "float32"
) -> keras.Model:
    """A copy of the fused model with the same weights, in the same order, that trains.

    The backbone's last `count` layers and the whole head are trainable.

    Args:
        fused: uint8 frames (batch, T, height, width, 3) → (batch, targets).
        count: of the layers that `backbone_layers` lists.
        batch_norm: let unfrozen batch norm follow training: batch statistics, and its own updated.
        policy: what the backbone computes in, e.g. `mixed_float16`; the head stays in float32.
    """
    layers = backbone_layers(fused)
    inside = {id(layer): i >= len(layers) - count for i, layer in enumerate(layers)}
    nested = {id(fused.get_layer("trunk")), id(_frozen(fused)), id(fused.get_layer("framebank"))}
    nested |= {id(layer) for layer in fused.get_layer("framebank").layers if layer.name == "top"}
    clones: list[tuple[keras.layers.Layer, bool]] = []

    def clone(operation: Any) -> Any:
        if id(operation) in nested:
            return copy(operation)
        if not isinstance(operation, keras.layers.Layer):
            return operation  # holds no state
        unfrozen, config = inside.get(id(operation)), operation.get_config()
        layer = operation.__class__.from_config(config if unfrozen is None else {**config, "dtype": policy})
        if unfrozen is None:
            return layer
        clones.append((layer, unfrozen))
        follows = batch_norm and unfrozen and isinstance(layer, keras.layers.BatchNormalization)
        changes = "training" in inspect.signature(layer.call).parameters
        return InferenceMode(layer) if changes and not follows else layer

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        kept = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}  # follow from the new graph
        return operation(*args, **kept)

    def copy(model: keras.Model) -> keras.Model:
        return keras.models.clone_model(model, clone_function=clone, call_function=call)

    thawed = copy(fused)
    thawed.set_weights(fused.get_weights())
    for layer, unfrozen in clones:
        layer.trainable = unfrozen
    return thawed


def _frozen(fused: keras.Model) -> keras.Model:
    """The backbone inside the trunk, which has casting and preprocessing around it."""
    return next(layer for layer in fused.get_layer("trunk").layers if isinstance(layer, keras.Model))
