"""Extraction: frames in, store out. Only frames that are not stored yet go through the trunk.

Shards are written to `<store>.shards/`. A small store is then packed from them into a single file; a larger one refers
to them. If the process is killed, the same command continues from the shards that are finished.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
from joblib import cpu_count

from features._common.atomic import abandoned_files, exclusive_write_lock
from features._common.cluster import Cluster, connect
from features._common.console import logger, progress_bar, quiet_imports
from features.backbone_names import ONNX, is_onnx
from features.config import Config
from features.errors import BadInputs, DataError, StoreError
from features.frame_files import shard_folder
from features.frame_ranges import StoredRange, sequence_ranges
from features.recipe import json_digest
from features.sequences import FrameSequence, same_sequences
from features.shard_folder import delete_replaced_shards, delete_unused_shards, used_shards
from features.shards import shard_ranges
from features.store_tables import Header, StreamInfo
from features.store_writer import StoreContent, StreamContent, save_store
from features.streams import APPEARANCE, GROUND_FLOW, MOTION
from features.tracks import Track, track_keys
from features.verification import Damage
from stage1_extract.cluster_tasks import (
    SMALLEST_TASK,
    ExtractionJob,
    first_frame_digest,
    load_trunk,
    run_groups,
    run_tracking,
)
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.existing_store import ExistingStore, TrunkInfo
from stage1_extract.frame_pairs import stream_info
from stage1_extract.group_extraction import extract_groups
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import Group, complete_sequences, missing_frames, plan_extraction, vehicles_without_tracks
from stage1_extract.salvage import kept_notes, salvage
from stage1_extract.tracking.sequence_tracks import empty_track_notes, missing_frame_notes, track_clips

if TYPE_CHECKING:  # loading TensorFlow takes seconds, which an extraction with nothing to do need not wait for
    from stage1_extract.engines.engine import Engine

FRAMES_PER_SHARD = 512
PROBED_CLIPS = 8  # a worker must decode the same first frame as the driver, of the first of these that is intact
LIBRARIES = ("tensorflow", "keras", "h5py", "numpy", "opencv-python-headless", "av")  # whose versions the store records


@dataclass
class ExtractionResult:
    """What an extraction did."""

    extracted: int = 0  # frames that went through the trunk
    frames: int = 0  # now in the store
    missing: dict[str, str] = field(default_factory=dict)  # sequence id → why it is not in the store
    flows: int = 0  # frames whose optical flow was computed
    roads: int = 0  # frames whose entry of the stream `ground_flow` was computed
    tracks: int = 0  # vehicles that were tracked
    notes: list[str] = field(default_factory=list)  # further messages for the user, a line each
    dropped: list[str] = field(default_factory=list)  # streams that are not in the store any more
    engine: str = ""  # with its precision and relative error


def extract(
    config: Config,
    store: Path,
    catalogue: Catalogue,
    *,
    damage: Damage | None = None,
    engine: Engine | None = None,
) -> ExtractionResult:
    """Update `store` so that it holds features for every sequence in the catalogue.

    `damage` of the store is repaired, and no sequence taken out that is sound, whether it is in the catalogue or not;
    `engine` may be one already built from the same config.

    Raises:
        BadInputs: errors found without decoding, before any work; or, at the end, sequences that could not be decoded.
        StoreError: the store has another recipe, is damaged, or is being written by another process.
        DataError: too little disk space.
    """
    skip_damaged = config.extract.skip_damaged
    if catalogue.faults and not skip_damaged and damage is None:
        raise BadInputs(
            f"{len(catalogue.faults)} errors in {config.data.path}; nothing was extracted",
            list(catalogue.faults),
            hint="correct them, or skip these clips with --extract.skip_damaged true",
        )
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: every clip has errors", list(catalogue.faults))
    with exclusive_write_lock(store), ExitStack() as connections:
        result = _extract(config, store, catalogue, damage, engine, connections)
    if result.missing and not skip_damaged:
        raise BadInputs(
            f"{store}: {len(result.missing)} of {len(catalogue.clips)} sequences could not be decoded and were skipped",
            list(result.missing.values()),
            hint="replace their files and run the same command again, or skip them with --extract.skip_damaged true",
        )
    return result


def _extract(
    config: Config,
    store: Path,
    catalogue: Catalogue,
    damage: Damage | None,
    engine: Engine | None,
    connections: ExitStack,
) -> ExtractionResult:
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    sequences = [clip.sequence for clip in catalogue.clips]
    folder = shard_folder(store)
    hides_frames = damage is not None and damage.hides_frames
    _clean_up(store, folder, keep_all=hides_frames)
    existing, request = ExistingStore.read(store, damage), request_digest(config)
    cluster, engines = None, set[str]()  # descriptions of what ran the trunk

    def connected() -> Cluster:
        probe = first_frame_digest, (catalogue.clips[:PROBED_CLIPS],)
        return cluster or connections.enter_context(connect(config.compute, folder, probe))

    on_cluster = config.compute.backend == "dask"
    trunk = TrunkInfo.from_store(existing, config, request, sequences)
    if trunk is None and on_cluster:
        cluster = connected()
        trunk = cluster.call("load trunk", load_trunk, config, request)
    elif trunk is None:
        with quiet_imports():
            from stage1_extract.backbone.onnx_trunk import any_trunk
            from stage1_extract.engines.engine import Engine
        engine = engine or Engine(any_trunk(config), config.extract.batch, config.extract.engine)
        trunk = TrunkInfo.from_trunk(engine.trunk, config, request)
    if hides_frames and damage is not None:
        existing = salvage(store, damage, sequences, trunk.recipe)
    if existing.header is not None and existing.header.recipe.fingerprint != trunk.recipe.fingerprint:
        raise StoreError(
            f"{store}: made with another recipe",
            got="; ".join(trunk.recipe.differences(existing.header.recipe)),
            hint=f"use another store for this recipe, --store OTHER.h5, or move {store} away",
        )
    streams = dict(trunk.streams) | {name: stream_info(name, sequences) for name in config.extract.pair_streams}
    in_use = {path.name for path in folder.glob("*.h5")} if hides_frames else used_shards(store)
    shards = NewShards(folder, trunk.recipe, in_use)

    def stored_ranges() -> dict[str, list[StoredRange]]:
        """By stream, those in shards and store whose origin, shape and type are the same as now."""
        in_shards, fingerprints = shards.ranges(), {name: info.fingerprint for name, info in streams.items()}
        return {
            name: [r for r in [*in_shards, *existing.ranges.get(name, ())] if r.streams.get(name) == fingerprint]
            for name, fingerprint in fingerprints.items()
        }

    size = sum(s.length for s in sequences) * sum(info.frame_bytes for info in streams.values())
    packed = existing.is_packed and size <= config.extract.packed_gb * 1e9
    groups = plan_extraction(
        sequences, stored_ranges(), config.extract.shard or (SMALLEST_TASK if on_cluster else FRAMES_PER_SHARD)
    )
    vehicles: dict[str, int] = {}
    if config.extract.tracks:
        vehicles = vehicles_without_tracks(sequences, existing.tracks.keys() | shards.tracks().keys())
    faults: dict[str, str] = {}
    if groups or vehicles:
        _check_disk_space(store, groups, sum(s.length for s in sequences), streams, packed)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.setNumThreads(1)  # frames are decoded, and vehicles tracked, in parallel, each by one thread
        if on_cluster:
            cluster = connected()
            job = ExtractionJob(config, request, trunk.recipe, streams, folder)
            engines = run_groups(cluster, job, shards, clips, groups, vehicles, faults)
            untracked = _untracked(clips, vehicles, shards, faults)
            run_tracking(cluster, job, shards, clips, untracked, faults)
            connections.close()
        else:
            _extract_here(config, shards, clips, groups, streams, engine, vehicles, faults)
            _track_here(config, shards, clips, _untracked(clips, vehicles, shards, faults), faults)
    complete, ranges = complete_sequences(sequences, stored_ranges())
    kept: list[FrameSequence] = []
    if damage is not None:
        done = {s.id for s in complete}
        kept, _ = complete_sequences([s for s in existing.sequences if s.id not in done], stored_ranges())
        complete, ranges = complete_sequences([*complete, *kept], stored_ranges())
    tracks = dict(existing.tracks) | shards.tracks()
    missing = {f"fault {i}": fault for i, fault in enumerate(catalogue.faults, 1)}
    complete_ids = {s.id for s in complete}
    missing |= {s.id: faults.get(s.id, "not extracted") for s in sequences if s.id not in complete_ids}
    missing |= {f"tracks of {s.id}": faults[s.id] for s in complete if s.id in faults}
    notes = empty_track_notes([s for s in complete if s.id in vehicles], tracks)
    notes += missing_frame_notes(complete if vehicles else [])
    notes += kept_notes(kept, damage)
    dropped: list[str] = []
    if complete:
        contents = {name: StreamContent(info, ranges[name]) for name, info in streams.items()}
        for name in sorted(existing.streams.keys() - streams.keys()):  # stage two derived these
            info, derived = existing.streams[name], sequence_ranges(complete, existing.ranges[name])
            if name in existing.bases and (all(derived) or (info.is_derived and not packed)):
                contents[name] = StreamContent(info, derived, arrays=existing.bases[name])
            else:
                dropped.append(name)
                notes.append(f"stream {name} was dropped, since it lacks new, changed or damaged frames")
        errors = dict(existing.header.trunk.get("relative_error", {})) if existing.header else {}
        for name, error in shards.relative_errors(stored_too=existing.header is None).items():
            errors[name] = max(error, errors.get(name, 0.0))  # the largest of this and earlier runs
        header = Header(
            trunk.recipe,
            trunk={**trunk.facts, "relative_error": errors},
            versions={name: version(name) for name in LIBRARIES},
            missing=missing,
            complete=not missing or config.extract.skip_damaged,
        )
        if damage is not None and existing.header and complete_ids >= {s.id for s in existing.sequences}:
            # a store that has lost nothing is not less complete than before, whatever the images are like now
            header = replace(header, missing=existing.header.missing, complete=existing.header.complete)
        keys = [key for s in complete for key in track_keys(s) if key in tracks]
        content = StoreContent(header, complete, contents, trunk.top, {key: tracks[key] for key in keys})
        if (
            any(shards.files())
            or damage is not None
            or existing.header is None
            or existing.header != replace(header, versions=existing.header.versions)
            or existing.streams.keys() != contents.keys()
            or existing.is_packed != packed
            or not same_sequences(existing.sequences, complete)
        ):
            save_store(store, content, packed)
            delete_unused_shards(store)
    return ExtractionResult(
        extracted=sum(len(group) for group in groups if trunk.streams.keys() & {*group.streams}),
        frames=sum(s.length for s in complete),
        missing=missing,
        flows=missing_frames(groups, MOTION),
        roads=missing_frames(groups, GROUND_FLOW),
        tracks=sum(vehicles.values()),
        notes=[f"{store}: {note}" for note in notes],
        dropped=dropped,
        engine=str(engine) if engine is not None else ", ".join(sorted(engines)),
    )


def _extract_here(
    config: Config,
    shards: NewShards,
    clips: Mapping[str, Clip],
    groups: Sequence[Group],
    streams: Mapping[str, StreamInfo],
    engine: Engine | None,
    vehicles: Mapping[str, int],
    faults: dict[str, str],
) -> None:
    """Extract groups in this process, and show the progress."""
    if not groups:
        return
    total, remaining = sum(clip.sequence.length for clip in clips.values()), sum(map(len, groups))
    with progress_bar(total, "features", "frames", initial=max(0, total - remaining)) as progress:
        for count in extract_groups(config, shards, clips, groups, streams, engine, vehicles, faults):
            progress.update(count)


def _untracked(
    clips: Mapping[str, Clip], vehicles: Iterable[str], shards: NewShards, faults: Mapping[str, str]
) -> dict[str, int]:
    """The vehicles that were not tracked while decoding: in long sequences, or if all frames were stored."""
    sequences = [clips[name].sequence for name in vehicles if name not in faults]
    return vehicles_without_tracks(sequences, shards.tracks()) if sequences else {}


def _track_here(
    config: Config, shards: NewShards, clips: Mapping[str, Clip], remaining: Mapping[str, int], faults: dict[str, str]
) -> None:
    """Track vehicles in this process, sequence id → number, and show the progress."""
    if not remaining:
        return
    unsaved: dict[str, Track] = {}
    with progress_bar(sum(remaining.values()), "tracks", "vehicles") as progress:
        for name, tracks in track_clips(clips, remaining, config.extract.threads or cpu_count()):
            if isinstance(tracks, str):
                faults[name] = tracks
            else:
                unsaved |= tracks
            progress.update(remaining[name])
            if sum(len(t.boxes) for t in unsaved.values()) >= (config.extract.shard or FRAMES_PER_SHARD):
                shards.write_tracks(unsaved)
                unsaved = {}
    if unsaved:
        shards.write_tracks(unsaved)


def _clean_up(store: Path, folder: Path, keep_all: bool) -> None:
    """Delete what a killed process left behind: temporary files, unreadable shards, and those of replaced indexes.

    With `keep_all`, no shard is deleted: the store does not say which it needs.
    """
    # this process holds the lock, but workers of a driver that was killed may still be writing shards
    for path in abandoned_files([*store.parent.glob(f".{store.name}.*.tmp"), *folder.glob(".*.tmp")]):
        path.unlink(missing_ok=True)
    older = store.with_name(f"{store.name}.parts")  # of an extraction by an older version
    if older.exists() and not folder.exists():
        older.rename(folder)
    if not folder.exists() or keep_all:
        return
    delete_replaced_shards(store)
    used = used_shards(store)
    for path in sorted(folder.glob("[!.]*.h5")):
        if path.name not in used:
            try:
                shard_ranges(path, "")
            except StoreError as e:
                logger.warning(f"{path}: damaged shard, will be extracted again ({e.what})")
                path.unlink()


def required_bytes(groups: Sequence[Group], frames: int, streams: Mapping[str, StreamInfo], packed: bool) -> int:
    """Bytes that extracting groups needs on the disk: their shards and, if packed, the store with its `frames`."""
    sizes = {name: info.frame_bytes for name, info in streams.items()}
    return sum((missing_frames(groups, name) + packed * frames) * size for name, size in sizes.items())


def _check_disk_space(
    store: Path, groups: Sequence[Group], frames: int, streams: Mapping[str, StreamInfo], packed: bool
) -> None:
    """Refuse, before hours of work, if the disk cannot hold the shards and, if packed, the store with its `frames`."""
    required, size = required_bytes(groups, frames, streams, packed), sum(i.frame_bytes for i in streams.values())
    free = shutil.disk_usage(store.parent).free
    if required > free:
        raise DataError(
            f"{store}: not enough disk space",
            expected=f"{required / 1e9:.3g} GB free "
            f"({frames} frames of {size / 1e3:.0f} kB{', for shards and store' if packed else ''})",
            got=f"{free / 1e9:.3g} GB",
            hint="free some space, use --extract.dtype float16, or --store on another disk",
        )


def request_digest(config: Config) -> str:
    """Digest of all settings that determine the recipe, to see without loading a network whether it has changed."""
    weights = Path(config.backbone.weights)
    settings = config.model_dump(mode="json", include={"frames", "backbone"})
    del settings["backbone"]["taps"], settings["backbone"]["tap_pooling"]  # each tap's stream has its own origin
    for name in ("mean", "deviation", "layout"):  # older stores do not state their absence
        if settings["backbone"][name] is None:
            del settings["backbone"][name]
    if weights.is_file():
        settings["backbone"]["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    if is_onnx(config.backbone.name) and (file := Path(config.backbone.name.removeprefix(ONNX)).expanduser()).is_file():
        settings["backbone"]["name"] = hashlib.sha256(file.read_bytes()).hexdigest()
    extract: list[str] = [config.extract.precision, config.extract.dtype]
    if (grid := config.extract.grid(APPEARANCE)) is not None:  # older stores do not state its absence
        extract.append(f"grid {grid}")
    return json_digest([settings, *extract, version("keras")])
