"""The tasks of an extraction on a cluster: what a worker does, and the driver's part, which hands out the groups.

A worker loads the trunk once and keeps it, writes its shards into the store's folder, and returns only what it wrote.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import cv2
from joblib import cpu_count

from features._common.cluster import Cluster, Function, appears, describe_deaths, worker_address
from features._common.console import progress_bar, quiet_imports
from features.config import Config
from features.errors import ConfigError, DataError, StoreError
from features.frame_ranges import FrameRange
from features.principal_components import load_bases
from features.recipe import Recipe
from features.shards import shard_ranges
from features.store_tables import StreamInfo
from features.streams import PAIR_STREAMS
from features.tracks import Track
from stage1_extract.datasets.archive import file_version
from stage1_extract.datasets.clip import Clip
from stage1_extract.datasets.image_sequence import ImageFiles, is_unread, remember_files
from stage1_extract.datasets.scan_cache import ScanCache
from stage1_extract.engine_setup import new_engine, projected_engine
from stage1_extract.existing_store import TrunkInfo
from stage1_extract.group_extraction import extract_groups
from stage1_extract.kept_components import fit_bases
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import Group
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE, track_clips

if TYPE_CHECKING:
    from stage1_extract.engines.engine import Engine

SECONDS_PER_TASK = 30  # a task costs about 10 ms
FIRST_TASK = 512  # frames of a task as long as no worker's rate is known
SMALLEST_TASK = SHORT_SEQUENCE
FRAMES_PER_TRACKING_TASK = 4096

Clips = Mapping[str, Clip]  # by their sequences' ids

_engine_lock = Lock()


@dataclass(frozen=True)
class ExtractionJob:
    """What all tasks of an extraction have in common."""

    config: Config
    request: str  # digest of all that determines the recipe
    recipe: Recipe
    streams: Mapping[str, StreamInfo]
    folder: Path  # of the shards
    store: Path
    bases: Path | None = None  # the file with the principal components that maps are projected on


@dataclass
class TaskResult:
    """What a task did."""

    shards: set[str]  # names of the shards it wrote
    seconds: float = 0.0  # that extracting took; 0 if nothing was
    faults: dict[str, str] = field(default_factory=dict)  # id of a sequence → why it could not be extracted or tracked
    engine: str = ""  # what ran the trunk, with its precision; empty if nothing did
    digests: dict[str, str] = field(default_factory=dict)  # id of a sequence that the scan left unread → its digest
    files: dict[str, list[bytes]] = field(default_factory=dict)  # the same, of each of its files, if they were read


def first_frame_digest(clips: Sequence[Clip]) -> str:
    """SHA-256 of the first frame that can be decoded; the same wherever the same files are decoded in the same way."""
    for clip in clips:
        try:
            frame = next(iter(clip.source.read(0, 1)))
        except DataError:
            continue
        return f"{clip.sequence.id}: {hashlib.sha256(frame.tobytes()).hexdigest()[:16]}"
    return "no frame"


def run_groups(
    cluster: Cluster,
    job: ExtractionJob,
    shards: NewShards,
    clips: Clips,
    groups: Sequence[Group],
    vehicles: Collection[str],
    faults: dict[str, str],
    digests: dict[str, str],
    cache: ScanCache | None,
) -> set[str]:
    """Extract groups in the workers; see `extract_groups` for `faults` and `digests`. Return what ran the trunk.

    Unless the user has set the size of shards, groups are joined to tasks of half a minute, which get smaller towards
    the end, so that all workers end at about the same time.
    """
    from distributed import KilledWorker

    total, remaining = sum(clip.sequence.length for clip in clips.values()), sum(map(len, groups))
    rate, waiting, started = 0.0, remaining, list[Group]()  # frames per second and worker, frames of no task yet

    def size() -> int:
        if job.config.extract.shard:
            return 0
        share = waiting // (2 * max(1, cluster.threads))
        return max(SMALLEST_TASK, min(round(rate * SECONDS_PER_TASK) or FIRST_TASK, share))

    def tasks() -> Iterator[Function]:
        nonlocal waiting
        for group in joined_groups(groups, size):
            started.append(group)
            waiting -= len(group)
            paths = shards.group_paths(group.ranges, {name: job.streams[name] for name in group.streams})
            again = any(path.name in shards.stored for path in paths)  # damaged frames
            yield extract_group, (job, *_part(clips, group, vehicles), again)

    engines = set()
    with progress_bar(total, "features", "frames", initial=max(0, total - remaining)) as progress:
        for i, result in cluster.run("extract", tasks()):
            if isinstance(result, KilledWorker):
                _add_killed(faults, [r.sequence for r in started[i].ranges], result)
            else:
                _add_result(result, shards, faults)
                digests.update(result.digests)
                for name, files in result.files.items():
                    cast("ImageFiles", clips[name].source).digests[:] = files
                remember_group(started[i], clips, cache)
                engines.add(result.engine)
                rate = len(started[i]) / result.seconds if result.seconds else rate
            progress.update(len(started[i]))
    return engines - {""}


def run_tracking(
    cluster: Cluster,
    job: ExtractionJob,
    shards: NewShards,
    clips: Clips,
    vehicles: Mapping[str, int],
    faults: dict[str, str],
) -> None:
    """Track vehicles in the cluster's workers, sequence id → number; add sequences that fail there to `faults`."""
    if not vehicles:
        return
    from distributed import KilledWorker

    parts: list[list[str]] = []
    frames = FRAMES_PER_TRACKING_TASK
    for name in vehicles:
        if frames >= FRAMES_PER_TRACKING_TASK:
            parts.append([])
            frames = 0
        parts[-1].append(name)
        frames += clips[name].sequence.length
    tasks = ((track_group, (job, {name: clips[name] for name in part}, part)) for part in parts)
    with progress_bar(sum(vehicles.values()), "tracks", "vehicles") as progress:
        for i, result in cluster.run("track", tasks):
            if isinstance(result, KilledWorker):
                _add_killed(faults, parts[i], result)
            else:
                _add_result(result, shards, faults)
            progress.update(sum(vehicles[name] for name in parts[i]))


def joined_groups(groups: Iterable[Group], size: Callable[[], int]) -> Iterator[Group]:
    """Join consecutive groups of the same streams to groups of up to `size()` frames, asked anew for each."""
    waiting = deque(groups)
    while waiting:
        first = waiting.popleft()
        ranges, frames, limit = list(first.ranges), len(first), size()
        while waiting and waiting[0].streams == first.streams and frames + len(waiting[0]) <= limit:
            group = waiting.popleft()
            frames += len(group)
            for r in group.ranges:
                last = ranges[-1]
                if (r.sequence, r.digest, r.start) == (last.sequence, last.digest, last.stop):
                    ranges[-1] = replace(last, stop=r.stop)
                else:
                    ranges.append(r)
        yield Group(first.streams, tuple(ranges))


def load_trunk(
    config: Config, request: str, store: Path, stored: Recipe | None, bases: Path | None, clips: Sequence[Clip]
) -> TrunkInfo:
    """Load the trunk in a worker, which keeps it, and return what the store needs of it; see `new_engine`.

    `bases` is the file with the principal components to project on; if there is none yet, they are fitted to maps of
    the clips, and saved.
    """
    if config.extract.precision == "int8":  # made once, and read by all workers
        _use_all_threads()
        new_engine(config, store, stored, clips)
    if bases is not None and not bases.exists():
        fit_bases(config, clips, _engine_of(config, request, store, None), bases)
    return TrunkInfo.from_trunk(_engine_of(config, request, store, bases).trunk, config, request)


def extract_group(job: ExtractionJob, clips: Clips, group: Group, vehicles: Collection[str], again: bool) -> TaskResult:
    """Write the shards of a group, in a worker; with `again`, also those that are there."""
    shards, faults = NewShards(job.folder, job.recipe, set()), dict[str, str]()
    streams = {name: job.streams[name] for name in group.streams}
    paths = shards.group_paths(group.ranges, streams)
    if not again and all(_is_complete(path, job.recipe, group.ranges) for path in paths):
        # by a worker that died before it could tell
        stored = [s.frame_range for s in shard_ranges(paths[0], job.recipe.fingerprint)]
        known = {r.sequence: r.digest for r, planned in zip(stored, group.ranges, strict=True) if is_unread(planned)}
        return TaskResult({path.name for path in paths}, digests=known)
    cv2.setNumThreads(1)  # frames are decoded in parallel, each by one thread
    reads_maps = not set(group.streams) <= set(PAIR_STREAMS)
    engine = _engine_of(job.config, job.request, job.store, job.bases) if reads_maps else None
    if engine is not None and engine.trunk.recipe.fingerprint != job.recipe.fingerprint:
        differences = "; ".join(engine.trunk.recipe.differences(job.recipe))
        raise ConfigError(f"worker {worker_address()} makes other features than the first one", got=differences)
    start, digests = time.perf_counter(), dict[str, str]()
    for _ in extract_groups(job.config, shards, clips, [group], streams, engine, vehicles, faults, digests):
        pass
    seconds = time.perf_counter() - start
    description = "" if engine is None else f"{engine.name} in {job.recipe.precision}"
    files = {name: cast("ImageFiles", clips[name].source).digests for name in digests}
    return TaskResult(shards.written, seconds, faults, description, digests, files)


def track_group(job: ExtractionJob, clips: Clips, ids: Sequence[str]) -> TaskResult:
    """Track the vehicles of some sequences, and write their tracks into a shard, in a worker."""
    cv2.setNumThreads(1)
    shards, faults, tracks = NewShards(job.folder, job.recipe, set()), dict[str, str](), dict[str, Track]()
    for name, result in track_clips(clips, ids, job.config.extract.threads or cpu_count()):
        if isinstance(result, str):
            faults[name] = result
        else:
            tracks |= result
    if tracks:
        shards.write_tracks(tracks)
    return TaskResult(shards.written, faults=faults)


def _engine_of(config: Config, request: str, store: Path, bases: Path | None) -> Engine:
    settings = config.model_dump_json(include={"frames", "backbone", "extract"})
    version = file_version(bases) if bases is not None and appears(bases) else None
    with _engine_lock:
        return _engine(settings, request, store if config.extract.precision == "int8" else None, bases, version)


@lru_cache(maxsize=1)
def _engine(
    settings: str, request: str, store: Path | None, bases: Path | None, version: tuple[int, int] | None
) -> Engine:
    """The engine, which a worker keeps for its next task; `request` and the `version` of bases are a part of the key.

    In int8, the `store` has its quantised network.
    """
    _use_all_threads()
    config = Config.model_validate_json(settings)
    engine = new_engine(config, store or Path(), None, ())
    return projected_engine(config, engine, load_bases(bases)) if bases is not None else engine


@cache
def _use_all_threads() -> None:
    """Let TensorFlow use this worker's threads; possible only before it computes anything."""
    with quiet_imports():
        import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(cpu_count())
    tf.config.threading.set_inter_op_parallelism_threads(cpu_count())


def _part(clips: Clips, group: Group, vehicles: Collection[str]) -> tuple[Clips, Group, list[str]]:
    """What a worker needs of all clips and vehicles for a group."""
    names = dict.fromkeys(r.sequence for r in group.ranges)
    return {name: clips[name] for name in names}, group, [name for name in names if name in vehicles]


def _is_complete(path: Path, recipe: Recipe, ranges: Sequence[FrameRange]) -> bool:
    """Whether a shard is finished, and contains all ranges without a fault."""
    try:
        stored = [s.frame_range for s in shard_ranges(path, recipe.fingerprint)] if path.exists() else []
    except StoreError:
        return False
    # the shard's name says in which version files were planned to be read
    return len(stored) == len(ranges) and all(
        r == (replace(planned, digest=r.digest) if is_unread(planned) else planned)
        for r, planned in zip(stored, ranges, strict=True)
    )


def remember_group(group: Group, clips: Clips, cache: ScanCache | None) -> None:
    """Let the scan's cache remember the files of a finished group that the scan had left unread."""
    unread = dict.fromkeys(r.sequence for r in group.ranges if is_unread(r))
    if unread and cache is not None:
        remember_files([clips[name] for name in unread], cache)


def _add_result(result: TaskResult, shards: NewShards, faults: dict[str, str]) -> None:
    for name in result.shards:
        appears(shards.folder / name)
    shards.written.update(result.shards)
    faults.update(result.faults)


def _add_killed(faults: dict[str, str], ids: Sequence[str], error: Any) -> None:
    for name in dict.fromkeys(ids):
        faults[name] = f"{name}: {describe_deaths(error)} died while working on it, or on another sequence of its task"
