"""The cut: where the frozen trunk ends and the trainable top begins, found in the graph and never by a name.

The last N layers of the model are the top; weightless layers at their front join the trunk; what remains must be
entered by exactly one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from features.config import BackboneConfig
from features.errors import ConfigError


@dataclass(frozen=True)
class Cut:
    """A backbone in two parts.

    Attributes:
        tensor: what leaves the trunk and enters the top.
        layers: number of the backbone's last layers above the cut.
        words: the cut for people: after which layer, and the map's shape.
    """

    tensor: Any
    layers: int
    words: str


def find_cut(model: keras.Model, backbone: BackboneConfig) -> Cut:
    """The cut that `cut = "layer"` or `unfreeze = N` asks for.

    Raises:
        ConfigError: no such layer, or the top would be entered by several tensors; lists the nearest valid cuts.
    """
    count = len(model.layers)
    if backbone.cut is not None:
        wanted = _above(model, backbone.cut)
        chosen = _named(model, backbone.cut, wanted)
    elif backbone.unfreeze > count:
        raise ConfigError(
            "unfreeze is more than the backbone has", expected=f"0 to {count} layers", got=backbone.unfreeze
        )
    else:
        wanted = backbone.unfreeze
        chosen = _split(model, wanted)
    if chosen is None:
        raise _refusal(model, backbone, wanted)
    return chosen


def trunk_model(model: keras.Model, cut: Cut) -> keras.Model:
    """The frozen part: the backbone's input → the map at the cut."""
    part = keras.Model(model.input, cut.tensor, name="trunk")
    part.trainable = False
    return part


def top_model(model: keras.Model, cut: Cut) -> keras.Model | None:
    """The unfrozen part: the map at the cut → the backbone's output; None where the cut is the output."""
    if cut.layers == 0:
        return None
    part = keras.Model(cut.tensor, model.output, name="top")
    part.trainable = True
    for layer in part.layers:
        layer.trainable = True
    return part


def _entering(model: keras.Model, count: int) -> dict[int, Any]:
    """The tensors that the last `count` layers take from below, by identity."""
    above = {id(layer) for layer in model.layers[len(model.layers) - count :]}
    tensors: dict[int, Any] = {}
    for layer in model.layers[len(model.layers) - count :]:
        for node in _nodes(model, layer):
            for tensor in node.input_tensors:
                if id(tensor._keras_history.operation) not in above:
                    tensors[id(tensor)] = tensor
    return tensors


def _nodes(model: keras.Model, layer: Any) -> list[Any]:
    """A layer's calls inside this model; other models may have called it too."""
    inside = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
    return [node for node in layer._inbound_nodes if id(node) in inside]


def _split(model: keras.Model, count: int) -> Cut | None:
    """The cut under the last `count` layers once weightless ones at their front joined the trunk; None if invalid."""
    count = _weighted(model, count)
    if count == 0:
        return _cut(model.output, 0)
    entering = _entering(model, count)
    if len(entering) != 1:
        return None
    return _cut(next(iter(entering.values())), count)


def _cut(tensor: Any, layers: int) -> Cut:
    shape = "x".join(str(n) for n in tensor.shape[1:])
    name = tensor._keras_history.operation.name
    return Cut(tensor, layers, f"after {name} ({shape})" if layers else f"the output, {name} ({shape})")


def _above(model: keras.Model, name: str) -> int:
    """How many layers come after the named one in the model's order."""
    names = [layer.name for layer in model.layers]
    if name not in names:
        near = [n for n in names if name.lower() in n.lower()] or names[-8:]
        raise ConfigError(
            "no such layer to cut after", expected=f"e.g. {', '.join(near[:8])}", got=name, hint="--backbone.cut LAYER"
        )
    return len(names) - 1 - names.index(name)


def _named(model: keras.Model, name: str, count: int) -> Cut | None:
    """The cut exactly after a layer, where the `count` layers above are entered by its output alone."""
    if count == 0:
        return _cut(model.output, 0)
    entering = list(_entering(model, count).values())
    if len(entering) == 1 and entering[0]._keras_history.operation.name == name:
        return _cut(entering[0], count)
    return None


def _refusal(model: keras.Model, backbone: BackboneConfig, wanted: int) -> ConfigError:
    layers = model.layers
    entering = ", ".join(t._keras_history.operation.name for t in _entering(model, _weighted(model, wanted)).values())
    what = f"cut = {backbone.cut!r}" if backbone.cut is not None else f"unfreeze = {wanted}"
    valid: dict[int, Cut] = {}
    for step in range(1, len(layers)):
        for count in (wanted - step, wanted + step):
            chosen = _split(model, count) if 0 <= count <= len(layers) else None
            if chosen is not None and chosen.layers not in valid:
                valid[chosen.layers] = chosen
        if len(valid) >= 3:
            break
    near = "; ".join(f"unfreeze = {n}: {c.words}" for n, c in sorted(valid.items()))
    return ConfigError(
        f"{backbone.name}: {what} cuts through a branch: its top would be entered by several tensors",
        expected="one tensor",
        got=entering,
        hint=f"one of the nearest valid cuts: {near}",
    )


def _weighted(model: keras.Model, count: int) -> int:
    """`count` without the weightless layers at the front."""
    while count and not model.layers[len(model.layers) - count].weights:
        count -= 1
    return count
