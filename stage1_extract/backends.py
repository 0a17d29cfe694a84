"""Where an extraction runs: in this process, or as tasks of a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from joblib import cpu_count

from features._common.cluster import Cluster, connect
from features._common.console import progress_bar
from features.config import Config
from features.frame_files import shard_folder
from features.recipe import Recipe
from features.tracks import Track
from stage1_extract.cluster_tasks import (
    SMALLEST_TASK,
    ExtractionJob,
    first_frame_digest,
    load_trunk,
    run_groups,
    run_tracking,
)
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.engine_setup import new_engine
from stage1_extract.existing_store import TrunkInfo
from stage1_extract.group_extraction import extract_groups
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import vehicles_without_tracks
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

    def load_trunk(self, config: Config, request: str, stored: Recipe | None) -> TrunkInfo:
        """Load the trunk.

        Args:
            request: digest of all that determines the recipe.
            stored: the recipe of the store; None: there is none yet.
        """

    def extract(
        self,
        job: ExtractionJob,
        shards: NewShards,
        clips: Mapping[str, Clip],
        plan: ExtractionPlan,
        faults: dict[str, str],
    ) -> None:
        """Write shards with all groups and tracks of a plan; add sequences that fail to `faults`, with the reason."""

    def close(self) -> None:
        """Free what it holds, such as a connection."""


def open_backend(config: Config, catalogue: Catalogue, store: Path, engine: Engine | None) -> Backend:
    """The backend that a config names, for extracting into `store`; `engine` is maybe one that is loaded."""
    if config.compute.backend == "dask":
        return DaskBackend(config, catalogue.clips, store)
    return LocalBackend(catalogue.clips, store, engine)


class LocalBackend:
    """Runs everything in this process."""

    group_size = FRAMES_PER_SHARD

    def __init__(self, clips: Sequence[Clip], store: Path, engine: Engine | None) -> None:
        self._clips, self._store, self._engine = clips, store, engine

    @property
    def engine_description(self) -> str:
        return "" if self._engine is None else str(self._engine)

    def load_trunk(self, config: Config, request: str, stored: Recipe | None) -> TrunkInfo:
        self._engine = self._engine or new_engine(config, self._store, stored, self._clips)
        return TrunkInfo.from_trunk(self._engine.trunk, config, request)

    def extract(
        self,
        job: ExtractionJob,
        shards: NewShards,
        clips: Mapping[str, Clip],
        plan: ExtractionPlan,
        faults: dict[str, str],
    ) -> None:
        if plan.groups:
            total, remaining = sum(clip.sequence.length for clip in clips.values()), sum(map(len, plan.groups))
            done = extract_groups(
                job.config, shards, clips, plan.groups, job.streams, self._engine, plan.vehicles, faults
            )
            with progress_bar(total, "features", "frames", initial=max(0, total - remaining)) as progress:
                for count in done:
                    progress.update(count)
        remaining_vehicles = _untracked(clips, plan.vehicles, shards, faults)
        if remaining_vehicles:
            _track(job.config, shards, clips, remaining_vehicles, faults)

    def close(self) -> None:
        pass


class DaskBackend:
    """Runs everything in the workers of a Dask cluster, to which it connects when there is something to do."""

    group_size = SMALLEST_TASK  # groups are joined to tasks

    def __init__(self, config: Config, clips: Sequence[Clip], store: Path) -> None:
        self._compute, self._clips, self._store = config.compute, tuple(clips), store
        self._connections, self._engines = ExitStack(), set[str]()
        self._cluster: Cluster | None = None

    @property
    def engine_description(self) -> str:
        return ", ".join(sorted(self._engines))

    def load_trunk(self, config: Config, request: str, stored: Recipe | None) -> TrunkInfo:
        calibration = self._clips if config.extract.precision == "int8" else ()
        return self._connected().call("load trunk", load_trunk, config, request, self._store, stored, calibration)

    def extract(
        self,
        job: ExtractionJob,
        shards: NewShards,
        clips: Mapping[str, Clip],
        plan: ExtractionPlan,
        faults: dict[str, str],
    ) -> None:
        cluster = self._connected()
        self._engines = run_groups(cluster, job, shards, clips, plan.groups, plan.vehicles, faults)
        run_tracking(cluster, job, shards, clips, _untracked(clips, plan.vehicles, shards, faults), faults)

    def close(self) -> None:
        self._connections.close()

    def _connected(self) -> Cluster:
        if self._cluster is None:
            probe = first_frame_digest, (self._clips[:PROBED_CLIPS],)
            folder = shard_folder(self._store)
            self._cluster = self._connections.enter_context(connect(self._compute, folder, probe))
        return self._cluster


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
