"""Writing: shards as the frames come, and the store assembled from their raw chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Listed
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.files import replacing
from features.hdf5 import (
    FORMAT,
    TABLE_FAULTS,
    VERSION,
    Disk,
    ThumbnailWriter,
    copy_chunks,
    create,
    create_stream,
    open_file,
    reading,
    write_columns,
)
from features.pieces import Held, Piece, whole
from features.recipe import Recipe, canonical
from features.sequences import Sequence
from features.store import Header, StreamInfo, TopRecord


class ShardWriter:
    """Writes pieces, frame after frame, into a file of its own; use it inside `replacing`."""

    def __init__(self, path: Path, recipe: Recipe, pieces: Listed[Piece], streams: Mapping[str, StreamInfo]) -> None:
        self.path, self.pieces, self.at = path, pieces, 0
        self._total = sum(len(p) for p in pieces)
        self._thumbnails: list[bytes] = []
        self._disk = Disk(path)
        self._file = create(self._disk)
        _write_header(self._file, Header(recipe))
        for name, info in streams.items():
            create_stream(self._file, name, self._total, info.shape, info.dtype)

    def write(self, maps: Mapping[str, NDArray[Any]], thumbnails: Listed[bytes]) -> None:
        """Append frames: per stream (n, …) in its dtype, and n JPEGs."""
        count = len(thumbnails)
        for name, values in maps.items():
            self._file["frames"][name][self.at : self.at + count] = values
        self._disk.check()
        self._thumbnails.extend(thumbnails)
        self.at += count

    def close(self, sound: Listed[int] | None = None) -> None:
        """Finish the file and read all of it back, so that what is renamed into place is known to be sound.

        Args:
            sound: indices of the pieces that are good; the rows of the others are never looked at. Default: all.
        """
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
        self.abandon()
        self._disk.check()
        check_shard(self.path)

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


def shard_pieces(path: Path, fingerprint: str) -> list[Held]:
    """What a finished shard holds; nothing where it was written by another recipe."""
    with open_file(path) as f, reading(path):
        if f.attrs["fingerprint"] != fingerprint:
            return []
        group = f["pieces"]
        text = [group[n].asstr()[:].tolist() for n in ("sequence", "digest")]
        numbers = [group[n][:].tolist() for n in ("start", "stop", "row")]
        return [
            Held(Piece(sequence, digest, start, stop), path, row)
            for sequence, digest, start, stop, row in zip(*text, *numbers, strict=True)
        ]


def assemble(
    path: Path,
    header: Header,
    sequences: Listed[Sequence],
    parts: Listed[Listed[Held]],
    streams: Mapping[str, StreamInfo],
    top: TopRecord | None,
) -> None:
    """Write a store from pieces that lie in shards or an older store; it takes `path`'s place when whole.

    Chunks are copied as they lie on the disk, checksums included: nothing is decoded or rounded again.

    Args:
        sequences: the store's sequences, in order.
        parts: per sequence the held pieces that make it up, in order.
    """
    for sequence, held in zip(sequences, parts, strict=True):
        if sum(len(h.piece) for h in held) != sequence.length:
            raise RuntimeError(f"{sequence.id}: {held} do not make up {whole(sequence)}")
    frames = sum(s.length for s in sequences)
    sources: dict[Path, Any] = {}
    with replacing(path) as temporary:
        disk = Disk(temporary)
        try:
            with create(disk) as f:
                _write_header(f, header)
                _write_sequences(f, sequences)
                _write_labels(f, sequences)
                if top:
                    _write_top(f, top)
                targets = {n: create_stream(f, n, frames, info.shape, info.dtype) for n, info in streams.items()}
                offsets, thumbnails = np.zeros(frames + 1, np.int64), ThumbnailWriter(f)
                row = 0
                for h in (h for held in parts for h in held):
                    if h.path not in sources:
                        sources[h.path] = open_file(h.path)
                    source = sources[h.path]
                    for name, target in targets.items():
                        copy_chunks(source["frames"][name], target, h.row, row, len(h.piece))
                    bounds = source["thumbnails/offset"][h.row : h.row + len(h.piece) + 1]
                    thumbnails.write(source["thumbnails/data"][bounds[0] : bounds[-1]])
                    offsets[row + 1 : row + 1 + len(h.piece)] = offsets[row] + bounds[1:] - bounds[0]
                    row += len(h.piece)
                    disk.check()
                thumbnails.finish(offsets)
            disk.check()
        finally:
            disk.close()
            for source in sources.values():
                source.close()


def _write_thumbnails(f: Any, thumbnails: Listed[bytes]) -> None:
    writer = ThumbnailWriter(f)
    for jpeg in thumbnails:
        writer.write(np.frombuffer(jpeg, np.uint8))
    writer.finish(np.cumsum([0, *map(len, thumbnails)], dtype=np.int64))


def _write_header(f: Any, header: Header) -> None:
    f.attrs["format"], f.attrs["version"] = FORMAT, VERSION
    f.attrs["recipe"], f.attrs["fingerprint"] = header.recipe.to_json(), header.recipe.fingerprint
    f.attrs["complete"] = header.complete
    for name in ("trunk", "versions", "missing"):
        f.attrs[name] = canonical(dict(getattr(header, name)))


def _write_sequences(f: Any, sequences: Listed[Sequence]) -> None:
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
        },
    )


def _write_labels(f: Any, sequences: Listed[Sequence]) -> None:
    rows = [(i, label) for i, s in enumerate(sequences) for label in s.labels]
    columns = sorted({c for _, label in rows for c in label.targets})
    # a label that names a column without knowing it differs from one that has nothing to do with it
    named = np.array([[c in label.targets for c in columns] for _, label in rows], bool)
    named = named.reshape(len(rows), len(columns))
    targets = [[label.targets.get(c, math.nan) for c in columns] for _, label in rows]
    group = f.create_group("labels")
    group.attrs["columns"] = canonical(columns)
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
        chunks = weight.shape if weight.ndim and weight.size else None
        group.create_dataset(
            f"weights/{i}", data=weight, chunks=chunks, fletcher32=chunks is not None, track_times=False
        )
