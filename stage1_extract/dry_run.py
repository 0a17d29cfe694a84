"""What an extraction would do, and how long it would take; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import cv2

from features.config import Config
from features.errors import StoreError
from features.frame_files import shard_folder
from features.frame_ranges import StoredRange
from features.shard_folder import used_shards
from features.shards import shard_ranges
from features.store_tables import StreamInfo
from features.verification import Damage
from stage1_extract.backends import FRAMES_PER_SHARD
from stage1_extract.cluster_tasks import SECONDS_PER_TASK, SMALLEST_TASK
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.engine_setup import decide_precision, new_engine, projected_engine, stored_recipe
from stage1_extract.existing_store import ExistingStore, TrunkInfo, request_digest
from stage1_extract.extract import required_bytes
from stage1_extract.frame_pairs import stream_info
from stage1_extract.group_extraction import measured_rate
from stage1_extract.kept_components import known_bases, placeholder_bases
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import missing_frames
from stage1_extract.store_update import plan_update


@dataclass(frozen=True)
class ExtractionEstimate:
    """What an extraction would do."""

    frames: int  # of the data set, without clips that have errors
    faults: int  # errors that the scan found
    missing: Mapping[str, int]  # stream → frames to extract
    streams: Mapping[str, StreamInfo]
    shards: int  # files to be written
    packed: bool  # whether the store would be a single file
    required: int  # bytes on the disk
    free: int
    rate: float  # frames per second on this machine; 0 if there is nothing to extract
    workers: int

    @property
    def seconds(self) -> float:
        """Time it takes, without tracking vehicles in long sequences."""
        return max(self.missing.values()) / self.rate / self.workers if self.rate else 0.0


def estimate_extraction(
    config: Config,
    store: Path,
    catalogue: Catalogue,
    damage: Damage | None = None,
) -> ExtractionEstimate:
    """Plan an extraction and measure this machine's rate on a few of its frames, which takes some seconds.

    Raises:
        StoreError: the store is damaged. What else extraction refuses, it finds itself.
    """
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    sequences = [clip.sequence for clip in catalogue.clips]
    existing = ExistingStore.read(store, damage)
    config = decide_precision(config, store, stored_recipe(store, existing.header), catalogue.clips)
    request = request_digest(config)
    trunk, engine = TrunkInfo.from_store(existing, config, request, sequences), None
    if trunk is None:
        engine = new_engine(config, store, existing.header.recipe if existing.header else None, catalogue.clips)
        if config.components:
            bases = known_bases(config, store, request) or placeholder_bases(config, engine.trunk)
            engine = projected_engine(config, engine, bases)
        trunk = TrunkInfo.from_trunk(engine.trunk, config, request)
    streams = dict(trunk.streams) | {name: stream_info(name, sequences) for name in config.extract.pair_streams}
    shards = NewShards(shard_folder(store), trunk.recipe, used_shards(store))
    finished = list(_readable_ranges(shards))
    plan = plan_update(config, sequences, streams, existing, finished, (), FRAMES_PER_SHARD)
    frames = sum(s.length for s in sequences)
    groups, on_cluster = plan.groups, config.compute.backend == "dask"
    rate = 0.0
    if groups:
        cv2.setNumThreads(1)
        vehicles = set(clips) if config.extract.tracks else ()
        rate = measured_rate(config, clips, groups[0], engine, vehicles)
    if on_cluster and rate and not config.extract.shard:
        task = max(SMALLEST_TASK, ceil(rate * SECONDS_PER_TASK))
        groups = plan_update(config, sequences, streams, existing, finished, (), task).groups
    existing_folder = next(p for p in store.absolute().parents if p.exists())
    return ExtractionEstimate(
        frames=frames,
        faults=len(catalogue.faults),
        missing={name: missing_frames(groups, name) for name in streams},
        streams=streams,
        shards=sum(len(group.streams) for group in groups),
        packed=plan.packed,
        required=required_bytes(groups, frames, streams, plan.packed) if groups else 0,
        free=shutil.disk_usage(existing_folder).free,
        rate=rate,
        workers=max(1, config.compute.workers) if on_cluster else 1,
    )


def estimate_table(estimate: ExtractionEstimate) -> str:
    """The lines that `framebank extract --dry-run` prints."""
    kilobytes = sum(info.frame_bytes for info in estimate.streams.values()) / 1e3
    missing = max(estimate.missing.values(), default=0)
    faults = f"; {estimate.faults} errors in the data set" if estimate.faults else ""
    size = sum(count * estimate.streams[name].frame_bytes for name, count in estimate.missing.items())
    form = "packed into a single file" if estimate.packed else "an index and shards"
    lines = [
        f"frames    {missing:,} of {estimate.frames:,} to extract{faults}",
        f"streams   {', '.join(estimate.streams)}: {kilobytes:,.1f} kB per frame",
        f"store     {_gigabytes(size)} to be written in {estimate.shards:,} shards; {form}",
        f"space     {_gigabytes(estimate.required)} needed, {_gigabytes(estimate.free)} free",
    ]
    if not missing:
        lines.append("time      nothing to extract")
    else:
        workers = f"; {estimate.workers} workers of this rate" if estimate.workers > 1 else ""
        lines.append(f"time      {_hours(estimate.seconds)} at {estimate.rate:,.1f} frames/s on this machine{workers}")
    return "\n".join(lines)


def _readable_ranges(shards: NewShards) -> Iterator[StoredRange]:
    """The ranges in finished shards; extraction deletes damaged ones."""
    for path in shards.files():
        with suppress(StoreError):
            yield from shard_ranges(path, shards.recipe.fingerprint)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
