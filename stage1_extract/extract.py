"""Extraction: frames in, store out. Only frames that are not stored yet go through the trunk.

Shards are written beside the store, in `<store>.parts/`. Once all are finished, the store is assembled from their raw
chunks and renamed into place. If the process is killed, the same command continues from the finished shards.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.cpu import cpu_count
from features._common.lock import exclusive_write_lock
from features._common.log import logger
from features._common.progress import progress_bar
from features.config import Config
from features.errors import BadInputs, DataError, StoreError
from features.frame_ranges import FrameRange
from features.recipe import json_digest
from features.sequences import same_sequences
from features.store import Header, Store, StreamInfo
from features.store_writer import StreamContent, assemble_store, check_shard
from features.streams import APPEARANCE, MOTION
from features.tracks import Track, TrackedVehicle, track_keys
from stage1_extract import optical_flow
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.engines.engine import Engine
from stage1_extract.existing_store import DamagedRows, ExistingStore, TrunkInfo, with_fingerprint
from stage1_extract.frame_loader import FRAMES_PER_JOB, FlowStrips, LoadedFrames, load_frames
from stage1_extract.plan import ExtractionPlan, complete_sequences, plan_extraction, vehicles_without_tracks
from stage1_extract.shards import Shards, regroup_batches
from stage1_extract.tracking.sequence_tracks import empty_track_notes, missing_frame_notes, track_clips

MAX_PENDING_WRITES = 2  # batches that are computed but not written yet
LIBRARIES = ("tensorflow", "keras", "h5py", "numpy", "opencv-python-headless")  # whose versions the store records

VehiclesToTrack = Mapping[str, tuple[TrackedVehicle, ...]]  # sequence id → its vehicles


@dataclass
class ExtractionResult:
    """What an extraction did."""

    extracted: int = 0  # frames that went through the trunk
    frames: int = 0  # now in the store
    missing: dict[str, str] = field(default_factory=dict)  # sequence id → why it is not in the store
    flows: int = 0  # frames whose optical flow was computed
    tracks: int = 0  # vehicles that were tracked
    notes: list[str] = field(default_factory=list)  # further messages for the user, a line each
    engine: str = ""  # with its precision and relative error


def extract(
    config: Config,
    store: Path,
    catalogue: Catalogue,
    *,
    damaged_rows: DamagedRows | None = None,
    engine: Engine | None = None,
) -> ExtractionResult:
    """Update `store` so that it holds features for every sequence in the catalogue.

    Args:
        damaged_rows: rows of the store to extract again, with their damaged streams.
        engine: an engine already built from the same config.

    Raises:
        BadInputs: errors found without decoding, before any work; or, at the end, sequences that could not be decoded.
        StoreError: the store has another recipe, is damaged, or is being written by another process.
        DataError: too little disk space.
    """
    skip_damaged = config.extract.skip_damaged
    if catalogue.faults and not skip_damaged:
        raise BadInputs(
            f"{len(catalogue.faults)} errors in {config.data.path}; nothing was extracted",
            list(catalogue.faults),
            hint="correct them, or skip these clips with --extract.skip_damaged true",
        )
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: every clip has errors", list(catalogue.faults))
    with exclusive_write_lock(store):
        request = _request_digest(config)
        if not damaged_rows and (result := _finished_result(config, store, catalogue, request)):
            return result
        result = _extract(config, store, catalogue, request, damaged_rows or {}, engine)
    if result.missing and not skip_damaged:
        raise BadInputs(
            f"{store}: {len(result.missing)} of {len(catalogue.clips)} sequences could not be decoded and were skipped",
            list(result.missing.values()),
            hint="replace their files and run the same command again, or skip them with --extract.skip_damaged true",
        )
    return result


def _finished_result(config: Config, path: Path, catalogue: Catalogue, request: str) -> ExtractionResult | None:
    """The result if the store already has everything, else None."""
    if not path.exists():
        return None
    with Store(path) as store:
        flow = store.streams[MOTION].fingerprint if MOTION in store.streams else None
        finished = (
            store.complete
            and store.header.trunk.get("request") == request
            and same_sequences(store.sequences, [clip.sequence for clip in catalogue.clips])
            and set(store.missing.values()) == set(catalogue.faults)
            and (not config.extract.motion or flow == optical_flow.FLOW_INFO.fingerprint)
            and not (config.extract.tracks and vehicles_without_tracks(store.sequences, store.track_keys))
        )
        return ExtractionResult(0, store.frames, dict(store.missing)) if finished else None


def _extract(
    config: Config, store: Path, catalogue: Catalogue, request: str, damaged_rows: DamagedRows, engine: Engine | None
) -> ExtractionResult:
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    sequences = [clip.sequence for clip in catalogue.clips]
    shard_folder = store.with_name(f"{store.name}.parts")
    _clean_up(store, shard_folder)
    existing = ExistingStore.read(store, damaged_rows)
    trunk = TrunkInfo.from_store(existing, request, sequences)
    if trunk is None:
        engine = engine or Engine(build_trunk(config), config.extract.batch, config.extract.engine)
        trunk = TrunkInfo.from_trunk(engine.trunk, config, request)
    if existing.header is not None and existing.header.recipe.fingerprint != trunk.recipe.fingerprint:
        raise StoreError(
            f"{store}: made with another recipe",
            got="; ".join(trunk.recipe.differences(existing.header.recipe)),
            hint=f"use another store for this recipe, --store OTHER.h5, or move {store} away",
        )
    streams = {APPEARANCE: trunk.stream} | ({MOTION: optical_flow.FLOW_INFO} if config.extract.motion else {})
    shards = Shards(shard_folder, trunk.recipe)
    in_store = with_fingerprint(existing.ranges, streams)
    plan = plan_extraction(sequences, in_store, shards.stored_ranges(streams), config.extract.shard)
    vehicles: VehiclesToTrack = {}
    if config.extract.tracks:
        vehicles = vehicles_without_tracks(sequences, existing.tracks.keys() | shards.tracks().keys())
    faults: dict[str, str] = {}
    if plan.frames or vehicles:
        _check_disk_space(store, plan, streams)
        shard_folder.mkdir(parents=True, exist_ok=True)
        cv2.setNumThreads(1)  # frames are decoded, and vehicles tracked, in parallel, each by one thread
        if plan.groups:
            _extract_groups(config, shards, clips, plan, streams, engine, vehicles, faults)
        _track_remaining(config, shards, clips, vehicles, faults)
    in_shards = shards.stored_ranges(streams)
    complete, ranges = complete_sequences(sequences, {n: [*in_shards[n], *stored] for n, stored in in_store.items()})
    tracks = dict(existing.tracks) | shards.tracks()
    missing = {f"fault {i}": fault for i, fault in enumerate(catalogue.faults, 1)}
    missing |= {s.id: faults.get(s.id, "not extracted") for s in sequences if s not in complete}
    missing |= {f"tracks of {s.id}": faults[s.id] for s in complete if s.id in faults}
    notes = empty_track_notes([s for s in complete if s.id in vehicles], tracks)
    notes += missing_frame_notes(complete if vehicles else [])
    if complete:
        contents = {name: StreamContent(info, ranges[name]) for name, info in streams.items()}
        for name in sorted(existing.streams.keys() - streams.keys()):  # stage two derived these
            stored_sequences, derived = complete_sequences(complete, {name: existing.ranges[name]})
            if len(stored_sequences) == len(complete):
                basis = existing.bases.get(name, {})
                contents[name] = StreamContent(existing.streams[name], derived[name], arrays=basis)
            else:
                notes.append(f"stream {name} was dropped, since it lacks new or changed frames")
        errors = dict(existing.header.trunk.get("relative_error", {})) if existing.header else {}
        if engine is not None and engine.relative_error is not None:  # the largest of this and earlier runs
            errors[engine.name] = max(engine.relative_error, errors.get(engine.name, 0.0))
        header = Header(
            trunk.recipe,
            trunk={**trunk.facts, "relative_error": errors},
            versions={name: version(name) for name in LIBRARIES},
            missing=missing,
            complete=not missing or config.extract.skip_damaged,
        )
        keys = [key for s in complete for key in track_keys(s) if key in tracks]
        assemble_store(store, header, complete, contents, trunk.top, {key: tracks[key] for key in keys})
        shutil.rmtree(shard_folder, ignore_errors=True)
    return ExtractionResult(
        extracted=plan.missing_frames(APPEARANCE),
        frames=sum(s.length for s in complete),
        missing=missing,
        flows=plan.missing_frames(MOTION),
        tracks=sum(map(len, vehicles.values())),
        notes=[f"{store}: {note}" for note in notes],
        engine=str(engine),
    )


def _extract_groups(
    config: Config,
    shards: Shards,
    clips: dict[str, Clip],
    plan: ExtractionPlan,
    streams: Mapping[str, StreamInfo],
    engine: Engine | None,
    vehicles: VehiclesToTrack,
    faults: dict[str, str],
) -> None:
    """Extract each group of a plan into a shard; add the sequences that cannot be decoded to `faults`."""
    threads = config.extract.threads or cpu_count()
    strips: FlowStrips = {}
    stored_frames = max(0, plan.total_frames - plan.frames)
    with (
        progress_bar(plan.total_frames, "features", "frames", initial=stored_frames) as progress,
        ThreadPoolExecutor(1, "finish") as pool,
    ):
        finishing: Future[None] | None = None
        for group in plan.groups:
            ranges = [r for r in group.ranges if r.sequence not in faults]
            if not ranges:
                continue
            motion = MOTION in group.streams
            loaded = load_frames(ranges, clips, config.frames, threads, motion=motion, tracked=vehicles, strips=strips)
            group_streams = {name: streams[name] for name in group.streams}
            finish = _extract_group(shards, ranges, group_streams, loaded, engine, faults, progress.update)
            previous, finishing = finishing, pool.submit(finish)  # while the next group's frames are computed
            if previous:
                previous.result()
        if finishing:
            finishing.result()


def _extract_group(
    shards: Shards,
    ranges: Sequence[FrameRange],
    streams: Mapping[str, StreamInfo],
    loaded: Iterator[LoadedFrames],
    engine: Engine | None,
    faults: dict[str, str],
    update_progress: Callable[[int], object],
) -> Callable[[], None]:
    """Run one group through the trunk into a shard; return a function that finishes and renames the shard."""
    valid = set(range(len(ranges)))  # indices of ranges whose frames can be decoded
    tracks: dict[str, Track] = {}
    writes: deque[Future[None]] = deque()

    def collect_faults_and_tracks() -> Iterator[LoadedFrames]:
        for frames in loaded:  # blanks too, so that the others keep their positions
            if frames.fault is not None:
                valid.discard(frames.range_index)
                faults.setdefault(ranges[frames.range_index].sequence, frames.fault)
            tracks.update(frames.tracks)
            yield frames

    def write(maps: Future[NDArray[Any]] | None, motion: NDArray[Any] | None, thumbnails: list[bytes]) -> None:
        entries = {} if motion is None else {MOTION: motion}
        if maps is not None:
            entries[APPEARANCE] = maps.result()
        # thumbnails are stored together with the trunk's stream
        writer.write(entries, thumbnails if maps is not None else [b""] * len(thumbnails))

    with ExitStack() as stack:
        writer = stack.enter_context(shards.new_shard(ranges, streams))
        pool = stack.enter_context(ThreadPoolExecutor(1, "write"))
        size, lanes = (engine.batch, engine.lanes) if engine is not None else (FRAMES_PER_JOB, 0)
        for frames, thumbnails, motion in regroup_batches(collect_faults_and_tracks(), size):
            maps = engine.submit(frames) if engine is not None and APPEARANCE in streams else None
            writes.append(pool.submit(write, maps, motion, thumbnails))
            while len(writes) > lanes + MAX_PENDING_WRITES or (writes and writes[0].done()):
                writes.popleft().result()
            update_progress(len(frames))
        open_shard = stack.pop_all()

    def finish() -> None:
        with open_shard:
            while writes:
                writes.popleft().result()
            writer.finish(sorted(valid), tracks)

    return finish


def _track_remaining(
    config: Config, shards: Shards, clips: dict[str, Clip], vehicles: VehiclesToTrack, faults: dict[str, str]
) -> None:
    """Track the vehicles that were not tracked while decoding: in long sequences, or if all frames were stored."""
    sequences = [clips[name].sequence for name in vehicles if name not in faults]
    remaining = vehicles_without_tracks(sequences, shards.tracks())
    if not remaining:
        return
    unsaved: dict[str, Track] = {}
    with progress_bar(sum(map(len, remaining.values())), "tracks", "vehicles") as progress:
        for name, tracks in track_clips(clips, remaining, config.extract.threads or cpu_count()):
            if isinstance(tracks, str):
                faults[name] = tracks
            else:
                unsaved |= tracks
            progress.update(len(remaining[name]))
            if sum(len(t.boxes) for t in unsaved.values()) >= config.extract.shard:
                shards.write_tracks(unsaved)
                unsaved = {}
    if unsaved:
        shards.write_tracks(unsaved)


def _clean_up(store: Path, shard_folder: Path) -> None:
    """Delete what a killed process left behind: temporary files, and shards that cannot be read completely."""
    # this process holds the lock, so no other one is writing
    for path in [*store.parent.glob(f".{store.name}.*.tmp"), *shard_folder.glob(".*.tmp")]:
        path.unlink()
    for path in sorted(shard_folder.glob("*.h5")):
        try:
            check_shard(path)
        except StoreError as e:
            logger.warning(f"{path}: damaged shard, will be extracted again ({e.what})")
            path.unlink()


def _check_disk_space(store: Path, plan: ExtractionPlan, streams: Mapping[str, StreamInfo]) -> None:
    """Refuse, before hours of work, if the disk cannot hold both the shards and the store assembled from them."""
    sizes = {name: int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize for name, info in streams.items()}
    frame = sum(sizes.values())
    required = sum(plan.missing_frames(name) * size for name, size in sizes.items()) + plan.total_frames * frame
    free = shutil.disk_usage(store.parent).free
    if required > free:
        raise DataError(
            f"{store}: not enough disk space",
            expected=f"{required / 1e9:.3g} GB free "
            f"({plan.total_frames} frames of {frame / 1e3:.0f} kB, for shards and store)",
            got=f"{free / 1e9:.3g} GB",
            hint="free some space, use --extract.dtype float16, or --store on another disk",
        )


def _request_digest(config: Config) -> str:
    """Digest of all settings that determine the recipe, to see without loading a network whether it has changed."""
    weights = Path(config.backbone.weights)
    settings = config.model_dump(mode="json", include={"frames", "backbone"})
    if weights.is_file():
        settings["backbone"]["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    return json_digest([settings, config.extract.precision, config.extract.dtype, version("keras")])
