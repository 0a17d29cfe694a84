"""What is left of a store that does not say any more which frames it has.

Where a single bit of a table is wrong, its checksum shows which. Otherwise tables are read as they are, and only what
the data set confirms is believed: a sequence whose id, digest, length and rows are those of the images now. Frames have
checksums of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.strict_json import parse_json
from features.errors import DamagedStoreError, StoreError
from features.frame_files import FrameFiles, shard_folder, stream_infos
from features.frame_ranges import StoredRange, full_range, parts_without
from features.hdf5 import DAMAGE, damage_as_store_error, open_file, unchecked_values
from features.recipe import Recipe
from features.sequences import FrameSequence
from features.shards import read_shard
from features.store_schema import check_header
from features.store_tables import Header, StreamInfo, read_track, track_index
from features.tracks import Track
from features.verification import Damage, find_damage
from stage1_extract.existing_store import ExistingStore

MAX_WRONG_DIGITS = 8


def salvage(path: Path, damage: Damage, sequences: Sequence[FrameSequence], recipe: Recipe) -> ExistingStore:
    """Read what was made with a recipe from the sequences as they are now; no top, which the recipe determines."""
    header, is_packed = None, not any(shard_folder(path).glob("[!.]*.h5"))
    streams: dict[str, StreamInfo] = {}
    ranges: dict[str, list[StoredRange]] = {}
    tracks: dict[str, Track] = {}
    bases: dict[str, dict[str, NDArray[Any]]] | None = None  # not known
    for shard in sorted(shard_folder(path).glob("[!.]*.h5")):
        _add_shard(shard, recipe, streams, ranges, tracks)
    try:
        with open_file(path) as f, damage_as_store_error(path):
            is_packed = "shards" not in f and "runs" not in f
            header, is_certain = _header(f)
            if is_certain and header is not None and header.recipe.fingerprint != recipe.fingerprint:
                return ExistingStore(header, damage=damage)  # the caller names the differences
            if is_packed:
                is_same = header is not None and header.recipe.fingerprint == recipe.fingerprint
                # otherwise the streams are known by name only
                _add_packed(f, path, sequences if is_same else (), streams, ranges)
            header = header if is_certain else None
            if "tracks" not in damage.parts and "tracks" in f:
                tracks |= {key: read_track(f, *rows) for key, rows in track_index(f).items()}
            if "bases" not in damage.parts:
                stored = f["bases"].items() if "bases" in f else ()
                bases = {name: {key: data[()] for key, data in group.items()} for name, group in stored}
    except DamagedStoreError:
        pass
    # without its basis, or not knowing whether it has one, a derived stream is dropped
    kept = {} if bases is None else {name: bases.get(name, {}) for name in streams}
    return ExistingStore(header, (), streams, ranges, None, tracks, kept, is_packed, damage)


def kept_notes(kept: Sequence[FrameSequence], damage: Damage | None) -> Iterator[str]:
    """Say which sequences a repair keeps although the data set does not have them, and what these lack then."""
    for part, what in (("labels", "labels"), ("tracks", "tracks")):
        if kept and damage is not None and part in damage.parts:
            yield f"the {what} of {_names(kept)} are lost: the data set does not have these sequences like that"
            return
    if kept:
        yield f"{_names(kept)} stay as they were stored: the data set does not have them like that"


def _names(sequences: Sequence[FrameSequence]) -> str:
    more = f" and {len(sequences) - 3} more" if len(sequences) > 3 else ""
    return ", ".join(s.id for s in sequences[:3]) + more


def _header(f: Any) -> tuple[Header | None, bool]:
    """The header, and whether it is certain that it is the one that was written."""
    try:
        return check_header(f), True
    except DAMAGE:
        pass
    try:
        values, is_certain = unchecked_values(f["header"])
        value = parse_json(values.tobytes())
        header = Header(Recipe.from_json(value["recipe"]), value["trunk"], value["versions"], value["missing"])
        return header, is_certain
    except DAMAGE:
        return None, False


def _add_packed(
    f: Any,
    path: Path,
    sequences: Sequence[FrameSequence],
    streams: dict[str, StreamInfo],
    ranges: dict[str, list[StoredRange]],
) -> None:
    """Add the frames in the store's own file, without those that are damaged."""
    infos = stream_infos(f)
    frames = min(len(f[f"frames/{name}"]) for name in infos)
    files = FrameFiles(f, path, frames)
    damaged = {name: files.damaged_rows(name) for name in infos}
    damaged[next(iter(infos))] |= files.damaged_thumbnails(next(iter(infos)))
    by_id, by_digest = {s.id: s for s in sequences}, {s.digest: s for s in sequences}
    for name, digest, first, length in _stored_sequences(f, frames):
        sequence = by_id.get(name) or by_digest.get(digest)
        if sequence is None or sequence.length != length or not _is_digest(digest, sequence.digest):
            continue
        for stream, info in infos.items():
            bad = [row - first for row in range(first, first + length) if row in damaged[stream]]
            whole = StoredRange(full_range(sequence), path, first, {stream: info.fingerprint})
            ranges.setdefault(stream, []).extend(parts_without(whole, bad))
    streams |= infos
    for stream in infos:
        ranges.setdefault(stream, [])


def _is_digest(stored: str, digest: str) -> bool:
    """Whether a digest is another one with a few wrong digits; of different contents, most of the 64 digits differ."""
    wrong = sum(a != b for a, b in zip(stored, digest, strict=False))
    return len(stored) == len(digest) == 64 and wrong <= MAX_WRONG_DIGITS


def _stored_sequences(f: Any, frames: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield id, digest, first row and length of each sequence; none if their rows are not certain."""
    (ids, _), (digests, _) = (unchecked_values(f[f"sequences/{name}"]) for name in ("id", "digest"))
    (firsts, is_certain), (lengths, are_lengths_certain) = (
        unchecked_values(f[f"sequences/{name}"]) for name in ("first", "length")
    )
    if is_certain:
        lengths = np.diff(firsts, append=frames)
    elif are_lengths_certain:
        firsts = np.cumsum(lengths) - lengths
    else:
        return
    if (lengths <= 0).any() or lengths.sum() != frames:
        return
    for name, digest, first, length in zip(ids, digests, firsts.tolist(), lengths.tolist(), strict=True):
        yield name.decode(errors="replace"), digest.decode(errors="replace"), first, length


def _add_shard(
    path: Path,
    recipe: Recipe,
    streams: dict[str, StreamInfo],
    ranges: dict[str, list[StoredRange]],
    tracks: dict[str, Track],
) -> None:
    """Add what a shard says that it holds, if it was made with the recipe; nothing if it is damaged."""
    try:
        with open_file(path) as f, damage_as_store_error(path):
            is_store, infos = "pieces" not in f, stream_infos(f)
        if is_store:  # once a packed store
            damage = find_damage(path)
            existing = ExistingStore.read(path, damage)
            if existing.header is None or existing.header.recipe.fingerprint != recipe.fingerprint:
                return
            infos, tracks_here = dict(existing.streams), existing.tracks
            for name, parts in existing.ranges.items():
                ranges.setdefault(name, []).extend(parts)
        else:
            content = read_shard(path, recipe.fingerprint)
            tracks_here = content.tracks
            for stored in content.ranges:
                for name in stored.streams:
                    ranges.setdefault(name, []).append(stored)
    except StoreError:
        return
    streams.update(infos)
    tracks.update(tracks_here)
