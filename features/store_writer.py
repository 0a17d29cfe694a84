"""Writing stores: packed ones from raw chunks, and indexes of shards, which stay where they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write, fsync_path
from features._common.interrupts import uninterrupted
from features.errors import DataError
from features.frame_files import StoredRun, shard_folder, write_runs
from features.frame_ranges import StoredRange, full_range, sequence_ranges, split_into_groups
from features.hdf5 import ErrorTolerantFile, copy_chunks, create_file, open_file, write_array
from features.recipe import Recipe, json_digest
from features.sequences import FrameSequence
from features.shard_folder import (
    delete_replaced_shards,
    delete_unused_shards,
    forget_kept_index,
    keep_replaced_index,
    shards_deleted_afterwards,
)
from features.shards import Thumbnails, create_stream, new_shard, shard_ranges, write_thumbnails
from features.store import Store
from features.store_schema import table_faults
from features.store_tables import (
    Header,
    StreamInfo,
    TopRecord,
    write_header,
    write_labels,
    write_sequences,
    write_top,
    write_tracks,
)
from features.tracks import Track

FRAMES_PER_COPY = 512
SHARD_BYTES = 1 << 28  # of a stream that is computed from a store


@dataclass(frozen=True)
class StreamContent:
    """The content of one stream of a store to be written: what is stored, and what is computed."""

    info: StreamInfo
    # per sequence, the stored ranges that together make it up, in order; default: none of any sequence
    ranges: Sequence[Sequence[StoredRange]] = ()
    # (n, …) each, all frames in order of the sequences without ranges, computed while they are written; None: these
    # stay without, which only an index can have
    batches: Iterable[NDArray[Any]] | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # stored with it, such as principal components


@dataclass(frozen=True)
class StoreContent:
    """The content of a store to be written.

    The thumbnails are those of the first stream's files. The keys of `tracks` are those of
    `features.tracks.track_keys`.
    """

    header: Header
    sequences: Sequence[FrameSequence]
    streams: Mapping[str, StreamContent]
    top: TopRecord | None = None
    tracks: Mapping[str, Track] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> StoreContent:
        """The content of an existing store."""
        streams = {
            name: StreamContent(
                info, sequence_ranges(store.sequences, store.stored_ranges(name)), arrays=store.basis(name)
            )
            for name, info in [*store.streams.items(), *store.partial_streams.items()]
        }
        return cls(store.header, store.sequences, streams, store.top(), store.tracks())

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(s.length for s in self.sequences)

    def check(self) -> None:
        """Raise a RuntimeError if stored ranges do not make up their sequence."""
        for stream in self.streams.values():
            may_lack = stream.info.is_derived or stream.batches is not None
            for sequence, ranges in zip(self.sequences, stream.ranges, strict=bool(stream.ranges)):
                if sum(len(s.frame_range) for s in ranges) != sequence.length and (ranges or not may_lack):
                    raise RuntimeError(f"{sequence.id}: {ranges} do not make up {full_range(sequence)}")


def save_store(path: Path, content: StoreContent, packed: bool) -> None:
    """Write a store, which replaces `path` once complete. The caller holds its lock.

    A packed store gets copies of all chunks as stored, checksums included, so nothing is decoded or rounded again. An
    index refers to the shards that exist, and only computed batches are written.
    """
    content.check()
    if packed:
        streams = {n: s for n, s in content.streams.items() if s.batches is not None or all(s.ranges)}
        content = replace(content, streams=streams)  # without partial ones
        with _new_file(path, content) as (f, disk):
            _write_frames(f, content, disk)
    else:
        _write_index(path, content)


def extend_store(path: Path, streams: Mapping[str, StreamContent], tracks: Mapping[str, Track] | None = None) -> None:
    """Add streams and tracks to a finished store, replacing those of the same names.

    A packed store is copied chunk by chunk into a new file, which replaces the old one once complete. The caller
    holds the store's lock.
    """
    delete_replaced_shards(path)
    with Store(path) as store:
        content = StoreContent.of(store)
        content = replace(content, streams={**content.streams, **streams}, tracks={**content.tracks, **(tracks or {})})
        save_store(path, content, packed=store.is_packed)


def pack_store(path: Path) -> None:
    """Copy a store's shards into its own file. The caller holds the store's lock."""
    with Store(path) as store:
        if not store.is_packed:
            with shards_deleted_afterwards(path):
                save_store(path, StoreContent.of(store), packed=True)
    delete_unused_shards(path)


def unpack_store(path: Path) -> None:
    """Make a packed store an index with a shard, which is the packed file; no frame is copied.

    The caller holds the store's lock.
    """
    with Store(path) as store:
        if store.is_packed:
            save_store(path, StoreContent.of(store), packed=False)


@contextmanager
def _new_file(path: Path, content: StoreContent) -> Iterator[tuple[Any, ErrorTolerantFile]]:
    """Write everything but frames into a new file, which replaces `path` once the block ends without an error."""
    keep_replaced_index(path)
    with ExitStack() as on_error, atomic_write(path) as temporary, uninterrupted() as check:
        on_error.callback(forget_kept_index, path)  # unless it was replaced
        disk = ErrorTolerantFile(temporary, check)
        try:
            with create_file(disk) as f:
                write_header(f, content.header)
                write_sequences(f, content.sequences)
                write_labels(f, content.sequences)
                write_tracks(f, content.tracks)
                if content.top:
                    write_top(f, content.top)
                for name, stream in content.streams.items():
                    for array, values in stream.arrays.items():
                        write_array(f, f"bases/{name}/{array}", values)
                yield f, disk
                disk.check()
                for part, fault in table_faults(f, temporary):  # rather than write a store that cannot be opened
                    what, hint = f"{path}: the {part} cannot be stored", "correct the data set"
                    raise DataError(what, expected=fault.expected or fault.what, got=fault.got, hint=hint)
            disk.check()
        except Exception:
            disk.check()  # the cause, if the system has refused something
            raise
        finally:
            disk.close()


def _write_frames(f: Any, content: StoreContent, disk: ErrorTolerantFile) -> None:
    """Write all streams and thumbnails of a packed store."""
    write_thumbnails(f, content.frames, _stored_thumbnails(content))
    for name, stream in content.streams.items():
        target = create_stream(f, name, content.frames, stream.info)
        if stream.batches is not None:
            _write_batches(target, stream.batches, disk)
        for source_path, source_row, row, count in _copies(content.sequences, stream.ranges):
            with open_file(source_path) as source:
                copy_chunks(source["frames"][name], target, source_row, row, count)
            disk.check()


def _write_index(path: Path, content: StoreContent) -> None:
    folder = shard_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    streams = {}
    for name, stream in content.streams.items():
        ranges = stream.ranges or [()] * len(content.sequences)
        if stream.batches is not None:
            lacking = [s for s, parts in zip(content.sequences, ranges, strict=True) if not parts]
            computed = iter(_write_shards(folder, content.header.recipe, lacking, name, stream))
            ranges = [parts or next(computed) for parts in ranges]
        streams[name] = (stream.info, list(_joined(content.sequences, ranges)))
    if any(place[0] == path for _, places in streams.values() for place in places):
        shard = _as_shard(path, folder)
        streams = {
            name: (info, [(shard if source == path else source, a, b, n) for source, a, b, n in places])
            for name, (info, places) in streams.items()
        }
    sizes = {p: p.stat().st_size for p in dict.fromkeys(place[0] for _, places in streams.values() for place in places)}
    with _new_file(path, content) as (f, _):
        write_runs(f, sizes, content.frames, streams)


def _as_shard(packed: Path, folder: Path) -> Path:
    """Give a packed store, which an index is going to replace, a name among the shards."""
    stat = packed.stat()
    shard = folder / f"packed-{json_digest([stat.st_ino, stat.st_mtime_ns, stat.st_size])[:24]}.h5"
    if not shard.exists():
        try:
            os.link(packed, shard)
        except OSError:  # a file system without hard links
            with atomic_write(shard) as temporary:
                shutil.copyfile(packed, temporary)
        fsync_path(folder)
    return shard


def _write_shards(
    folder: Path, recipe: Recipe, sequences: Sequence[FrameSequence], name: str, stream: StreamContent
) -> list[list[StoredRange]]:
    """Write a stream that is computed into shards, and return the ranges of each sequence."""
    batches = iter(stream.batches or ())
    batch: NDArray[Any] = np.empty((0, *stream.info.shape), stream.info.dtype)
    written: list[StoredRange] = []
    for group in split_into_groups(map(full_range, sequences), max(1, SHARD_BYTES // stream.info.frame_bytes)):
        with new_shard(folder, recipe, group, {name: stream.info}) as (writer, path):
            missing = sum(map(len, group))
            while missing:
                while not len(batch):
                    if (following := next(batches, None)) is None:
                        raise RuntimeError(f"{path}: {missing} frames were not computed")
                    batch = following
                part, batch = batch[:missing], batch[missing:]
                writer.write({name: part}, [b""] * len(part))
                missing -= len(part)
            writer.finish()
        written += shard_ranges(path, recipe.fingerprint)
    return sequence_ranges(sequences, written)


def _joined(sequences: Sequence[FrameSequence], ranges: Sequence[Sequence[StoredRange]]) -> Iterator[StoredRun]:
    """Join ranges that are consecutive in one file."""
    firsts = accumulate((s.length for s in sequences), initial=0)
    placed = [
        (stored, first + stored.frame_range.start)
        for first, parts in zip(firsts, ranges, strict=False)
        for stored in parts
    ]
    for (path, shift), group in groupby(placed, lambda pair: (pair[0].path, pair[0].row - pair[1])):
        run = list(group)
        row, stop = run[0][1], run[-1][1] + len(run[-1][0].frame_range)
        if sum(len(stored.frame_range) for stored, _ in run) == stop - row:
            yield path, row + shift, row, stop - row
        else:  # there is a gap between them
            yield from ((path, first + shift, first, len(stored.frame_range)) for stored, first in run)


def _copies(sequences: Sequence[FrameSequence], ranges: Sequence[Sequence[StoredRange]]) -> Iterator[StoredRun]:
    """Split joined ranges into parts of a size to copy at once."""
    for path, source_row, row, count in _joined(sequences, ranges):
        for done in range(0, count, FRAMES_PER_COPY):
            yield path, source_row + done, row + done, min(FRAMES_PER_COPY, count - done)


def _write_batches(target: Any, batches: Iterable[NDArray[Any]], disk: ErrorTolerantFile) -> None:
    row = 0
    for batch in batches:
        target[row : row + len(batch)] = batch
        row += len(batch)
        disk.check()
    if row != len(target):
        raise RuntimeError(f"{target.name}: {row} of {len(target)} frames were computed")


def _stored_thumbnails(content: StoreContent) -> Iterator[Thumbnails]:
    first = next(iter(content.streams.values()))
    for path, source_row, row, count in _copies(content.sequences, first.ranges):
        with open_file(path) as source:
            if "thumbnails" in source:
                offsets = source["thumbnails/offset"][source_row : source_row + count + 1]
                yield row, np.diff(offsets), source["thumbnails/data"][offsets[0] : offsets[-1]]
