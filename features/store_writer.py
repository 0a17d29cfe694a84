"""Writing: shards as frames are extracted, and the store assembled from their raw chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features.frame_ranges import FrameRange, StoredRange, full_range
from features.hdf5 import ErrorTolerantFile, copy_chunks, create_file, damage_as_store_error, open_file, write_columns
from features.recipe import Recipe, canonical_json
from features.sequences import FrameSequence
from features.store import Header, Store, StreamInfo, TopRecord, read_track, stream_infos, track_index
from features.tracks import Track

FRAMES_PER_COPY = 512
THUMBNAIL_BLOCK = 1 << 16  # bytes


class ShardWriter:
    """Writes frame ranges into a new file, frame after frame; use it inside `atomic_write`."""

    def __init__(
        self, path: Path, recipe: Recipe, ranges: Sequence[FrameRange], streams: Mapping[str, StreamInfo]
    ) -> None:
        self._path, self._ranges = path, ranges
        self._frames = sum(map(len, ranges))
        self._thumbnails: list[bytes] = []  # those of the frames written so far
        self._disk = ErrorTolerantFile(path)
        self._file = create_file(self._disk)
        _write_header(self._file, Header(recipe))
        self._file.create_group("frames")  # also in a shard with tracks only
        self._streams = {name: _create_stream(self._file, name, self._frames, info) for name, info in streams.items()}

    def write(self, maps: Mapping[str, NDArray[Any]], thumbnails: Sequence[bytes]) -> None:
        """Append n frames: stream → (n, …), and n JPEGs, or empty bytes."""
        row = len(self._thumbnails)
        for name, values in maps.items():
            self._streams[name][row : row + len(values)] = values
        self._thumbnails.extend(thumbnails)
        self._disk.check()

    def finish(self, valid: Sequence[int] | None = None, tracks: Mapping[str, Track] | None = None) -> None:
        """Complete and close the file. Of its ranges, only those with the indices `valid` count; default: all."""
        if len(self._thumbnails) != self._frames:
            raise RuntimeError(f"{self._path}: {len(self._thumbnails)} of {self._frames} frames written")
        rows = list(accumulate(map(len, self._ranges), initial=0))
        valid = range(len(self._ranges)) if valid is None else valid
        ranges = [self._ranges[i] for i in valid]
        jpegs = np.frombuffer(b"".join(self._thumbnails), np.uint8)
        _write_thumbnails(self._file, self._frames, [(0, list(map(len, self._thumbnails)), jpegs)])
        columns = {
            "sequence": [r.sequence for r in ranges],
            "digest": [r.digest for r in ranges],
            "start": np.array([r.start for r in ranges], np.int64),
            "stop": np.array([r.stop for r in ranges], np.int64),
            "row": np.array([rows[i] for i in valid], np.int64),
        }
        write_columns(self._file.create_group("pieces"), columns)
        _write_tracks(self._file, tracks or {})
        self.close()
        self._disk.check()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()
        self._disk.close()


def check_shard(path: Path) -> None:
    """Read every chunk of a shard; raise StoreError if one cannot be read."""
    with open_file(path) as f, damage_as_store_error(path):
        for data in f["frames"].values():
            for row in range(data.shape[0]):
                data[row]
        f["thumbnails/data"][:], f["pieces/row"][:]


def shard_ranges(path: Path, fingerprint: str) -> list[StoredRange]:
    """Return the ranges in a finished shard; none if its recipe has another fingerprint."""
    with open_file(path) as f, damage_as_store_error(path):
        if f.attrs["fingerprint"] != fingerprint:
            return []
        group, streams = f["pieces"], {name: info.fingerprint for name, info in stream_infos(f).items()}
        text = [group[n].asstr()[:].tolist() for n in ("sequence", "digest")]
        numbers = [group[n][:].tolist() for n in ("start", "stop", "row")]
        return [
            StoredRange(FrameRange(sequence, digest, start, stop), path, row, streams)
            for sequence, digest, start, stop, row in zip(*text, *numbers, strict=True)
        ]


def shard_tracks(path: Path) -> dict[str, Track]:
    """Read the tracks in a finished shard, by their keys."""
    with open_file(path) as f, damage_as_store_error(path):
        return {key: read_track(f, *rows) for key, rows in track_index(f).items()}


@dataclass(frozen=True)
class StreamContent:
    """The content of one stream of a store to be assembled: stored `ranges`, or computed `batches`."""

    info: StreamInfo
    ranges: Sequence[Sequence[StoredRange]] = ()  # per sequence, those that together make it up, in order
    batches: Iterable[NDArray[Any]] | None = None  # all frames in order, (n, …) each, computed while they are written
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # stored with it, such as principal components


def assemble_store(
    path: Path,
    header: Header,
    sequences: Sequence[FrameSequence],
    streams: Mapping[str, StreamContent],
    top: TopRecord | None,
    tracks: Mapping[str, Track] | None = None,
) -> None:
    """Write a store from ranges in shards or an older store; it replaces `path` once complete.

    Chunks are copied as stored, checksums included, so nothing is decoded or rounded again. The thumbnails are copied
    from the first stream's files. The keys of `tracks` are those of `features.tracks.track_keys`.
    """
    for stream in streams.values():
        for sequence, ranges in zip(sequences, stream.ranges, strict=stream.batches is None):
            if sum(len(s.frame_range) for s in ranges) != sequence.length:
                raise RuntimeError(f"{sequence.id}: {ranges} do not make up {full_range(sequence)}")
    frames = sum(s.length for s in sequences)
    with atomic_write(path) as temporary:
        disk = ErrorTolerantFile(temporary)
        try:
            with create_file(disk) as f:
                _write_header(f, header)
                _write_sequences(f, sequences)
                _write_labels(f, sequences)
                _write_tracks(f, tracks or {})
                if top:
                    # may exceed the 64 KB of a plain attribute; with LIBVER, HDF5 stores larger ones too
                    f.create_group("top").attrs["architecture"] = top.architecture
                    for i, weight in enumerate(top.weights):
                        _write_array(f, f"top/weights/{i}", weight)
                _write_thumbnails(f, frames, _stored_thumbnails(next(iter(streams.values())).ranges))
                for name, stream in streams.items():
                    target = _create_stream(f, name, frames, stream.info)
                    for array, values in stream.arrays.items():
                        _write_array(f, f"bases/{name}/{array}", values)
                    if stream.batches is not None:
                        _write_batches(target, stream.batches, disk)
                    for source_path, source_row, row, count in _copies(stream.ranges):
                        with open_file(source_path) as source:
                            copy_chunks(source["frames"][name], target, source_row, row, count)
                        disk.check()
            disk.check()
        finally:
            disk.close()


def extend_store(path: Path, streams: Mapping[str, StreamContent], tracks: Mapping[str, Track] | None = None) -> None:
    """Add streams and tracks to a finished store, replacing those of the same names.

    Existing streams are copied chunk by chunk into a new file, which replaces the old one once complete. The caller
    holds the store's lock.
    """
    with Store(path) as store:
        ranges = [[stored] for stored in store.stored_ranges()]
        existing = {n: StreamContent(info, ranges, arrays=store.basis(n)) for n, info in store.streams.items()}
        all_tracks = store.tracks() | dict(tracks or {})
        assemble_store(path, store.header, store.sequences, existing | dict(streams), store.top(), all_tracks)


def _copies(ranges: Sequence[Sequence[StoredRange]]) -> Iterator[tuple[Path, int, int, int]]:
    """Join ranges that are consecutive in one file: (file, its first row, the store's first row, count) each."""
    stored = list(chain.from_iterable(ranges))
    rows = accumulate((len(s.frame_range) for s in stored), initial=0)
    placed = zip(stored, rows, strict=False)
    for (path, shift), group in groupby(placed, lambda pair: (pair[0].path, pair[0].row - pair[1])):
        run = list(group)
        stop = run[-1][1] + len(run[-1][0].frame_range)
        for row in range(run[0][1], stop, FRAMES_PER_COPY):
            yield path, row + shift, row, min(FRAMES_PER_COPY, stop - row)


def _create_stream(f: Any, name: str, frames: int, info: StreamInfo) -> Any:
    """Create a stream's dataset: one frame per chunk, checksummed."""
    shape, chunks = (frames, *info.shape), (1, *info.shape)
    data = f.create_dataset(f"frames/{name}", shape, info.dtype, chunks=chunks, fletcher32=True, track_times=False)
    if info.origin:  # the trunk's stream is determined by the recipe alone
        data.attrs["origin"] = canonical_json(dict(info.origin))
    return data


def _write_batches(target: Any, batches: Iterable[NDArray[Any]], disk: ErrorTolerantFile) -> None:
    row = 0
    for batch in batches:
        target[row : row + len(batch)] = batch
        row += len(batch)
        disk.check()
    if row != len(target):
        raise RuntimeError(f"{target.name}: {row} of {len(target)} frames were computed")


def _write_array(f: Any, name: str, values: NDArray[Any]) -> None:
    """Write a dataset as one checksummed chunk; scalars and empty arrays without chunks."""
    chunks = values.shape if values.ndim and values.size else None
    f.create_dataset(name, data=values, chunks=chunks, fletcher32=chunks is not None, track_times=False)


Thumbnails = tuple[int, Sequence[int] | NDArray[np.int64], NDArray[np.uint8]]  # first row, sizes in bytes, JPEGs


def _write_thumbnails(f: Any, frames: int, parts: Iterable[Thumbnails]) -> None:
    """Write JPEGs end to end; frames that are in none of the parts have none."""
    options = {"fletcher32": True, "track_times": False}
    data = f.create_dataset("thumbnails/data", (0,), "u1", maxshape=(None,), chunks=(THUMBNAIL_BLOCK,), **options)
    all_sizes = np.zeros(frames, np.int64)
    for row, sizes, jpegs in parts:
        all_sizes[row : row + len(sizes)] = sizes
        end = len(data)
        data.resize(end + len(jpegs), axis=0)
        data[end:] = jpegs
    offsets = np.cumsum([0, *all_sizes], dtype=np.int64)
    f.create_dataset("thumbnails/offset", data=offsets, chunks=offsets.shape, **options)


def _stored_thumbnails(ranges: Sequence[Sequence[StoredRange]]) -> Iterator[Thumbnails]:
    for path, source_row, row, count in _copies(ranges):
        with open_file(path) as source:
            offsets = source["thumbnails/offset"][source_row : source_row + count + 1]
            yield row, np.diff(offsets), source["thumbnails/data"][offsets[0] : offsets[-1]]


def _write_header(f: Any, header: Header) -> None:
    f.attrs["recipe"], f.attrs["fingerprint"] = header.recipe.to_json(), header.recipe.fingerprint
    f.attrs["complete"] = header.complete
    for name in ("trunk", "versions", "missing"):
        f.attrs[name] = canonical_json(dict(getattr(header, name)))


def _write_sequences(f: Any, sequences: Sequence[FrameSequence]) -> None:
    lengths = np.array([s.length for s in sequences], np.int64)
    cameras = [astuple(s.camera) if s.camera else (None,) * 6 for s in sequences]
    columns = {
        "id": [s.id for s in sequences],
        "split": [s.split for s in sequences],
        "digest": [s.digest for s in sequences],
        "first": np.cumsum(lengths) - lengths,
        "length": lengths,
        "fps": np.array([s.fps for s in sequences], np.float64),
        "width": np.array([s.size[0] for s in sequences], np.int64),
        "height": np.array([s.size[1] for s in sequences], np.int64),
        "camera": np.array(cameras, np.float64).reshape(-1, 6),  # None becomes NaN
    }
    if any(s.region for s in sequences):
        columns["region"] = np.array([s.visible_region for s in sequences], np.int64)
    if any(s.times for s in sequences):
        counts = np.array([len(s.times or ()) for s in sequences], np.int64)
        columns["times_stop"] = np.cumsum(counts)
        columns["times"] = np.concatenate([np.array(s.times or (), np.float64) for s in sequences])
    write_columns(f.create_group("sequences"), columns)


def _write_tracks(f: Any, tracks: Mapping[str, Track]) -> None:
    if not tracks:
        return
    lengths = np.array([len(t.boxes) for t in tracks.values()], np.int64)
    columns = {
        "key": list(tracks),
        "first": np.cumsum(lengths) - lengths,
        "length": lengths,
        "box": np.concatenate([t.boxes for t in tracks.values()]),
        "confidence": np.concatenate([t.confidence for t in tracks.values()]),
    }
    write_columns(f.create_group("tracks"), columns)


def _write_labels(f: Any, sequences: Sequence[FrameSequence]) -> None:
    rows = [(i, label) for i, s in enumerate(sequences) for label in s.labels]
    columns = sorted({c for _, label in rows for c in label.targets})
    # a label may have a column without a value, which differs from not having the column
    named = [[c in label.targets for c in columns] for _, label in rows]
    targets = [[label.targets.get(c, math.nan) for c in columns] for _, label in rows]
    group = f.create_group("labels")
    group.attrs["columns"] = canonical_json(columns)
    values = {
        "sequence": np.array([i for i, _ in rows], np.int64),
        "frame": np.array([label.frame for _, label in rows], np.int64),
        "targets": np.array(targets, np.float64).reshape(len(rows), len(columns)),
        "named": np.array(named, bool).reshape(len(rows), len(columns)),
        "box": np.array([label.box or (math.nan,) * 4 for _, label in rows], np.float64).reshape(-1, 4),
        "position": np.array([label.position or (math.nan,) * 2 for _, label in rows], np.float64).reshape(-1, 2),
    }
    write_columns(group, values)
