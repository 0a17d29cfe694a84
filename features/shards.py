"""Shards: files with some frames of a stream, each written once and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.interrupts import uninterrupted
from features.frame_files import stream_infos
from features.frame_ranges import FrameRange, StoredRange
from features.hdf5 import (
    ErrorTolerantFile,
    create_file,
    create_group,
    damage_as_store_error,
    open_file,
    read_text,
    write_attribute,
    write_columns,
)
from features.recipe import Recipe, canonical_json, json_digest
from features.store_schema import check_pieces
from features.store_tables import Header, StreamInfo, read_header, read_tracks, write_header, write_tracks
from features.tracks import Track

THUMBNAIL_BLOCK = 1 << 16  # bytes
Thumbnails = tuple[int, Sequence[int] | NDArray[np.int64], NDArray[np.uint8]]  # first row, sizes in bytes, JPEGs


class ShardWriter:
    """Writes frame ranges into a new file, frame after frame; use it inside `atomic_write`."""

    def __init__(
        self, path: Path, recipe: Recipe, ranges: Sequence[FrameRange], streams: Mapping[str, StreamInfo]
    ) -> None:
        self._path, self._ranges = path, ranges
        self._frames = sum(map(len, ranges))
        self._thumbnails: list[bytes] = []  # those of the frames written so far
        self._recipe = recipe
        self._disk = ErrorTolerantFile(path)
        with uninterrupted():
            self._file = create_file(self._disk)
            create_group(self._file, "frames")  # also in a shard with tracks only
            self._streams = {n: create_stream(self._file, n, self._frames, info) for n, info in streams.items()}

    def write(self, maps: Mapping[str, NDArray[Any]], thumbnails: Sequence[bytes]) -> None:
        """Append n frames: stream → (n, …), and n JPEGs, or empty bytes."""
        row = len(self._thumbnails)
        with uninterrupted():
            for name, values in maps.items():
                self._streams[name][row : row + len(values)] = values
        self._thumbnails.extend(thumbnails)
        self._disk.check()

    def finish(
        self,
        valid: Sequence[int] | None = None,
        tracks: Mapping[str, Track] | None = None,
        relative_error: Mapping[str, float] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Complete and close the file.

        Args:
            valid: of its ranges, only those with these indices count; default: all.
            tracks: the tracks that it contains, by their keys.
            relative_error: of the maps, by engine, if it was measured.
            digests: id of a sequence → its digest, where the one in its range was provisional.
        """
        if len(self._thumbnails) != self._frames:
            raise RuntimeError(f"{self._path}: {len(self._thumbnails)} of {self._frames} frames written")
        rows = list(accumulate(map(len, self._ranges), initial=0))
        valid = range(len(self._ranges)) if valid is None else valid
        ranges = [self._ranges[i] for i in valid]
        known = digests or {}
        jpegs = np.frombuffer(b"".join(self._thumbnails), np.uint8)
        columns = {
            "sequence": [r.sequence for r in ranges],
            "digest": [known.get(r.sequence, r.digest) for r in ranges],
            "start": np.array([r.start for r in ranges], np.int64),
            "stop": np.array([r.stop for r in ranges], np.int64),
            "row": np.array([rows[i] for i in valid], np.int64),
        }
        header = Header(self._recipe, {"relative_error": dict(relative_error)} if relative_error else {})
        with uninterrupted():
            if len(jpegs):
                write_thumbnails(self._file, self._frames, [(0, list(map(len, self._thumbnails)), jpegs)])
            write_columns(create_group(self._file, "pieces"), columns)
            write_tracks(self._file, tracks or {})
            write_header(self._file, header)
            self.close()
        self._disk.check()

    def close(self) -> None:
        """Close the file, finished or not."""
        with uninterrupted():
            self._file.close()
            self._disk.close()


@contextmanager
def new_shard(
    folder: Path,
    recipe: Recipe,
    ranges: Sequence[FrameRange],
    streams: Mapping[str, StreamInfo],
    tracks: Sequence[str] = (),
) -> Iterator[tuple[ShardWriter, Path]]:
    """Yield a writer and the path of its shard, which appears once the block ends without an error.

    `tracks` are the keys of those that it will contain.
    """
    path = shard_path(folder, recipe, ranges, streams, tracks)
    with atomic_write(path) as temporary:
        writer = ShardWriter(temporary, recipe, ranges, streams)
        try:
            yield writer, path
        finally:
            writer.close()


def shard_path(
    folder: Path,
    recipe: Recipe,
    ranges: Sequence[FrameRange],
    streams: Mapping[str, StreamInfo],
    tracks: Sequence[str] = (),
) -> Path:
    """The path of a shard, whose name is a digest of what it contains."""
    content = [
        recipe.fingerprint,
        {name: info.fingerprint for name, info in streams.items()},
        [[r.sequence, r.digest, r.start, r.stop] for r in ranges],
        list(tracks),
    ]
    return folder / f"{json_digest(content)[:24]}.h5"


@dataclass(frozen=True)
class ShardContent:
    """What a finished shard says of itself."""

    ranges: Sequence[StoredRange]  # none if its recipe is another one
    tracks: Mapping[str, Track]  # by their keys, which identify the frames whatever the recipe
    relative_error: Mapping[str, float]  # of its maps, by engine


def read_shard(path: Path, fingerprint: str) -> ShardContent:
    """Read all of a finished shard but its frames; its ranges only if its recipe has the fingerprint."""
    with open_file(path) as f, damage_as_store_error(path):
        header = read_header(f)
        ranges = _ranges(f, path) if header.recipe.fingerprint == fingerprint else []
        return ShardContent(ranges, read_tracks(f), header.trunk.get("relative_error", {}))


def shard_ranges(path: Path, fingerprint: str) -> list[StoredRange]:
    """Return the ranges in a finished shard; none if its recipe has another fingerprint."""
    with open_file(path) as f, damage_as_store_error(path):
        return _ranges(f, path) if read_header(f).recipe.fingerprint == fingerprint else []


def _ranges(f: Any, path: Path) -> list[StoredRange]:
    check_pieces(f)
    group, streams = f["pieces"], {name: info.fingerprint for name, info in stream_infos(f).items()}
    text = [read_text(group[n]) for n in ("sequence", "digest")]
    numbers = [group[n][:].tolist() for n in ("start", "stop", "row")]
    return [
        StoredRange(FrameRange(sequence, digest, start, stop), path, row, streams)
        for sequence, digest, start, stop, row in zip(*text, *numbers, strict=True)
    ]


def create_stream(f: Any, name: str, frames: int, info: StreamInfo) -> Any:
    """Create a stream's dataset: one frame per chunk, checksummed."""
    shape, chunks = (frames, *info.shape), (1, *info.shape)
    group = create_group(f, "frames")
    data = group.create_dataset(name, shape, info.dtype, chunks=chunks, fletcher32=True, track_times=False)
    if info.origin:  # the trunk's stream is determined by the recipe alone
        write_attribute(data, "origin", canonical_json(dict(info.origin)))
    return data


def write_thumbnails(f: Any, frames: int, parts: Iterable[Thumbnails]) -> None:
    """Write JPEGs end to end; frames that are in none of the parts have none."""
    options = {"fletcher32": True, "track_times": False}
    group = create_group(f, "thumbnails")
    data = group.create_dataset("data", (0,), "u1", maxshape=(None,), chunks=(THUMBNAIL_BLOCK,), **options)
    all_sizes = np.zeros(frames, np.int64)
    for row, sizes, jpegs in parts:
        all_sizes[row : row + len(sizes)] = sizes
        end = len(data)
        data.resize(end + len(jpegs), axis=0)
        data[end:] = jpegs
    offsets = np.cumsum([0, *all_sizes], dtype=np.int64)
    group.create_dataset("offset", data=offsets, chunks=offsets.shape, **options)
