"""What an extraction has to do, and what the store contains after it: decided from what is known, without any file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from features.config import Config
from features.frame_ranges import StoredRange, sequence_ranges
from features.sequences import FrameSequence, same_sequences
from features.store_tables import Header, StreamInfo
from features.store_writer import StoreContent, StreamContent
from features.tracks import Track, track_keys
from stage1_extract.existing_store import ExistingStore, TrunkInfo
from stage1_extract.plan import Group, StoredStreams, complete_sequences, plan_extraction, vehicles_without_tracks
from stage1_extract.salvage import kept_notes
from stage1_extract.tracking.sequence_tracks import empty_track_notes, missing_frame_notes

LIBRARIES = ("tensorflow", "keras", "h5py", "numpy", "opencv-python-headless", "av")  # whose versions the store records


@dataclass(frozen=True)
class ExtractionPlan:
    """What is to be extracted and tracked."""

    groups: Sequence[Group]
    vehicles: Mapping[str, int]  # id of a sequence whose vehicles are to be tracked → their number
    packed: bool  # whether the store will be a single file


def plan_update(
    config: Config,
    sequences: Sequence[FrameSequence],
    streams: Mapping[str, StreamInfo],
    existing: ExistingStore,
    new_ranges: Iterable[StoredRange],
    new_tracks: Collection[str],
    group_size: int,
) -> ExtractionPlan:
    """Find what a data set's sequences lack.

    Args:
        streams: those that the store is to have.
        new_ranges: in finished shards to which the store does not refer yet.
        new_tracks: the keys of the tracks in these shards.
        group_size: frames per group, unless the user has set the size of shards.
    """
    stored = matching_ranges(streams, existing, new_ranges)
    size = sum(s.length for s in sequences) * sum(info.frame_bytes for info in streams.values())
    tracks = existing.tracks.keys() | new_tracks
    return ExtractionPlan(
        groups=plan_extraction(sequences, stored, config.extract.shard or group_size),
        vehicles=vehicles_without_tracks(sequences, tracks) if config.extract.tracks else {},
        packed=existing.is_packed and size <= config.extract.packed_gb * 1e9,
    )


def matching_ranges(
    streams: Mapping[str, StreamInfo], existing: ExistingStore, new_ranges: Iterable[StoredRange]
) -> dict[str, list[StoredRange]]:
    """By stream, the ranges in new shards and the store whose origin, shape and type are those of `streams`.

    >>> info = StreamInfo((4, 4, 8), "float16")
    >>> matching_ranges({"appearance": info}, ExistingStore(), [])
    {'appearance': []}
    """
    shards, fingerprints = list(new_ranges), {name: info.fingerprint for name, info in streams.items()}
    return {
        name: [r for r in [*shards, *existing.ranges.get(name, ())] if r.streams.get(name) == fingerprint]
        for name, fingerprint in fingerprints.items()
    }


@dataclass(frozen=True)
class Extraction:
    """What there is once everything is extracted that can be."""

    sequences: Sequence[FrameSequence]  # of the data set
    streams: Mapping[str, StreamInfo]  # that the store is to have, beside those derived from them
    stored: StoredStreams  # where their frames are
    tracks: Mapping[str, Track]  # all, by their keys
    tracked: Collection[str]  # ids of the sequences whose vehicles were to be tracked
    scan_faults: Sequence[str]
    faults: Mapping[str, str]  # id of a sequence → why it could not be extracted or tracked
    relative_errors: Mapping[str, float]  # of the maps in the shards, by engine


@dataclass(frozen=True)
class StoreUpdate:
    """What the store is to contain, and what to tell the user."""

    content: StoreContent | None  # None: no sequence is complete
    missing: dict[str, str]  # id of a sequence → why it is not in the store
    notes: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # streams that are not in the store any more


def store_update(
    existing: ExistingStore, trunk: TrunkInfo, extraction: Extraction, packed: bool, skip_damaged: bool
) -> StoreUpdate:
    """Decide what the store is to contain: the sequences that are complete and, in a repair, others that are sound."""
    damage, stored = existing.damage, extraction.stored
    complete, ranges = complete_sequences(extraction.sequences, stored)
    kept: list[FrameSequence] = []
    if damage is not None:
        done = {s.id for s in complete}
        kept, _ = complete_sequences([s for s in existing.sequences if s.id not in done], stored)
        complete, ranges = complete_sequences([*complete, *kept], stored)
    missing = _missing(extraction, complete)
    notes = empty_track_notes([s for s in complete if s.id in extraction.tracked], extraction.tracks)
    notes += missing_frame_notes(complete if extraction.tracked else [])
    notes += kept_notes(kept, damage)
    if not complete:
        return StoreUpdate(None, missing, notes)
    streams = {
        name: StreamContent(info, ranges[name], arrays=trunk.bases.get(name, {}))
        for name, info in extraction.streams.items()
    }
    dropped = []
    for name in sorted(existing.streams.keys() - streams.keys()):  # stage two derived these
        derived = _derived_content(existing, name, complete, packed)
        if derived is not None:
            streams[name] = derived
        else:
            dropped.append(name)
            notes.append(f"stream {name} was dropped, since it lacks new, changed or damaged frames")
    keys = [key for s in complete for key in track_keys(s) if key in extraction.tracks]
    content = StoreContent(
        _header(existing, trunk, extraction, complete, missing, skip_damaged),
        complete,
        streams,
        trunk.top,
        {key: extraction.tracks[key] for key in keys},
    )
    return StoreUpdate(content, missing, notes, dropped)


def changes_store(existing: ExistingStore, content: StoreContent, packed: bool) -> bool:
    """Whether a store has to be written to have this content, of which no frame or track is new."""
    return (
        existing.damage is not None
        or existing.header is None
        or existing.header != replace(content.header, versions=existing.header.versions)
        or existing.streams.keys() != content.streams.keys()
        or existing.is_packed != packed
        or not same_sequences(existing.sequences, content.sequences)
    )


def _missing(extraction: Extraction, complete: Sequence[FrameSequence]) -> dict[str, str]:
    """What the store lacks, and why: sequences, clips with faults, and tracks."""
    ids, faults = {s.id for s in complete}, extraction.faults
    missing = {f"fault {i}": fault for i, fault in enumerate(extraction.scan_faults, 1)}
    missing |= {s.id: faults.get(s.id, "not extracted") for s in extraction.sequences if s.id not in ids}
    return missing | {f"tracks of {s.id}": faults[s.id] for s in complete if s.id in faults}


def _derived_content(
    existing: ExistingStore, name: str, complete: Sequence[FrameSequence], packed: bool
) -> StreamContent | None:
    """What is kept of a stream that stage two derived; None if it cannot be kept."""
    info, ranges = existing.streams[name], sequence_ranges(complete, existing.ranges[name])
    if name in existing.bases and (all(ranges) or (info.is_derived and not packed)):
        return StreamContent(info, ranges, arrays=existing.bases[name])
    return None


def _header(
    existing: ExistingStore,
    trunk: TrunkInfo,
    extraction: Extraction,
    complete: Sequence[FrameSequence],
    missing: Mapping[str, str],
    skip_damaged: bool,
) -> Header:
    errors = dict(existing.header.trunk.get("relative_error", {})) if existing.header else {}
    for name, error in extraction.relative_errors.items():
        errors[name] = max(error, errors.get(name, 0.0))  # the largest of this and earlier runs
    header = Header(
        trunk.recipe,
        trunk={**trunk.facts, "relative_error": errors},
        versions={name: version(name) for name in LIBRARIES},
        missing=missing,
        complete=not missing or skip_damaged,
    )
    lost = {s.id for s in existing.sequences} - {s.id for s in complete}
    if existing.damage is not None and existing.header is not None and not lost:
        # a store that has lost nothing is not less complete than before, whatever the images are like now
        return replace(header, missing=existing.header.missing, complete=existing.header.complete)
    return header
