"""Make a trainable copy of a fused model in which only the last layers of the backbone train.

In Keras 3, a nested model follows its parent's `training` argument, whatever it was built with. Therefore each
backbone layer that behaves differently in training is wrapped in the copy and stays in inference mode: batch norm
keeps its statistics, while its scale and offset train, and frozen layers never add noise. The head trains as usual.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras

from features.errors import ConfigError
from features.streams import COMPONENTS, STAGE_TWO, TOP, TRUNK
from features.strict_model import similar_names


class InferenceMode(keras.layers.Layer):  # type: ignore[misc]
    """Runs a layer in inference mode, whatever its model does. Only in the trainable copy, which is never saved."""

    def __init__(self, layer: keras.layers.Layer) -> None:
        super().__init__(name=f"{layer.name}_inference", dtype=layer.dtype_policy)
        self.layer = layer

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:  # one that was read from a config is
            self.layer.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs, training=False)

    def get_config(self) -> dict[str, Any]:
        return {"layer": keras.layers.serialize(self.layer)}  # engines copy the frozen part of a model

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InferenceMode:
        return cls(keras.layers.deserialize(config["layer"]))


def backbone_layers(fused: keras.Model) -> list[keras.layers.Layer]:
    """List a fused model's backbone layers in order: the trunk's up to the cut, then the top's.

    Inputs, and the projection on principal components after the trunk, which stays as it is, are not among them.
    """
    layers = [layer for model in _backbone_models(fused) for layer in model.layers]
    return [
        layer
        for layer in layers
        if not isinstance(layer, keras.layers.InputLayer) and not layer.name.endswith(COMPONENTS)
    ]


def count_unfrozen(names: list[str], unfreeze: int | str) -> int:
    """Resolve `finetune.unfreeze` (a number, a layer's name, or `all`) to a number of the backbone's layers.

    Raises:
        ConfigError: there are fewer layers, or none of that name.
    """
    if unfreeze == "all":
        return len(names)
    if unfreeze in names:
        return len(names) - names.index(str(unfreeze))
    if isinstance(unfreeze, int) and unfreeze <= len(names):
        return unfreeze
    similar = similar_names(str(unfreeze), names)
    raise ConfigError(
        "finetune.unfreeze: no such layers in the backbone",
        expected=f"0 to {len(names)}, all, or a layer such as {', '.join(similar)}",
        got=unfreeze,
        hint=f"--finetune.unfreeze {similar[0]}",
    )


def unfreeze_layers(
    fused: keras.Model, count: int, *, batch_norm: bool = False, policy: str = "float32"
) -> keras.Model:
    """Copy a fused model, with the same weights in the same order, so that it can train.

    Args:
        fused: uint8 frames (batch, T, height, width, 3) to (batch, targets).
        count: number of the last backbone layers that train, in addition to the whole head.
        batch_norm: let unfrozen batch norm use each batch's statistics and update its own.
        policy: the backbone's dtype policy, such as `mixed_float16`; the head stays in float32.
    """
    layers = backbone_layers(fused)
    trains = {id(layer): i >= len(layers) - count for i, layer in enumerate(layers)}
    nested = {id(model) for model in (fused.get_layer(TRUNK), fused.get_layer(STAGE_TWO), *_backbone_models(fused))}
    clones: list[tuple[keras.layers.Layer, bool]] = []

    def clone(operation: Any) -> Any:
        if id(operation) in nested:
            return copy(operation)
        if not isinstance(operation, keras.layers.Layer):
            return operation  # has no state
        unfrozen, config = trains.get(id(operation)), operation.get_config()
        if unfrozen is None:
            return operation.__class__.from_config(config)
        layer = operation.__class__.from_config({**config, "dtype": policy})
        clones.append((layer, unfrozen))
        follows_training = batch_norm and unfrozen and isinstance(layer, keras.layers.BatchNormalization)
        differs_in_training = "training" in inspect.signature(layer.call).parameters
        return InferenceMode(layer) if differs_in_training and not follows_training else layer

    def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}  # the new graph sets them
        return operation(*args, **kwargs)

    def copy(model: keras.Model) -> keras.Model:
        return keras.models.clone_model(model, clone_function=clone, call_function=call)

    trainable = copy(fused)
    trainable.set_weights(fused.get_weights())
    for layer, unfrozen in clones:
        layer.trainable = unfrozen
    return trainable


def _backbone_models(fused: keras.Model) -> list[keras.Model]:
    """The backbone inside the trunk, without casting and preprocessing, and the top if there is one."""
    inside = next(layer for layer in fused.get_layer(TRUNK).layers if isinstance(layer, keras.Model))
    return [inside, *(layer for layer in fused.get_layer(STAGE_TWO).layers if layer.name == TOP)]
