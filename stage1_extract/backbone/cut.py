"""The cut: where the frozen trunk ends and the trainable top begins.

The last N layers of the model are the top, but layers without weights at its front belong to the trunk. Exactly one
tensor must enter the top. It is found in the graph, since Keras' automatic layer names differ between processes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from features._common.types import Tensor
from features.backbone_names import stream_of_tap
from features.config import BackboneConfig
from features.errors import ConfigError
from features.grids import averaging_matrix
from features.streams import APPEARANCE, TOP, TRUNK
from features.strict_model import did_you_mean, similar_names


@dataclass(frozen=True)
class Cut:
    """Where a backbone is cut in two."""

    tensor: Tensor  # the trunk's output and the top's input
    layers: int  # number of the backbone's layers above the cut
    description: str  # after which layer, and the map's shape


def find_cut(model: keras.Model, backbone: BackboneConfig) -> Cut:
    """Find the cut that `cut = "layer"` or `unfreeze = N` specifies; a ConfigError lists the nearest valid ones."""
    count = len(model.layers)
    if backbone.cut is not None:
        names = [layer.name for layer in model.layers]
        if backbone.cut not in names:
            raise _unknown_layer("cut", backbone.cut, names)
        layers = count - 1 - names.index(backbone.cut)
        cut = _cut_below(model, layers, after=backbone.cut)
    elif backbone.unfreeze > count:
        raise ConfigError(
            "unfreeze exceeds the backbone's number of layers",
            expected=f"0 to {count}",
            got=backbone.unfreeze,
            hint=f"--backbone.unfreeze {count}",
        )
    else:
        layers = backbone.unfreeze
        cut = _cut_below(model, layers)
    if cut is None:
        raise _invalid_cut_error(model, backbone, layers)
    return cut


def trunk_model(
    model: keras.Model,
    cut: Cut,
    taps: Sequence[str] = (),
    pooling: int = 1,
    grids: Mapping[str, tuple[int, int]] | None = None,
    streams: Collection[str] = (),
) -> keras.Model:
    """Make the frozen part: the backbone's input → by stream, the map at the cut and those of the taps.

    Args:
        taps: names of layers below the cut.
        pooling: the taps' maps are averaged over squares of this many rows and columns.
        grids: by stream, rows and columns of cells that its maps are averaged over.
        streams: which of these maps to compute; default: all.

    Raises:
        ConfigError: a tap is not a layer below the cut, or its output is no map that large; a grid is finer than the
            map.
    """
    outputs = {APPEARANCE: cut.tensor}
    frozen = keras.Model(model.input, cut.tensor).layers if taps else []
    below = {layer.name: layer for layer in frozen if layer.output is not cut.tensor}
    for name in taps:
        if name not in below:
            raise _unknown_layer("taps", name, list(below), " below the cut")
        tensor = below[name].output
        if len(tensor.shape) != 4 or pooling > min(tensor.shape[1:3]):
            raise ConfigError(
                f"backbone.taps: {name} has no map that can be averaged over {pooling}x{pooling} cells",
                expected="(batch, rows, columns, channels)",
                got=tensor.shape,
                hint="--backbone.tap_pooling 1, or another layer",
            )
        outputs[stream_of_tap(name)] = (
            tensor if pooling == 1 else keras.layers.AveragePooling2D(pooling, padding="same")(tensor)
        )
    for name, grid in (grids or {}).items():
        outputs[name] = _average_over_grid(name, outputs[name], grid)
    outputs = {name: tensor for name, tensor in outputs.items() if name in (streams or outputs)}
    trunk = keras.Model(model.input, outputs, name=TRUNK)
    trunk.trainable = False
    return trunk


def _average_over_grid(name: str, maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average maps (batch, h, w, c) over a grid of cells: (batch, rows, columns, c)."""
    height, width, channels = maps.shape[1:] if len(maps.shape) == 4 else (1, 1, maps.shape[-1])
    if grid[0] > height or grid[1] > width:
        raise ConfigError(
            f"extract.keep: the grid is finer than the maps of {name}",
            expected=f"at most {height}x{width} cells",
            got=f"{grid[0]}x{grid[1]}",
            hint=f"--extract.keep 'grid {min(grid[0], height)}x{min(grid[1], width)}'",
        )
    x = keras.ops.matmul(averaging_matrix(height, grid[0]), keras.ops.reshape(maps, (-1, height, width * channels)))
    x = keras.ops.matmul(averaging_matrix(width, grid[1]), keras.ops.reshape(x, (-1, width, channels)))
    return keras.ops.reshape(x, (-1, *grid, channels))


def top_model(model: keras.Model, cut: Cut) -> keras.Model | None:
    """Make the unfrozen part, the map at the cut → the backbone's output; None if the cut is at the output."""
    if cut.layers == 0:
        return None
    top = keras.Model(cut.tensor, model.output, name=TOP)
    for layer in [top, *top.layers]:  # setting it on a model of frozen layers does not reach them
        layer.trainable = True
    return top


def _entering_tensors(model: keras.Model, count: int) -> list[Tensor]:
    """Return the tensors that enter the last `count` layers from below."""
    layers = model.layers[len(model.layers) - count :]
    above = {id(layer) for layer in layers}
    # layers may also have been called in other models
    nodes_of_model = {id(node) for nodes in model._nodes_by_depth.values() for node in nodes}
    nodes = [node for layer in layers for node in layer._inbound_nodes if id(node) in nodes_of_model]
    tensors = [t for node in nodes for t in node.input_tensors if id(t._keras_history.operation) not in above]
    return list({id(t): t for t in tensors}.values())


def _cut_below(model: keras.Model, count: int, after: str | None = None) -> Cut | None:
    """Cut below the last `count` layers, or above those at their front without weights; None if invalid.

    With `after`, cut exactly after the layer of that name.
    """
    if after is None:
        count = _without_weightless_front(model, count)
    tensors = _entering_tensors(model, count) if count else [model.output]
    name = _source(tensors[0])
    if len(tensors) > 1 or (count and after not in (None, name)):
        return None
    shape = "x".join(str(n) for n in tensors[0].shape[1:])
    return Cut(tensors[0], count, f"after {name} ({shape})" if count else f"the output, {name} ({shape})")


def _source(tensor: Tensor) -> Any:
    """The name of the layer that outputs a tensor."""
    return tensor._keras_history.operation.name


def _unknown_layer(setting: str, name: str, names: list[str], where: str = "") -> ConfigError:
    return ConfigError(
        f"backbone.{setting}: no such layer{where}{did_you_mean(name, names)}",
        expected=f"e.g. {', '.join(similar_names(name, names))}",
        got=name,
        hint=f"--backbone.{setting} LAYER",
    )


def _invalid_cut_error(model: keras.Model, backbone: BackboneConfig, layers: int) -> ConfigError:
    entering = ", ".join(_source(t) for t in _entering_tensors(model, _without_weightless_front(model, layers)))
    setting = f"cut = {backbone.cut!r}" if backbone.cut is not None else f"unfreeze = {layers}"
    cuts = {cut.layers: cut for n in range(len(model.layers) + 1) if (cut := _cut_below(model, n))}
    valid = sorted(sorted(cuts, key=lambda count: abs(count - layers))[:3])
    nearest = "; ".join(f"unfreeze = {count}: {cuts[count].description}" for count in valid)
    return ConfigError(
        f"{backbone.name}: {setting} cuts through a branch, so that several tensors enter the top",
        expected="one tensor",
        got=entering,
        hint=f"one of the nearest valid cuts: {nearest}",
    )


def _without_weightless_front(model: keras.Model, count: int) -> int:
    """`count` minus the layers without weights at the front of the last `count`."""
    while count and not model.layers[len(model.layers) - count].weights:
        count -= 1
    return count
