"""The existing store, and trunk metadata that can be read without loading the network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from features.backbone_names import onnx_file
from features.config import Config
from features.errors import StoreError
from features.frame_files import shard_folder
from features.frame_ranges import StoredRange
from features.hdf5 import damage_as_store_error, open_file, read_text
from features.principal_components import PCABasis
from features.recipe import Recipe, json_digest, stream_origin
from features.sequences import FrameSequence
from features.shard_folder import used_shards
from features.store import Store
from features.store_tables import Header, StreamInfo, TopRecord
from features.streams import APPEARANCE, THUMBNAILS
from features.tracks import Track
from features.verification import Damage
from stage1_extract.plan import complete_sequences

if TYPE_CHECKING:
    from stage1_extract.backbone.onnx_trunk import OnnxTrunk
    from stage1_extract.backbone.trunk import Trunk


@dataclass(frozen=True)
class ExistingStore:
    """The contents of a store; all empty if there is no store yet."""

    header: Header | None = None
    sequences: tuple[FrameSequence, ...] = ()
    streams: Mapping[str, StreamInfo] = field(default_factory=dict)
    ranges: Mapping[str, list[StoredRange]] = field(default_factory=dict)  # by stream, without damaged frames
    top: TopRecord | None = None
    tracks: Mapping[str, Track] = field(default_factory=dict)  # by their keys
    bases: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)  # by stream, see `Store.basis`
    is_packed: bool = True
    damage: Damage | None = None  # which is left out

    @classmethod
    def read(cls, path: Path, damage: Damage | None = None) -> ExistingStore:
        """Read what the store at `path` contains, without what is damaged; see `salvage` if that hides the frames."""
        if not path.exists() or (damage is not None and damage.hides_frames):
            return cls(damage=damage)
        known = damage or Damage()
        with Store(path, known.parts) as store:
            streams = {**store.streams, **store.partial_streams}
            damaged: dict[str, Sequence[int]] = {
                name: [row for row, names in known.rows.items() if name in names] for name in streams
            }
            with_thumbnails = store.thumbnail_stream  # thumbnails are extracted together with this stream
            rows = [row for row, names in known.rows.items() if THUMBNAILS in names]
            damaged[with_thumbnails] = sorted({*damaged[with_thumbnails], *rows})
            if THUMBNAILS in known.parts:
                damaged[with_thumbnails] = range(store.frames)
            ranges = {name: store.stored_ranges(name, rows) for name, rows in damaged.items()}
            # what is left of a derived stream is kept in an index; with a damaged basis, it is dropped
            bases = {name: store.basis(name) for name in streams if not {"bases", f"bases/{name}"} & known.parts.keys()}
            top = None if "top" in known.parts else store.top()
            parts = store.header, store.sequences, streams, ranges, top, store.tracks(), bases
            return cls(*parts, is_packed=store.is_packed, damage=damage)


def stored_ids(path: Path) -> set[str] | None:
    """Ids of the sequences in a store and in shards that it does not refer to yet; None if it is damaged."""
    ids: set[str] = set()
    try:
        used = used_shards(path)
        new = [p for p in shard_folder(path).glob("[!.]*.h5") if p.name not in used]
        for file, dataset in [
            *([(path, "sequences/id")] if path.exists() else []),
            *((p, "pieces/sequence") for p in new),
        ]:
            with open_file(file) as f, damage_as_store_error(file):
                ids.update(read_text(f[dataset]))
    except StoreError:
        return None
    return ids


@dataclass(frozen=True)
class TrunkInfo:
    """What a store keeps of the trunk; `facts` are for the header."""

    recipe: Recipe
    streams: Mapping[str, StreamInfo]
    top: TopRecord | None
    facts: Mapping[str, Any]
    bases: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)  # by stream, see `Store.basis`

    @classmethod
    def from_trunk(cls, trunk: Trunk | OnnxTrunk, config: Config, request: str) -> TrunkInfo:
        """Describe a trunk that is loaded."""
        facts = {
            **trunk.facts,
            "request": request,
            "asked": config.backbone.model_dump(include={"unfreeze", "cut", "top"}),
        }
        bases = {name: vars(basis) for name, basis in getattr(trunk, "bases", {}).items()}
        return cls(trunk.recipe, trunk.streams, trunk.top(), facts, bases)

    @classmethod
    def from_store(
        cls, store: ExistingStore, config: Config, request: str, sequences: Sequence[FrameSequence]
    ) -> TrunkInfo | None:
        """Read it from the store if its trunk has the same `request` and all frames of the sequences are stored."""
        if store.damage is not None and "top" in store.damage.parts:
            return None
        if store.header is None or store.header.trunk.get("request") != request:
            return None
        recipe, names = store.header.recipe, config.backbone.streams
        bases = {name: store.bases.get(name, {}) for name in config.components}
        if any(basis.keys() != {"mean", "components"} for basis in bases.values()):
            return None
        digests = {name: PCABasis(**basis).digest for name, basis in bases.items()}
        streams = {name: store.streams[name] for name in names if name in store.streams}
        if len(streams) < len(names) or any(
            info.origin
            != stream_origin(
                name, config.backbone.tap_pooling, config.extract.grid(name), recipe, digests.get(name, "")
            )
            for name, info in streams.items()
        ):
            return None
        complete, _ = complete_sequences(sequences, {name: store.ranges[name] for name in names})
        if len(complete) < len(sequences):
            return None
        return cls(recipe, streams, store.top, store.header.trunk, bases)


def request_digest(config: Config) -> str:
    """Digest of all settings that determine the recipe, to see without loading a network whether it has changed."""
    weights = Path(config.backbone.weights)
    settings = config.model_dump(mode="json", include={"frames", "backbone"})
    del settings["backbone"]["taps"], settings["backbone"]["tap_pooling"]  # each tap's stream has its own origin
    for name in ("mean", "deviation", "layout"):  # older stores do not state their absence
        if settings["backbone"][name] is None:
            del settings["backbone"][name]
    if (file := onnx_file(config.backbone.name)) is not None and file.is_file():
        settings["backbone"]["name"] = hashlib.sha256(file.read_bytes()).hexdigest()
    if weights.is_file():
        settings["backbone"]["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    extract: list[str] = [config.extract.precision, config.extract.dtype]
    if (grid := config.extract.grid(APPEARANCE)) is not None:  # older stores do not state its absence
        extract.append(f"grid {grid}")
    if count := config.extract.components(APPEARANCE):
        extract.append(f"pca {count}")
    return json_digest([settings, *extract, version("keras")])
