"""What stands before an extraction begins: the store as it is, and what of its trunk can be known without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from features.config import Config
from features.frame_ranges import StoredRange
from features.recipe import Recipe
from features.sequences import FrameSequence
from features.store import Header, Store, StreamInfo, TopRecord
from features.streams import APPEARANCE
from features.tracks import Track
from stage1_extract.backbone.trunk import Trunk
from stage1_extract.engines.engine import Engine
from stage1_extract.plan import StoredStreams, complete_sequences

DamagedRows = Mapping[
    int, Sequence[str]
]  # row of the store → the streams that are damaged there, `thumbnails` among them


@dataclass(frozen=True)
class ExistingStore:
    """A store's contents, all empty where there is none.

    Attributes:
        held: per stream the pieces that lie in it, without those to be done anew.
        bases: per stream what it was computed with, see `Store.basis`.
    """

    header: Header | None = None
    streams: Mapping[str, StreamInfo] = field(default_factory=dict)
    held: Mapping[str, list[StoredRange]] = field(default_factory=dict)
    top: TopRecord | None = None
    tracks: Mapping[str, Track] = field(default_factory=dict)
    bases: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Path, redo: DamagedRows) -> ExistingStore:
        """What stands under a store's name."""
        if not store.exists():
            return cls()
        with Store(store) as s:
            # thumbnails come with the trunk's stream
            rows = {
                name: [r for r, bad in redo.items() if name in bad or (name == APPEARANCE and "thumbnails" in bad)]
                for name in s.streams
            }
            held = {name: s.held(rows[name]) for name in s.streams}
            bases = {name: s.basis(name) for name in s.streams if not rows[name]}  # others are made anew or dropped
            return cls(s.header, s.streams, held, s.top(), s.tracks(), bases)

    def relative_errors(self, engine: Engine | None) -> dict[str, float]:
        """The largest relative error measured of each engine that has a part in it, this run's among them."""
        errors: dict[str, float] = {**self.header.trunk.get("relative_error", {})} if self.header else {}
        if engine is not None and engine.relative_error is not None:
            errors[engine.name] = max(engine.relative_error, errors.get(engine.name, 0.0))
        return errors

    def derived(
        self, ready: Sequence[FrameSequence], own: Mapping[str, StreamInfo]
    ) -> tuple[dict[str, list[list[StoredRange]]], list[str]]:
        """The streams that extraction doesn't make itself, where they have all of the sequences; and the others."""
        kept, dropped = {}, []
        for name in sorted(set(self.streams) - set(own)):
            found, parts = complete_sequences(ready, {name: self.held[name]})
            if len(found) == len(ready):
                kept[name] = parts[name]
            else:
                dropped.append(name)
        return kept, dropped


@dataclass(frozen=True)
class TrunkInfo:
    """The trunk as the store keeps it: its recipe, its stream, the layers above the cut, facts for the header."""

    recipe: Recipe
    stream: StreamInfo
    top: TopRecord | None
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, trunk: Trunk, config: Config, request: str) -> TrunkInfo:
        """That of a trunk at hand."""
        facts = {
            "parameters": trunk.model.count_params(),
            "cut": trunk.cut.words,
            "backbone_layers": len(trunk.backbone.model.layers),
            "request": request,
            "asked": config.backbone.model_dump(include={"unfreeze", "cut", "top"}),
        }
        return cls(trunk.recipe, trunk.stream, trunk.top(), facts)

    @classmethod
    def kept(cls, old: ExistingStore, request: str, wanted: Sequence[FrameSequence]) -> TrunkInfo | None:
        """That of the store, where the same was asked for and its trunk has seen every wanted frame."""
        if old.header is None or old.header.trunk.get("request") != request:
            return None
        ready, _ = complete_sequences(wanted, {APPEARANCE: old.held[APPEARANCE]})
        if len(ready) < len(wanted):
            return None
        return cls(old.header.recipe, old.streams[APPEARANCE], old.top, old.header.trunk)


def with_fingerprint(held: Mapping[str, list[StoredRange]], streams: Mapping[str, StreamInfo]) -> StoredStreams:
    """Per wanted stream the pieces that hold it as it is wanted now, not of another origin, shape or type."""
    return {
        name: [h for h in held.get(name, ()) if h.streams.get(name) == info.fingerprint]
        for name, info in streams.items()
    }
