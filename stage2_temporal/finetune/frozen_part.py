"""Divide a trainable fused model into what comes before the first layer that trains, and the rest.

What the frozen part computes from a window never changes, so that it can be computed once instead of in every epoch.
In a backbone of stages, that is most of the work: the lower a layer, the larger its maps.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import keras

from features._common.types import Tensor
from features.streams import FRAMES, STAGE_TWO, TRUNK
from stage2_temporal.finetune.unfreeze import InferenceMode
from stage2_temporal.fused.fuse import map_inputs


class DividedModel(NamedTuple):
    """Both parts share their layers with the model that was divided."""

    frozen: keras.Model  # uint8 frames (batch, T, height, width, 3) → list of arrays (batch, …)
    trained: keras.Model  # this list → what the model predicts


def divide_model(model: keras.Model, outputs: Collection[str] = ()) -> DividedModel:
    """Divide a trainable copy of a fused model whose only input is `frames`, see `unfreeze.unfreeze_layers`.

    Args:
        outputs: names of layers after the trunk; their outputs are further outputs of the part that trains.
    """
    trunk, stage_two = model.get_layer(TRUNK), model.get_layer(STAGE_TWO)
    backbone = next(layer for layer in trunk.layers if isinstance(layer, keras.Model))
    streams = map_inputs(trunk, stage_two)
    maps = {name: backbone.output[stream] for name, stream in streams.items()}
    changing = _changing_tensors(backbone, ())
    trains = {name for name, tensor in maps.items() if id(tensor) in changing}
    below = _last_frozen_tensors(backbone, changing)
    stage_inputs = {tensor.name: tensor for tensor in stage_two.inputs}
    if len(stage_inputs) == 1:
        stage_inputs = {next(iter(streams)): stage_two.inputs[0]}
    changing = _changing_tensors(stage_two, [stage_inputs[name] for name in trains])
    beside = _last_frozen_tensors(stage_two, changing)
    results = [stage_two.output, *(stage_two.get_layer(name).output for name in outputs)]

    frames = keras.Input(model.inputs[0].shape[1:], dtype="uint8", name=FRAMES)
    time = frames.shape[1]
    x = _fold_time(frames)
    x = keras.Model(trunk.inputs, _call_input(trunk, backbone))(x)
    still = {name: tensor for name, tensor in maps.items() if name not in trains}
    computed = keras.Model(backbone.inputs, [*below, *still.values()])(x)
    computed = [_unfold_time(tensor, time) for tensor in keras.tree.flatten(computed)]
    stored, still_maps = computed[: len(below)], computed[len(below) :]
    if beside:
        stored += keras.tree.flatten(keras.Model([stage_inputs[name] for name in still], beside)(still_maps))
    frozen = keras.Model(frames, stored, name="frozen")

    inputs = [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in stored]
    changed: list[Tensor] = []
    if trains:
        upper = keras.Model(below, [maps[name] for name in trains])
        changed = keras.tree.flatten(upper([_fold_time(tensor) for tensor in inputs[: len(below)]]))
        changed = [_unfold_time(tensor, time) for tensor in changed]
    upper = keras.Model([stage_inputs[name] for name in trains] + beside, results)
    predicted = keras.tree.flatten(upper([*changed, *inputs[len(below) :]]))
    return DividedModel(frozen, keras.Model(inputs, predicted[0] if not outputs else predicted, name="trained"))


def _changing_tensors(model: keras.Model, changing_inputs: Collection[Tensor]) -> set[int]:
    """The ids of a model's tensors that change between steps, given those of its inputs that do."""
    changing = {id(tensor) for tensor in changing_inputs}
    for node in _nodes(model):
        if _trains(node.operation) or any(id(tensor) in changing for tensor in node.input_tensors):
            changing |= {id(tensor) for tensor in node.output_tensors}
    return changing


def _last_frozen_tensors(model: keras.Model, changing: set[int]) -> list[Tensor]:
    """The tensors that do not change, but from which changing ones are computed."""
    tensors = {}
    for node in _nodes(model):
        if any(id(tensor) in changing for tensor in node.output_tensors):
            tensors |= {id(tensor): tensor for tensor in node.input_tensors if id(tensor) not in changing}
    return list(tensors.values())


def _nodes(model: keras.Model) -> Iterator[Any]:
    """A functional model's calls of layers and operations, each after those that it depends on."""
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        yield from (node for node in nodes if not node.is_input)


def _trains(operation: Any) -> bool:
    """Whether an operation has weights that train, or behaves differently in training, such as dropout."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    random = "training" in inspect.signature(operation.call).parameters and not isinstance(operation, InferenceMode)
    return random or bool(operation.trainable_weights)


def _call_input(model: keras.Model, layer: keras.Model) -> Tensor:
    """The tensor of a functional model on which it calls `layer`."""
    return next(node for node in _nodes(model) if node.operation is layer).input_tensors[0]


def _fold_time(tensor: Tensor) -> Tensor:
    return keras.ops.reshape(tensor, (-1, *tensor.shape[2:]))


def _unfold_time(tensor: Tensor, time: int) -> Tensor:
    return keras.ops.reshape(tensor, (-1, time, *tensor.shape[1:]))
