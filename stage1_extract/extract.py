"""Extraction: frames in, store out. Only frames that are not stored yet go through the trunk.

Shards are written to `<store>.shards/`. A small store is then packed from them into a single file; a larger one refers
to them. If the process is killed, the same command continues from the shards that are finished.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2

from features._common.atomic import exclusive_write_lock
from features._common.leftovers import abandoned_files
from features.config import Config
from features.errors import BadInputs, DataError, StoreError
from features.frame_files import shard_folder
from features.shard_folder import delete_replaced_shards, shards_deleted_afterwards, used_shards
from features.store_tables import StreamInfo
from features.store_writer import save_store
from features.streams import GROUND_FLOW, MOTION
from features.verification import Damage
from stage1_extract.backends import Backend, open_backend
from stage1_extract.cluster_tasks import ExtractionJob
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.engine_setup import decide_precision, stored_recipe
from stage1_extract.existing_store import ExistingStore, TrunkInfo, request_digest
from stage1_extract.frame_pairs import stream_info
from stage1_extract.kept_components import bases_file
from stage1_extract.new_shards import NewShards
from stage1_extract.plan import Group, missing_frames
from stage1_extract.salvage import salvage
from stage1_extract.store_update import Extraction, changes_store, matching_ranges, plan_update, store_update

if TYPE_CHECKING:  # loading TensorFlow takes seconds, which an extraction with nothing to do need not wait for
    from stage1_extract.engines.engine import Engine


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
    with exclusive_write_lock(store), closing(open_backend(config, catalogue, store, engine)) as backend:
        result = _extract(config, store, catalogue, damage, backend)
    if result.missing and not skip_damaged:
        # a repair goes on where the scan has found errors, which may be several of one sequence
        what = f"of {len(catalogue.clips)} sequences" if damage is None else "files or sequences"
        raise BadInputs(
            f"{store}: {len(result.missing)} {what} could not be decoded and were skipped",
            list(result.missing.values()),
            hint="replace their files and run the same command again, or skip them with --extract.skip_damaged true",
        )
    return result


def _extract(
    config: Config, store: Path, catalogue: Catalogue, damage: Damage | None, backend: Backend
) -> ExtractionResult:
    clips = {clip.sequence.id: clip for clip in catalogue.clips}
    sequences = [clip.sequence for clip in catalogue.clips]
    _clean_up(store, keep_shards=damage is not None and damage.hides_frames)
    existing = ExistingStore.read(store, damage)
    config = decide_precision(config, store, stored_recipe(store, existing.header), catalogue.clips)
    request = request_digest(config)
    bases = bases_file(config, store, request)
    trunk = TrunkInfo.from_store(existing, config, request, sequences)
    trunk = trunk or backend.load_trunk(config, request, existing.header.recipe if existing.header else None, bases)
    if damage is not None and damage.hides_frames:
        existing = salvage(store, damage, sequences, trunk.recipe)
    _check_recipe(store, existing, trunk)
    shards = _new_shards(store, trunk, damage)
    streams = dict(trunk.streams) | {name: stream_info(name, sequences) for name in config.extract.pair_streams}
    plan = plan_update(config, sequences, streams, existing, shards.ranges(), shards.tracks(), backend.group_size)
    faults: dict[str, str] = {}
    digests: dict[str, str] = {}  # of the sequences that the scan left unread
    if plan.groups or plan.vehicles:
        _check_disk_space(store, plan.groups, sum(s.length for s in sequences), streams, plan.packed)
        shards.folder.mkdir(parents=True, exist_ok=True)
        cv2.setNumThreads(1)  # frames are decoded, and vehicles tracked, in parallel, each by one thread
        job = ExtractionJob(config, request, trunk.recipe, streams, shards.folder, store, bases)
        backend.extract(job, shards, clips, plan, faults, digests)
        backend.close()
    extraction = Extraction(
        [replace(s, digest=digests.get(s.id, s.digest)) for s in sequences],
        streams,
        matching_ranges(streams, existing, shards.ranges()),
        dict(existing.tracks) | shards.tracks(),
        plan.vehicles.keys(),
        catalogue.faults,
        faults,
        shards.relative_errors(stored_too=existing.header is None),
    )
    update = store_update(existing, trunk, extraction, plan.packed, config.extract.skip_damaged)
    if update.content is not None and (any(shards.files()) or changes_store(existing, update.content, plan.packed)):
        with shards_deleted_afterwards(store):
            save_store(store, update.content, plan.packed)
            if bases is not None:
                bases.unlink(missing_ok=True)
    return ExtractionResult(
        extracted=sum(len(group) for group in plan.groups if trunk.streams.keys() & {*group.streams}),
        frames=update.content.frames if update.content is not None else 0,
        missing=update.missing,
        flows=missing_frames(plan.groups, MOTION),
        roads=missing_frames(plan.groups, GROUND_FLOW),
        tracks=sum(plan.vehicles.values()),
        notes=[f"{store}: {note}" for note in update.notes],
        dropped=update.dropped,
        engine=backend.engine_description,
    )


def _check_recipe(store: Path, existing: ExistingStore, trunk: TrunkInfo) -> None:
    """Refuse to extend a store that was made with another recipe."""
    if existing.header is not None and existing.header.recipe.fingerprint != trunk.recipe.fingerprint:
        raise StoreError(
            f"{store}: made with another recipe",
            got="; ".join(trunk.recipe.differences(existing.header.recipe)),
            hint=f"use another store for this recipe, --store OTHER.h5, or move {store} away",
        )


def _new_shards(store: Path, trunk: TrunkInfo, damage: Damage | None) -> NewShards:
    """The shards that an interrupted extraction has left; those that are damaged are deleted."""
    folder = shard_folder(store)
    if damage is not None and damage.hides_frames:  # the store does not say which of them it needs
        return NewShards(folder, trunk.recipe, {path.name for path in folder.glob("*.h5")})
    shards = NewShards(folder, trunk.recipe, used_shards(store))
    shards.delete_damaged()
    return shards


def _clean_up(store: Path, keep_shards: bool) -> None:
    """Delete temporary files of a killed process and, unless `keep_shards`, the shards of replaced indexes."""
    folder = shard_folder(store)
    # this process holds the lock, but workers of a driver that was killed may still be writing shards
    for path in abandoned_files([*store.parent.glob(f".{store.name}.*.tmp"), *folder.glob(".*.tmp")]):
        path.unlink(missing_ok=True)
    older = store.with_name(f"{store.name}.parts")  # of an extraction by an older version
    if older.exists() and not folder.exists():
        older.rename(folder)
    if folder.exists() and not keep_shards:
        delete_replaced_shards(store)


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
