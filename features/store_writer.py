"""Writing: shards as the frames come, and the store assembled from their raw chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features.frame_ranges import FrameRange, StoredRange, full_range
from features.hdf5 import (
    FORMAT_NAME,
    FORMAT_VERSION,
    TABLE_FAULTS,
    ErrorTolerantFile,
    ThumbnailWriter,
    copy_chunks,
    create_file,
    create_stream,
    open_file,
    reading,
    write_array,
    write_columns,
)
from features.recipe import Recipe, canonical_json
from features.sequences import Camera, FrameSequence
from features.store import Header, Store, StreamInfo, TopRecord, read_track, stream_infos, track_index
from features.tracks import Track

MAX_OPEN_FILES = 4  # files read from at a time
FRAMES_PER_WRITE = 32  # frames written at a time: HDF5 is asked less often
FRAMES_PER_COPY = 512  # frames copied at a time


class ShardWriter:
    """Writes pieces, frame after frame, into a file of its own; use it inside `atomic_write`."""

    def __init__(
        self, path: Path, recipe: Recipe, pieces: Sequence[FrameRange], streams: Mapping[str, StreamInfo]
    ) -> None:
        self.path, self.pieces, self.at = path, pieces, 0
        self._total = sum(len(p) for p in pieces)
        self._thumbnails: list[bytes] = []
        self._waiting: list[Mapping[str, NDArray[Any]]] = []
        self._disk = ErrorTolerantFile(path)
        self._file = create_file(self._disk)
        _write_header(self._file, Header(recipe))
        self._file.create_group("frames")  # a shard may hold tracks alone
        for name, info in streams.items():
            _create(self._file, name, self._total, info)

    def write(self, maps: Mapping[str, NDArray[Any]], thumbnails: Sequence[bytes]) -> None:
        """Append frames: per stream (n, …) in its dtype, and n JPEGs (empty where the store has them already).

        The arrays are kept for a while, and must not change.
        """
        self._waiting.append(maps)
        self._thumbnails.extend(thumbnails)
        if len(self._thumbnails) - self.at >= FRAMES_PER_WRITE:
            self._flush()

    def close(self, sound: Sequence[int] | None = None, tracks: Mapping[str, Track] | None = None) -> None:
        """Finish the file.

        Args:
            sound: indices of the pieces that are good; the rows of the others are never looked at. Default: all.
            tracks: by their keys, of vehicles in these pieces' sequences.
        """
        self._flush()
        if self.at != self._total:
            raise RuntimeError(f"{self.path}: {self.at} of {self._total} frames written")
        rows = np.cumsum([0, *map(len, self.pieces)])
        kept = [(int(rows[i]), self.pieces[i]) for i in (range(len(self.pieces)) if sound is None else sound)]
        _write_thumbnails(self._file, self._thumbnails)
        columns = {
            "sequence": [p.sequence for _, p in kept],
            "digest": [p.digest for _, p in kept],
            "start": np.array([p.start for _, p in kept], np.int64),
            "stop": np.array([p.stop for _, p in kept], np.int64),
            "row": np.array([row for row, _ in kept], np.int64),
        }
        write_columns(self._file.create_group("pieces"), columns)
        _write_tracks(self._file, tracks or {})
        self.abandon()
        self._disk.check()

    def _flush(self) -> None:
        for name in self._waiting[0] if self._waiting else ():
            values = np.concatenate([maps[name] for maps in self._waiting])
            self._file["frames"][name][self.at : self.at + len(values)] = values
        self._disk.check()
        self.at, self._waiting = len(self._thumbnails), []

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()
        self._disk.close()


def check_shard(path: Path) -> None:
    """Read every chunk of a shard.

    Raises:
        StoreError: one that cannot be read.
    """
    with open_file(path) as f, reading(path, TABLE_FAULTS):
        for data in f["frames"].values():
            for row in range(data.shape[0]):
                data[row]
        f["thumbnails/data"][:], f["pieces/row"][:]


def shard_pieces(path: Path, fingerprint: str) -> list[StoredRange]:
    """What a finished shard holds; nothing where it was written by another recipe."""
    with open_file(path) as f, reading(path):
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
    """The tracks in a finished shard, by their keys."""
    with open_file(path) as f, reading(path):
        return {name: read_track(f, *where) for name, where in track_index(f).items()}


@dataclass(frozen=True)
class StreamContent:
    """A stream of a store to be assembled.

    Attributes:
        parts: per sequence the held pieces that make it up, in order; or
        batches: all its frames in the store's order, computed as they are written, (n, …) each.
        arrays: what it was computed with, kept beside it.
    """

    info: StreamInfo
    parts: Sequence[Sequence[StoredRange]] = ()
    batches: Iterable[NDArray[Any]] | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def assemble_store(
    path: Path,
    header: Header,
    sequences: Sequence[FrameSequence],
    streams: Mapping[str, StreamContent],
    top: TopRecord | None,
    tracks: Mapping[str, Track] | None = None,
) -> None:
    """Write a store from pieces that lie in shards or an older store; it takes `path`'s place when whole.

    Chunks are copied as they lie on the disk, checksums included: nothing is decoded or rounded again.

    Args:
        sequences: the store's sequences, in order.
        streams: by name; the thumbnails come from where the first one's parts lie.
        tracks: by their keys, see `features.tracks.track_keys`.
    """
    for stream in streams.values():
        for sequence, held in zip(sequences, stream.parts, strict=stream.batches is None):
            if sum(len(h.frame_range) for h in held) != sequence.length:
                raise RuntimeError(f"{sequence.id}: {held} do not make up {full_range(sequence)}")
    frames = sum(s.length for s in sequences)
    sources: dict[Path, Any] = {}
    with atomic_write(path) as temporary:
        disk = ErrorTolerantFile(temporary)
        try:
            with create_file(disk) as f:
                _write_header(f, header)
                _write_sequences(f, sequences)
                _write_labels(f, sequences)
                _write_tracks(f, tracks or {})
                if top:
                    _write_top(f, top)
                _copy_thumbnails(f, next(iter(streams.values())).parts, frames, sources)
                for name, stream in streams.items():
                    target = _create(f, name, frames, stream.info)
                    for part, values in stream.arrays.items():
                        write_array(f, f"bases/{name}/{part}", values)
                    if stream.batches is not None:
                        _fill(target, stream.batches, disk)
                    for place, start, row, count in _runs(stream.parts):
                        copy_chunks(_opened(sources, place)["frames"][name], target, start, row, count)
                        disk.check()
            disk.check()
        finally:
            disk.close()
            for source in sources.values():
                source.close()


def extend_store(path: Path, streams: Mapping[str, StreamContent], tracks: Mapping[str, Track] | None = None) -> None:
    """Add streams and tracks to a finished store, or put new ones in the place of old ones of the same names.

    What is there is copied chunk by chunk, never opened for writing; the new file takes the old one's place when whole.
    The caller holds the store's lock.
    """
    with Store(path) as store:
        held = store.held()
        old = {n: StreamContent(info, [[h] for h in held], arrays=store.basis(n)) for n, info in store.streams.items()}
        assemble_store(
            path, store.header, store.sequences, old | dict(streams), store.top(), store.tracks() | dict(tracks or {})
        )


def _runs(parts: Sequence[Sequence[StoredRange]]) -> Iterator[tuple[Path, int, int, int]]:
    """Rows that follow each other in one file too, at most `FRAMES_PER_COPY`: file, first row there, first row here, how many."""
    held = [h for own in parts for h in own]
    rows = accumulate((len(h.frame_range) for h in held), initial=0)
    placed = zip(held, rows, strict=False)
    for (path, shift), found in groupby(placed, lambda pair: (pair[0].path, pair[0].row - pair[1])):
        run = list(found)
        stop = run[-1][1] + len(run[-1][0].frame_range)
        for row in range(run[0][1], stop, FRAMES_PER_COPY):
            yield path, row + shift, row, min(FRAMES_PER_COPY, stop - row)


def _opened(sources: dict[Path, Any], path: Path) -> Any:
    """A file, opened; the one used longest ago makes room, for each open file keeps its caches in memory."""
    if path not in sources and len(sources) >= MAX_OPEN_FILES:
        sources.pop(next(iter(sources))).close()
    sources[path] = sources.pop(path, None) or open_file(path)
    return sources[path]


def _create(f: Any, name: str, frames: int, info: StreamInfo) -> Any:
    return create_stream(f, name, frames, info.shape, info.dtype, canonical_json(dict(info.origin)))


def _fill(target: Any, batches: Iterable[NDArray[Any]], disk: ErrorTolerantFile) -> None:
    at = 0
    for batch in batches:
        target[at : at + len(batch)] = batch
        at += len(batch)
        disk.check()
    if at != len(target):
        raise RuntimeError(f"{target.name}: {at} of {len(target)} frames were computed")


def _copy_thumbnails(f: Any, parts: Sequence[Sequence[StoredRange]], frames: int, sources: dict[Path, Any]) -> None:
    offsets, thumbnails = np.zeros(frames + 1, np.int64), ThumbnailWriter(f)
    for path, start, row, count in _runs(parts):
        source = _opened(sources, path)
        bounds = source["thumbnails/offset"][start : start + count + 1]
        thumbnails.write(source["thumbnails/data"][bounds[0] : bounds[-1]])
        offsets[row + 1 : row + 1 + count] = offsets[row] + bounds[1:] - bounds[0]
    thumbnails.finish(offsets)


def _write_thumbnails(f: Any, thumbnails: Sequence[bytes]) -> None:
    writer = ThumbnailWriter(f)
    for jpeg in thumbnails:
        writer.write(np.frombuffer(jpeg, np.uint8))
    writer.finish(np.cumsum([0, *map(len, thumbnails)], dtype=np.int64))


def _write_header(f: Any, header: Header) -> None:
    f.attrs["format"], f.attrs["version"] = FORMAT_NAME, FORMAT_VERSION
    f.attrs["recipe"], f.attrs["fingerprint"] = header.recipe.to_json(), header.recipe.fingerprint
    f.attrs["complete"] = header.complete
    for name in ("trunk", "versions", "missing"):
        f.attrs[name] = canonical_json(dict(getattr(header, name)))


def _write_sequences(f: Any, sequences: Sequence[FrameSequence]) -> None:
    lengths = np.array([s.length for s in sequences], np.int64)
    write_columns(
        f.create_group("sequences"),
        {
            "id": [s.id for s in sequences],
            "split": [s.split for s in sequences],
            "digest": [s.digest for s in sequences],
            "first": np.cumsum(lengths) - lengths,
            "length": lengths,
            "fps": np.array([s.fps for s in sequences], np.float64),
            "width": np.array([s.size[0] for s in sequences], np.int64),
            "height": np.array([s.size[1] for s in sequences], np.int64),
            "camera": np.array([_camera(s.camera) for s in sequences], np.float64).reshape(-1, 5),
        },
    )


def _camera(camera: Camera | None) -> list[float]:
    if camera is None:
        return [math.nan] * 5
    return [camera.fx, camera.fy, camera.cx, camera.cy, math.nan if camera.height is None else camera.height]


def _write_tracks(f: Any, tracks: Mapping[str, Track]) -> None:
    if not tracks:
        return
    lengths = np.array([len(t.boxes) for t in tracks.values()], np.int64)
    write_columns(
        f.create_group("tracks"),
        {
            "key": list(tracks),
            "first": np.cumsum(lengths) - lengths,
            "length": lengths,
            "box": np.concatenate([t.boxes for t in tracks.values()]),
            "confidence": np.concatenate([t.confidence for t in tracks.values()]),
        },
    )


def _write_labels(f: Any, sequences: Sequence[FrameSequence]) -> None:
    rows = [(i, label) for i, s in enumerate(sequences) for label in s.labels]
    columns = sorted({c for _, label in rows for c in label.targets})
    # a label that names a column without knowing it differs from one that has nothing to do with it
    named = np.array([[c in label.targets for c in columns] for _, label in rows], bool)
    named = named.reshape(len(rows), len(columns))
    targets = [[label.targets.get(c, math.nan) for c in columns] for _, label in rows]
    group = f.create_group("labels")
    group.attrs["columns"] = canonical_json(columns)
    write_columns(
        group,
        {
            "sequence": np.array([i for i, _ in rows], np.int64),
            "frame": np.array([label.frame for _, label in rows], np.int64),
            "targets": np.array(targets, np.float64).reshape(len(rows), len(columns)),
            "named": named,
            "box": np.array([label.box or (math.nan,) * 4 for _, label in rows], np.float64).reshape(-1, 4),
            "position": np.array([label.position or (math.nan,) * 2 for _, label in rows], np.float64).reshape(-1, 2),
        },
    )


def _write_top(f: Any, top: TopRecord) -> None:
    group = f.create_group("top")
    # attributes hold 64 KB at most, an architecture may be longer: HDF5 keeps large ones apart since 1.8 (v110 here)
    group.attrs["architecture"] = top.architecture
    for i, weight in enumerate(top.weights):
        write_array(group, f"weights/{i}", weight)
