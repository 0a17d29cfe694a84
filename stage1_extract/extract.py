"""Extraction: frames in, store out. Only what no file holds yet goes through the trunk.

Shards are written beside the store under `<store>.parts/`; when all are there, the store is assembled from their raw
chunks and renamed into place. Killed at any moment, the same command goes on from the finished shards.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.lock import exclusive_write_lock
from features._common.log import logger
from features._common.progress import progress_bar
from features.config import Config
from features.errors import BadInputs, DataError, StoreError
from features.frame_ranges import FrameRange
from features.recipe import json_digest
from features.sequences import same_sequences
from features.store import Header, Store, StreamInfo
from features.store_writer import ShardWriter, StreamContent, assemble_store, check_shard
from features.streams import APPEARANCE, MOTION
from features.tracks import Track, TrackedVehicle, track_keys
from stage1_extract import optical_flow
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.engines.engine import Engine
from stage1_extract.existing_store import DamagedRows, ExistingStore, TrunkInfo, with_fingerprint
from stage1_extract.frame_loader import FRAMES_PER_JOB, DecodeOptions, FlowStrip, LoadedFrames, load_frames
from stage1_extract.plan import ExtractionPlan, complete_sequences, plan_extraction, vehicles_without_tracks
from stage1_extract.shards import Shards, record_faults, regroup_batches
from stage1_extract.tracking.sequence_tracks import empty_track_notes, missing_frame_notes, track_clips

WRITES_AHEAD = 2


@dataclass
class ExtractionResult:
    """What an extraction did.

    Attributes:
        extracted: frames that went through the trunk.
        frames: frames in the store now.
        missing: sequence id → why it is not in the store.
        flows: frames whose flow was computed.
        tracks: vehicles that were followed.
        notes: what else the user should know, a line each.
        engine: what the frames went through, and how far its maps are from TensorFlow's in float32.
    """

    extracted: int = 0
    frames: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    flows: int = 0
    tracks: int = 0
    notes: list[str] = field(default_factory=list)
    engine: str = ""


def extract(
    config: Config, store: Path, catalogue: Catalogue, *, redo: DamagedRows | None = None, engine: Engine | None = None
) -> ExtractionResult:
    """Bring `store` to what the catalogue and the config want.

    Args:
        catalogue: what the layout found.
        redo: rows of the store and which of their streams to extract anew although they are there (damaged ones).
        engine: one already built from the same config.

    Raises:
        BadInputs: faults seen without decoding, before any work; or, at the end, sequences that would not decode.
        StoreError: the store has another recipe, is damaged, or is being written.
        DataError: too little room on the disk.
    """
    skip = config.extract.skip_damaged
    if catalogue.faults and not skip:
        raise BadInputs(
            f"{len(catalogue.faults)} faults in {config.data.path}, nothing was extracted",
            list(catalogue.faults),
            hint="put them right, or leave these clips out with --extract.skip_damaged true",
        )
    if not catalogue.clips:
        raise BadInputs(f"{config.data.path}: no sound clip", list(catalogue.faults))
    with exclusive_write_lock(store):
        request = _request(config)
        wanted = [clip.sequence for clip in catalogue.clips]
        if store.exists():
            with Store(store) as s:
                done = s.header.trunk.get("request") == request and s.complete and not redo
                done = done and same_sequences(s.sequences, wanted) and set(s.missing.values()) == set(catalogue.faults)
                if done and _has_extras(s, config):
                    return ExtractionResult(0, s.frames, dict(s.missing))
        outcome = _extract(config, store, catalogue, request, redo or {}, engine)
    if outcome.missing and not skip:
        raise BadInputs(
            f"{store}: {len(outcome.missing)} of {len(wanted)} sequences would not decode and are left out",
            list(outcome.missing.values()),
            hint="replace their files and run the same command, or do without with --extract.skip_damaged true",
        )
    return outcome


def _extract(
    config: Config, store: Path, catalogue: Catalogue, request: str, redo: DamagedRows, engine: Engine | None
) -> ExtractionResult:
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    wanted = [clip.sequence for clip in catalogue.clips]
    parts = store.with_name(f"{store.name}.parts")
    _sweep(store, parts)
    _discard_damaged(parts)
    old = ExistingStore.of(store, redo)
    frozen = TrunkInfo.kept(old, request, wanted)
    if frozen is None:
        engine = engine or Engine(build_trunk(config), config.extract.batch, config.extract.engine)
        frozen = TrunkInfo.of(engine.trunk, config, request)
    _same_recipe(store, old, frozen)
    streams = {APPEARANCE: frozen.stream} | ({MOTION: optical_flow.FLOW_INFO} if config.extract.motion else {})
    shards = Shards(parts, frozen.recipe)
    todo = plan_extraction(wanted, with_fingerprint(old.held, streams), shards.held(streams), config.extract.shard)
    faults: dict[str, str] = {}
    lost = vehicles_without_tracks(wanted, old.tracks.keys() | shards.tracks().keys()) if config.extract.tracks else {}
    if todo.frames or lost:
        _room(store, todo, streams)
        parts.mkdir(parents=True, exist_ok=True)
        if todo.groups:
            _run(config, shards, clips, todo, streams, engine, lost, faults)
        _track(config, shards, clips, lost, faults)
    held = shards.held(streams)
    ready, laid = complete_sequences(
        wanted, {n: [*held[n], *own] for n, own in with_fingerprint(old.held, streams).items()}
    )
    tracks = dict(old.tracks) | shards.tracks()
    missing = {f"fault {i}": fault for i, fault in enumerate(catalogue.faults, 1)}
    missing |= {s.id: faults.get(s.id, "not extracted") for s in wanted if s not in ready}
    missing |= {f"tracks of {s.id}": faults[s.id] for s in ready if s.id in faults}
    header = Header(
        frozen.recipe,
        trunk={**frozen.facts, "relative_error": old.relative_errors(engine)},
        versions={name: version(name) for name in ("tensorflow", "keras", "h5py", "numpy", "opencv-python-headless")},
        missing=missing,
        complete=not missing or config.extract.skip_damaged,
    )
    notes = empty_track_notes([s for s in ready if s.id in lost], tracks) + missing_frame_notes(ready if lost else [])
    if ready:
        derived, dropped = old.derived(ready, streams)
        notes += [f"stream {name} was dropped: it lacks new or changed frames, make it anew" for name in dropped]
        kept = {name: StreamContent(info, laid[name]) for name, info in streams.items()}
        kept |= {n: StreamContent(old.streams[n], own, arrays=old.bases.get(n, {})) for n, own in derived.items()}
        named = [name for s in ready for name in track_keys(s)]
        assemble_store(store, header, ready, kept, frozen.top, {name: tracks[name] for name in named if name in tracks})
        shutil.rmtree(parts, ignore_errors=True)
    return ExtractionResult(
        todo.lacking(APPEARANCE), sum(s.length for s in ready), missing, todo.lacking(MOTION),
        sum(len(own) for own in lost.values()), [f"{store}: {note}" for note in notes],
        str(engine),
    )  # fmt: skip


def _run(
    config: Config,
    shards: Shards,
    clips: dict[str, Clip],
    todo: ExtractionPlan,
    streams: Mapping[str, StreamInfo],
    engine: Engine | None,
    lost: Mapping[str, tuple[TrackedVehicle, ...]],
    faults: dict[str, str],
) -> None:
    """Extract every group of a plan into a shard of its own; note the sequences that would not decode."""
    threads = config.extract.threads or len(os.sched_getaffinity(0))
    cv2.setNumThreads(1)  # the frames are what runs in parallel
    # TensorFlow may have a GPU beside the cores that decode, OpenVINO has the same cores
    turns = engine is not None and engine.name == "openvino"
    strips: dict[str, tuple[int, FlowStrip]] = {}
    with (
        progress_bar(todo.wanted, "features", "frames", initial=max(0, todo.wanted - todo.frames)) as progress,
        ThreadPoolExecutor(1, "finish") as pool,
    ):
        finishing: Future[None] | None = None
        for group in todo.groups:
            pieces = [p for p in group.pieces if p.sequence not in faults]
            if pieces:
                extras = DecodeOptions(MOTION in group.streams, lost, strips)
                decoded = load_frames(pieces, clips, config.frames, threads, extras, turns=turns)
                own = {name: streams[name] for name in group.streams}
                finish = _shard(shards, pieces, own, decoded, engine, faults, progress.update)
                before, finishing = finishing, pool.submit(finish)  # beside the next group's frames
                if before:
                    before.result()
        if finishing:
            finishing.result()


def _shard(
    shards: Shards,
    pieces: list[FrameRange],
    streams: Mapping[str, StreamInfo],
    decoded: Iterator[LoadedFrames],
    engine: Engine | None,
    faults: dict[str, str],
    step: Callable[[int], object],
) -> Callable[[], None]:
    """Run one group through the trunk into a shard, which the returned function finishes and renames."""
    sound = dict.fromkeys(range(len(pieces)), True)
    tracks: dict[str, Track] = {}
    pending: deque[Future[None]] = deque()
    with ExitStack() as begun:
        writer = begun.enter_context(shards.writing(pieces, streams))
        pool = begun.enter_context(ThreadPoolExecutor(1, "write"))
        size, ahead = (
            (engine.batch, engine.lanes + WRITES_AHEAD) if engine is not None else (FRAMES_PER_JOB, WRITES_AHEAD)
        )
        for batch in regroup_batches(record_faults(decoded, pieces, sound, tracks, faults), size):
            maps: Future[NDArray[Any]] | None = None
            if APPEARANCE in streams:
                assert engine is not None
                maps = engine.submit(batch.frames)
            pending.append(pool.submit(_write, writer, maps, batch.motion, batch.thumbnails))
            while len(pending) > ahead or (pending and pending[0].done()):
                pending.popleft().result()
            step(len(batch.frames))
        rest = begun.pop_all()

    def finish() -> None:
        with rest:
            while pending:
                pending.popleft().result()
            writer.close([i for i, well in sound.items() if well], tracks)

    return finish


def _write(
    writer: ShardWriter, maps: Future[NDArray[Any]] | None, flow: NDArray[Any] | None, thumbnails: list[bytes]
) -> None:
    entries = {} if flow is None else {MOTION: flow}
    if maps is not None:
        entries[APPEARANCE] = maps.result()
    # thumbnails come with the trunk's stream
    writer.write(entries, thumbnails if maps is not None else [b""] * len(thumbnails))


def _track(
    config: Config,
    shards: Shards,
    clips: dict[str, Clip],
    lost: Mapping[str, tuple[TrackedVehicle, ...]],
    faults: dict[str, str],
) -> None:
    """Follow the vehicles that were not followed beside the network: of long sequences, or in frames long decoded."""
    there = shards.tracks()
    rest = vehicles_without_tracks([clips[name].sequence for name in lost if name not in faults], there)
    if not rest:
        return
    threads = config.extract.threads or len(os.sched_getaffinity(0))
    cv2.setNumThreads(1)
    found: dict[str, Track] = {}
    with progress_bar(sum(map(len, rest.values())), "tracks", "vehicles") as progress:
        for name, tracks in track_clips(clips, rest, threads):
            if isinstance(tracks, str):
                faults[name] = tracks
            else:
                found |= tracks
            progress.update(len(rest[name]))
            if sum(len(t.boxes) for t in found.values()) >= config.extract.shard:
                shards.write_tracks(found)
                found = {}
    if found:
        shards.write_tracks(found)


def _has_extras(store: Store, config: Config) -> bool:
    """Whether a store has flow and tracks as far as they are asked for."""
    there = store.streams.get(MOTION)
    flows = not config.extract.motion or (there is not None and there.fingerprint == optical_flow.FLOW_INFO.fingerprint)
    return flows and not (config.extract.tracks and vehicles_without_tracks(store.sequences, store.track_keys))


def _same_recipe(store: Path, old: ExistingStore, frozen: TrunkInfo) -> None:
    """Refuse a store that was made by another recipe."""
    if old.header is not None and old.header.recipe.fingerprint != frozen.recipe.fingerprint:
        raise StoreError(
            f"{store}: made by another recipe",
            got="; ".join(frozen.recipe.differences(old.header.recipe)),
            hint=f"give this recipe a store of its own, --store OTHER.h5, or move {store} away",
        )


def _discard_damaged(parts: Path) -> None:
    """Throw away shards that cannot be read to the end: extracting them anew is the mend."""
    for path in sorted(parts.glob("*.h5")):
        try:
            check_shard(path)
        except StoreError as e:
            logger.warning(f"{path}: a damaged shard is extracted anew ({e.what})")
            path.unlink()


def _sweep(store: Path, parts: Path) -> None:
    """Throw away what a killed writer left under temporary names; we hold the lock, so nobody writes them."""
    for left in [*store.parent.glob(f".{store.name}.*.tmp"), *parts.glob(".*.tmp")]:
        left.unlink()


def _room(store: Path, todo: ExtractionPlan, streams: Mapping[str, StreamInfo]) -> None:
    """Refuse before hours of work what the disk cannot hold: shards and store stand side by side at the end."""
    each = {n: int(np.prod(info.shape)) * np.dtype(info.dtype).itemsize for n, info in streams.items()}
    frame = sum(each.values())
    needed = sum(todo.lacking(n) * size for n, size in each.items()) + todo.wanted * frame
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise DataError(
            f"{store}: the disk is too full",
            expected=f"{needed / 1e9:.3g} GB free ({todo.wanted} frames of {frame / 1e3:.0f} kB, shards and store)",
            got=f"{free / 1e9:.3g} GB",
            hint="free some space, or --extract.dtype float16, or --store on another disk",
        )


def _request(config: Config) -> str:
    """A digest of all that decides the recipe, to see without loading a network that nothing is to be done."""
    weights = Path(config.backbone.weights)
    content = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else config.backbone.weights
    asked = config.model_dump(mode="json", include={"frames", "backbone"})
    asked["backbone"]["weights"] = content
    stored = [config.extract.precision, config.extract.dtype]
    return json_digest([asked, *stored, version("keras")])
