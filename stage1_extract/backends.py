"""Where an extraction runs: in this process, or as tasks of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from joblib import cpu_count

from features._common.cluster import Cluster, connect
from features._common.console import progress_bar
from features.config import Config
from features.frame_files import shard_folder
from features.principal_components import load_bases
from features.recipe import Recipe
from features.tracks import Track
from stage1_extract.cluster_tasks import (
    SMALLEST_TASK,
    ExtractionJob,
    first_frame_digest,
    load_trunk,
    remember_group,
    run_groups,
    run_tracking,
)
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.datasets.image_sequence import ClipSpec
from stage1_extract.engine_setup import new_engine, projected_engine
from stage1_extract.existing_store import TrunkInfo, stored_ids
from stage1_extract.group_extraction import extract_groups
from stage1_extract.kept_components import fit_bases, sampled_clips
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import Group, vehicles_without_tracks
from stage1_extract.store_update import ExtractionPlan
from stage1_extract.tracking.sequence_tracks import track_clips

if TYPE_CHECKING:  # loading TensorFlow takes seconds, which an extraction with nothing to do need not wait for
    from stage1_extract.engines.engine import Engine

FRAMES_PER_SHARD = 512
PROBED_CLIPS = 8  # a worker must decode the same first frame as the driver, of the first of these that is intact


class Backend(Protocol):
    """Runs the trunk and the tracker."""

    group_size: int  # frames per group, unless the user has set the size of shards

    @property
    def engine_description(self) -> str:
        """What ran the trunk, with its precision; empty if nothing did."""

    def load_trunk(self, config: Config, request: str, stored: Recipe | None, bases: Path | None) -> TrunkInfo:
        """Load the trunk.

        Args:
            request: digest of all that determines the recipe.
            stored: the recipe of the store; None: there is none yet.
            bases: the file with the principal components that maps are projected on, or where it is to be.
        """

    def extract(
        self,
        job: ExtractionJob,
        shards: NewShards,
        clips: Mapping[str, Clip],
        plan: ExtractionPlan,
        faults: dict[str, str],
        digests: dict[str, str],
    ) -> None:
        """Write shards with all groups and tracks of a plan.

        Args:
            faults: gets the sequences that fail, by id, and why.
            digests: gets the digests of sequences that the scan had left unread, by id.
        """

    def close(self) -> None:
        """Free what it holds, such as a connection."""


def open_backend(config: Config, catalogue: Catalogue, store: Path, engine: Engine | None) -> Backend:
    """The backend that a config names, for extracting into `store`; `engine` is maybe one that is loaded."""
    if config.compute.backend == "dask":
        return DaskBackend(config, catalogue, store)
    return LocalBackend(catalogue, store, engine)


class LocalBackend:
    """Runs everything in this process."""

    group_size = FRAMES_PER_SHARD

    def __init__(self, catalogue: Catalogue, store: Path, engine: Engine | None) -> None:
        self._catalogue, self._store, self._engine = catalogue, store, engine

    @property
    def engine_description(self) -> str:
        return "" if self._engine is None else str(self._engine)

    def load_trunk(self, config: Config, request: str, stored: Recipe | None, bases: Path | None) -> TrunkInfo:
        clips = self._catalogue.clips
        self._engine = self._engine or new_engine(config, self._store, stored, clips)
        if bases is not None:
            known = load_bases(bases) or fit_bases(config, clips, self._engine, bases)
            self._engine = projected_engine(config, self._engine, known)
        return TrunkInfo.from_trunk(self._engine.trunk, config, request)

    def extract(
        self,
        job: ExtractionJob,
        shards: NewShards,
        clips: Mapping[str, Clip],
        plan: ExtractionPlan,
        faults: dict[str, str],
        digests: dict[str, str],
    ) -> None:
        def finished(group: Group) -> None:
            remember_group(group, clips, self._catalogue.cache)

        if plan.groups:
            total, remaining = sum(clip.sequence.length for clip in clips.values()), sum(map(len, plan.groups))
            arguments = job.config, shards, clips, plan.groups, job.streams, self._engine, plan.vehicles
            done = extract_groups(*arguments, faults, digests, finished)
            with progress_bar(total, "features", "frames", initial=max(0, total - remaining)) as progress:
                for count in done:
                    progress.update(count)
        known = with_digests(clips, digests)
        remaining_vehicles = _untracked(known, plan.vehicles, shards, faults)
        if remaining_vehicles:
            _track(job.config, shards, known, remaining_vehicles, faults)

    def close(self) -> None:
        pass


class DaskBackend:
    """Runs everything in the workers of a Dask cluster, to which it connects when there is something to do."""

    group_size = SMALLEST_TASK  # groups are joined to tasks

    def __init__(self, config: Config, catalogue: Catalogue, store: Path) -> None:
        self._compute, self._catalogue, self._store = config.compute, catalogue, store
        self._connections, self._engines = ExitStack(), set[str]()
        self._cluster: Cluster | None = None

    @property
    def engine_description(self) -> str:
        return ", ".join(sorted(self._engines))

    def load_trunk(self, config: Config, request: str, stored: Recipe | None, bases: Path | None) -> TrunkInfo:
        clips: Sequence[Clip] = self._catalogue.clips if config.extract.precision == "int8" else ()
        if bases is not None:
            clips = sampled_clips(self._catalogue.clips)
        return self._connected().call("load trunk", load_trunk, config, request, self._store, stored, bases, clips)

    def extract(
        self,
        job: ExtractionJob,
        shards: NewShards,
        clips: Mapping[str, Clip],
        plan: ExtractionPlan,
        faults: dict[str, str],
        digests: dict[str, str],
    ) -> None:
        cluster, cache = self._connected(), self._catalogue.cache
        self._engines = run_groups(cluster, job, shards, clips, plan.groups, plan.vehicles, faults, digests, cache)
        known = with_digests(clips, digests)
        run_tracking(cluster, job, shards, known, _untracked(known, plan.vehicles, shards, faults), faults)

    def close(self) -> None:
        self._connections.close()

    def _connected(self) -> Cluster:
        if self._cluster is None:
            probe = first_frame_digest, (self._catalogue.clips[:PROBED_CLIPS],)
            folder = shard_folder(self._store)
            self._cluster = self._connections.enter_context(connect(self._compute, folder, probe))
        return self._cluster


def reads_later(config: Config, store: Path) -> Callable[[ClipSpec], bool]:
    """Which clips an extraction will decode as a whole, in one group, so that the scan may leave them unread.

    These are clips that are neither in the store nor in shards of an interrupted extraction.
    """
    known = stored_ids(store)
    if known is None or config.data.crops is not None:
        return lambda spec: False
    backend = DaskBackend if config.compute.backend == "dask" else LocalBackend
    size = config.extract.shard or backend.group_size
    return lambda spec: len(spec.files) <= size and spec.id not in known


def with_digests(clips: Mapping[str, Clip], digests: Mapping[str, str]) -> Mapping[str, Clip]:
    """The clips with the digests that have become known, by id."""
    known = {name: replace(clips[name].sequence, digest=digest) for name, digest in digests.items()}
    return {**clips, **{name: replace(clips[name], sequence=sequence) for name, sequence in known.items()}}


def _untracked(
    clips: Mapping[str, Clip], vehicles: Iterable[str], shards: NewShards, faults: Mapping[str, str]
) -> dict[str, int]:
    """The vehicles that were not tracked while decoding: in long sequences, or if all frames were stored."""
    sequences = [clips[name].sequence for name in vehicles if name not in faults]
    return vehicles_without_tracks(sequences, shards.tracks()) if sequences else {}


def _track(
    config: Config, shards: NewShards, clips: Mapping[str, Clip], remaining: Mapping[str, int], faults: dict[str, str]
) -> None:
    """Track vehicles in this process, sequence id → number, and show the progress."""
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
