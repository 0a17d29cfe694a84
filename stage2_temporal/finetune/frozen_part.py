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
from features.streams import FRAMES, MEMBER_PREDICTIONS, RIDGE, STAGE_TWO, STANDARDISE, TRUNK, UNIT, VECTORS
from stage2_temporal.finetune.unfreeze import InferenceMode
from stage2_temporal.fused.fuse import map_inputs


class DividedModel(NamedTuple):
    """Parts of a trainable fused model, which share its layers. The last three take what `frozen` returns."""

    # uint8 frames (batch, T, height, width, 3) → arrays (batch, …) by name, VECTORS is the head's vectors
    frozen: keras.Model
    learner: keras.Model  # → what gradient descent trains: the prediction, or those of all members (batch, members · K)
    predictor: keras.Model  # → the prediction (batch, K)
    ridge_vectors: keras.Model | None  # → what the head's ridge regression takes (batch, F), if it has one
    members: int  # averaged by the head; 1 if it averages none


def divide_model(model: keras.Model, *, from_frames: bool = False) -> DividedModel:
    """Divide a trainable copy of a fused model whose only input is `frames`, see `unfreeze.unfreeze_layers`.

    Args:
        from_frames: let the last three parts take frames too.
    """
    trunk, stage_two = model.get_layer(TRUNK), model.get_layer(STAGE_TWO)
    backbone = next(layer for layer in trunk.layers if isinstance(layer, keras.Model))
    streams = map_inputs(trunk, stage_two)
    maps = {name: backbone.output[stream] for name, stream in streams.items()}
    changing = _changing_tensors(backbone, ())
    trained = [name for name, tensor in maps.items() if id(tensor) in changing]
    still = [name for name in maps if name not in trained]
    below = _last_frozen_tensors(backbone, changing)
    stage_inputs = dict(_named_inputs(stage_two, maps))
    changing = _changing_tensors(stage_two, [stage_inputs[name] for name in trained])
    vectors = next((layer.output for layer in stage_two.layers if layer.name == STANDARDISE), None)
    # the head's vectors, not what each of its members makes of them: the same numbers in other shapes
    frozen_vectors = vectors is not None and id(vectors) not in changing
    beside = [vectors] if frozen_vectors else _last_frozen_tensors(stage_two, changing)
    results = {"prediction": stage_two.output} | _head_tensors(stage_two)

    frames = keras.Input(model.inputs[0].shape[1:], dtype="uint8", name=FRAMES)
    time = frames.shape[1]
    x = keras.Model(trunk.inputs, _call_input(trunk, backbone))(_fold_time(frames))
    tensors = keras.tree.flatten(keras.Model(backbone.inputs, [*below, *(maps[name] for name in still)])(x))
    tensors = [_unfold_time(tensor, time) for tensor in tensors]
    stored, still_maps = tensors[: len(below)], tensors[len(below) :]
    if beside:
        stored += keras.tree.flatten(keras.Model([stage_inputs[name] for name in still], beside)(still_maps))
    names = [f"frozen{i}" for i in range(len(stored))]
    if frozen_vectors:
        names[-1] = VECTORS
    by_name = dict(zip(names, stored, strict=True))
    frozen = keras.Model(frames, by_name, name="frozen")

    inputs = {name: keras.Input(t.shape[1:], dtype=t.dtype, name=name) for name, t in by_name.items()}
    computed = frozen(frames) if from_frames else inputs
    tensors = [computed[name] for name in by_name]
    inputs = frames if from_frames else inputs
    lower, upper = tensors[: len(below)], tensors[len(below) :]
    if trained:
        computed = keras.Model(below, [maps[name] for name in trained])([_fold_time(tensor) for tensor in lower])
        upper = [*(_unfold_time(tensor, time) for tensor in keras.tree.flatten(computed)), *upper]
    still_results = {name: i for name, t in results.items() for i, b in enumerate(beside) if t is b}
    computed_results = {name: tensor for name, tensor in results.items() if name not in still_results}
    rest = keras.Model([*(stage_inputs[name] for name in trained), *beside], computed_results)(upper)
    rest |= {name: keras.layers.Identity()(upper[len(trained) + i]) for name, i in still_results.items()}
    each, vectors = rest.get(MEMBER_PREDICTIONS), rest.get(RIDGE)
    return DividedModel(
        frozen,
        keras.Model(inputs, rest["prediction"] if each is None else each, name="learner"),
        keras.Model(inputs, rest["prediction"], name="predictor"),
        None if vectors is None else keras.Model(inputs, vectors, name="ridge_vectors"),
        1 if each is None else each.shape[-1] // stage_two.output.shape[-1],
    )


def _named_inputs(stage_two: keras.Model, maps: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """A stage-two model's inputs by their names; a single one may have another name in a copy."""
    names = list(maps) if len(maps) == 1 else [tensor.name for tensor in stage_two.inputs]
    return list(zip(names, stage_two.inputs, strict=True))


def _head_tensors(stage_two: keras.Model) -> dict[str, Tensor]:
    """Tensors of heads that average several models: each member's prediction, and what the ridge regression takes."""
    names = {layer.name for layer in stage_two.layers}
    tensors: dict[str, Tensor] = {}
    if MEMBER_PREDICTIONS in names:
        each = stage_two.get_layer(MEMBER_PREDICTIONS).output  # (batch, members, K)
        each = stage_two.get_layer(UNIT)(each) if UNIT in names else each
        tensors[MEMBER_PREDICTIONS] = keras.ops.reshape(each, (-1, each.shape[1] * each.shape[2]))
    if RIDGE in names:
        tensors[RIDGE] = stage_two.get_layer(RIDGE).input
    return tensors


def _changing_tensors(model: keras.Model, changing_inputs: Collection[Tensor]) -> set[int]:
    """The ids of a model's tensors that change between steps, given those of its inputs that do."""
    changing = {id(tensor) for tensor in changing_inputs}
    for node in _nodes(model):
        if _trains(node.operation) or any(id(tensor) in changing for tensor in node.input_tensors):
            changing |= {id(tensor) for tensor in node.output_tensors}
    return changing


def _last_frozen_tensors(model: keras.Model, changing: set[int]) -> list[Tensor]:
    """The tensors that do not change, but from which changing ones are computed."""
    tensors: dict[int, Tensor] = {}
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
