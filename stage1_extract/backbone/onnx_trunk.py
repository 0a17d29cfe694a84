"""The trunk of an ONNX file, which is run but not trained; and the choice between it and that of a Keras model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from features.backbone_names import onnx_file, recipe_name
from features.config import Config
from features.errors import ConfigError
from features.principal_components import PCABasis
from features.recipe import Recipe, stream_origin
from features.store_tables import StreamInfo, TopRecord
from features.streams import APPEARANCE
from stage1_extract.backbone.onnx_graph import OnnxNetwork, read_network
from stage1_extract.backbone.trunk import DECODERS, Trunk, build_trunk, stored_grids


@dataclass(frozen=True)
class OnnxTrunk:
    """A network in an ONNX file, up to the cut and the taps; it has no top."""

    network: OnnxNetwork
    recipe: Recipe
    tap_pooling: int
    grids: dict[str, tuple[int, int]]

    @property
    def streams(self) -> dict[str, StreamInfo]:
        """The store's streams of maps: that at the cut and those of the taps."""
        return {
            name: StreamInfo(
                shape, self.recipe.dtype, stream_origin(name, self.tap_pooling, self.grids.get(name), self.recipe)
            )
            for name, shape in self.network.shapes.items()
        }

    @property
    def facts(self) -> dict[str, Any]:
        """What a store's header says of it."""
        shape = "x".join(map(str, self.network.shapes[APPEARANCE])) if APPEARANCE in self.network.shapes else "?"
        return {
            "parameters": self.network.parameters,
            "cut": f"after {self.network.cut} ({shape})",
            "backbone_layers": len(self.network.graph.graph.node),
        }

    def top(self) -> TopRecord | None:
        """None: an ONNX file cannot be trained."""
        return None


def any_trunk(
    config: Config, streams: Collection[str] = (), bases: Mapping[str, PCABasis] | None = None
) -> Trunk | OnnxTrunk:
    """Build the trunk that a config names, of Keras or of an ONNX file; see `build_trunk` and `read_network`."""
    backbone = config.backbone
    path = onnx_file(backbone.name)
    if path is None:
        return build_trunk(config, streams, bases)
    if config.components:
        raise ConfigError("extract.keep: principal components are not computed from the maps of an ONNX file")
    if backbone.arguments or backbone.weights != "imagenet":
        raise ConfigError(
            "backbone.weights and backbone.arguments do not apply to an ONNX file, which has its weights inside",
            hint="remove them",
        )
    grids = stored_grids(config)
    network, digest = read_network(path, backbone, config.frames, grids, streams)
    recipe = Recipe(
        decode=DECODERS[config.frames.decode],
        size=network.size,
        interpolation=config.frames.interpolation,
        colour=config.frames.colour,
        preprocess=network.preprocess,
        backbone=recipe_name(backbone.name),
        arguments={"tensor": network.cut},
        weights=path.name,
        weights_digest=digest,
        precision=config.extract.precision,
        dtype=config.extract.dtype,
        grid=grids.get(APPEARANCE),
    )
    return OnnxTrunk(network, recipe, backbone.tap_pooling, grids)
