"""The store, format 1: one HDF5 file that holds what the trunk saw, and all that is needed to train from it.

    attributes             format, version, recipe (JSON), fingerprint, complete, missing (JSON: id -> why),
                           versions (JSON), trunk (JSON: facts about the frozen part)
    frames/<stream>        (frames, ...) one frame a chunk, fletcher32; attribute origin (JSON) but for the trunk's
    bases/<stream>/<array> what a derived stream was computed with: its principal components, and their mean
    thumbnails/data        JPEGs end to end, bytes; thumbnails/offset (frames + 1,)
    sequences/<column>     id, split, first, length, fps, width, height, digest, camera (fx fy cx cy height)
    labels/<column>        sequence, frame, targets (labels, columns; NaN unknown), box, position
    tracks/<column>        key, first, length: a path each; box (rows, 4), confidence (rows,): its frames'
    top/weights/<number>   the unfrozen layers' weights; attribute architecture: their Keras JSON

Camera, tracks and bases came later, older files have none. Shards have the same form with `pieces/` in place of
`sequences/` and `labels/`. Reading needs numpy and h5py alone.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features.errors import StoreError
from features.frame_ranges import FrameRange, StoredRange
from features.hdf5 import TABLE_FAULTS, open_file, reading
from features.recipe import Recipe, json_digest
from features.sequences import Camera, FrameSequence, Label
from features.tracks import Track, track_key_by_label


@dataclass(frozen=True)
class StreamInfo:
    """One frame's entry in a stream.

    Attributes:
        shape, dtype: of the entry.
        origin: what decides its numbers; empty for the trunk's stream, which follows from the recipe.
    """

    shape: tuple[int, ...]
    dtype: str
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over shape, dtype and origin."""
        return json_digest([self.shape, self.dtype, self.origin])


@dataclass(frozen=True)
class TopRecord:
    """The unfrozen layers: Keras' JSON of their model (cut's map in, backbone's output out) and their weights."""

    architecture: str
    weights: list[NDArray[Any]]


@dataclass(frozen=True)
class Header:
    """What a store says of itself, apart from frames, sequences and labels.

    Attributes:
        recipe: what decided the stored numbers.
        trunk: facts about the frozen part: `parameters`, `cut` in words, `relative_error` of the engine.
        versions: library name → version that wrote the file.
        missing: sequence id → why it is not in the store.
        complete: whether every wanted sequence is in, or the user said to do without.
    """

    recipe: Recipe
    trunk: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True


class Store:
    """A store opened for reading; use it in a `with` block.

    Raises:
        StoreError: no such file, not a store, damaged, or of a later format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        try:
            with reading(self.path, TABLE_FAULTS):
                self.header = _header(self._file)
                self.recipe, self.complete = self.header.recipe, self.header.complete
                self.versions, self.missing = self.header.versions, self.header.missing
                self.fingerprint = str(self._file.attrs["fingerprint"])
                self.sequences, self.first = _sequences(self._file)
                self.streams = stream_infos(self._file)
                self.frames = int(self._file["thumbnails/offset"].shape[0]) - 1
                self._offsets: NDArray[np.int64] = self._file["thumbnails/offset"][:]
                self._paths = track_index(self._file)
            self._index = {s.id: i for i, s in enumerate(self.sequences)}
            self._vehicles: dict[int, dict[int, str]] = {}  # per sequence: label → key of its vehicle's track
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def index(self, sequence_id: str) -> int:
        """Position of a sequence in `sequences`."""
        try:
            return self._index[sequence_id]
        except KeyError:
            raise StoreError(
                f"{self.path}: no sequence {sequence_id!r}", hint="python -m stage1_extract info"
            ) from None

    def read(self, stream: str, rows: NDArray[np.int64] | Sequence[int]) -> NDArray[Any]:
        """Entries of a stream, (len(rows), …) in the stored dtype; any order, repeats allowed.

        Cast afterwards: letting HDF5 convert half to single while it reads is 80 times slower.

        Raises:
            StoreError: no such stream, or a frame whose checksum does not fit.
        """
        data = self._stream(stream)
        wanted = np.asarray(rows, np.int64)
        out = np.empty((len(wanted), *data.shape[1:]), data.dtype)
        with reading(self.path):
            for at, start, count in consecutive_runs(wanted):
                data.read_direct(out, np.s_[start : start + count], np.s_[at : at + count])
        return out

    def basis(self, stream: str) -> dict[str, NDArray[Any]]:
        """What a derived stream was computed with, by name; empty for most.

        Raises:
            StoreError: an array whose checksum does not fit.
        """
        if f"bases/{stream}" not in self._file:
            return {}
        with reading(self.path, TABLE_FAULTS):
            return {name: data[()] for name, data in self._file[f"bases/{stream}"].items()}

    def thumbnail(self, row: int) -> bytes:
        """A frame's small JPEG."""
        with reading(self.path):
            data: NDArray[np.uint8] = self._file["thumbnails/data"][self._offsets[row] : self._offsets[row + 1]]
        return data.tobytes()

    def top(self) -> TopRecord | None:
        """The unfrozen layers with their pretrained weights; None where nothing is unfrozen."""
        if "top" not in self._file:
            return None
        with reading(self.path, TABLE_FAULTS):
            group = self._file["top"]
            weights = [group["weights"][k][()] for k in sorted(group["weights"], key=int)]
            return TopRecord(str(group.attrs["architecture"]), weights)

    @property
    def track_keys(self) -> frozenset[str]:
        """Keys of the tracks that are here, see `features.tracks.track_keys`."""
        return frozenset(self._paths)

    def tracks(self) -> dict[str, Track]:
        """Every track by its key."""
        return {name: self._track(*where) for name, where in self._paths.items()}

    def track(self, sequence: int, label: int) -> Track | None:
        """The path of the vehicle that a label is about, through its whole sequence; None where there is none.

        Args:
            sequence: index into `sequences`.
            label: index into that sequence's labels.
        """
        if sequence not in self._vehicles:
            self._vehicles[sequence] = track_key_by_label(self.sequences[sequence])
        where = self._paths.get(self._vehicles[sequence].get(label, ""))
        return None if where is None else self._track(*where)

    def _track(self, first: int, length: int) -> Track:
        with reading(self.path):
            return read_track(self._file, first, length)

    def held(self, damaged: Sequence[int] = ()) -> list[StoredRange]:
        """Every sequence as pieces in this file, without the `damaged` rows."""
        bad, held = set(damaged), []
        streams = {name: info.fingerprint for name, info in self.streams.items()}
        for sequence, first in zip(self.sequences, self.first.tolist(), strict=True):
            edges = [-1, *sorted(r - first for r in bad if first <= r < first + sequence.length), sequence.length]
            for a, b in itertools.pairwise(edges):
                if b > a + 1:
                    piece = FrameRange(sequence.id, sequence.digest, a + 1, b)
                    held.append(StoredRange(piece, self.path, first + a + 1, streams))
        return held

    def damaged(self) -> Iterator[tuple[int, list[str]]]:
        """Read every chunk; for each frame its row and the streams that cannot be read (an empty list is well)."""
        for row in range(self.frames):
            faults = []
            for name in self.streams:
                try:
                    self._file["frames"][name][row]
                    if row == 0:  # with a stream's first frame counts what it was computed with
                        self.basis(name)
                except (OSError, StoreError):
                    faults.append(name)
            try:
                self._file["thumbnails/data"][self._offsets[row] : self._offsets[row + 1]]
            except OSError:
                faults.append("thumbnails")
            yield row, faults

    def _stream(self, name: str) -> Any:
        if name not in self.streams:
            raise StoreError(f"{self.path}: no stream {name!r}", expected=f"one of {', '.join(self.streams)}", got=name)
        return self._file["frames"][name]


def consecutive_runs(rows: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Runs of consecutive rows as (place in `rows`, first row, count)."""
    if len(rows) == 0:
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    counts = np.diff(starts, append=len(rows))
    return [(int(a), int(rows[a]), int(n)) for a, n in zip(starts, counts, strict=True)]


def stream_infos(f: Any) -> dict[str, StreamInfo]:
    """The streams of an open store or shard, by name."""
    return {
        name: StreamInfo(d.shape[1:], d.dtype.name, json.loads(d.attrs.get("origin", "{}")))
        for name, d in sorted(f["frames"].items())
    }


def track_index(f: Any) -> dict[str, tuple[int, int]]:
    """Where the tracks of an open store or shard lie: key → first row and number of rows."""
    if "tracks" not in f:
        return {}
    group = f["tracks"]
    columns = group["key"].asstr()[:].tolist(), group["first"][:].tolist(), group["length"][:].tolist()
    return {name: (first, length) for name, first, length in zip(*columns, strict=True)}


def read_track(f: Any, first: int, length: int) -> Track:
    """A track of an open store or shard."""
    rows = np.s_[first : first + length]
    return Track(f["tracks/box"][rows], f["tracks/confidence"][rows])


def _header(f: Any) -> Header:
    extra = {name: json.loads(f.attrs[name]) for name in ("trunk", "versions", "missing")}
    return Header(Recipe.from_json(f.attrs["recipe"]), complete=bool(f.attrs["complete"]), **extra)


def _sequences(f: Any) -> tuple[tuple[FrameSequence, ...], NDArray[np.int64]]:
    group = f["labels"]
    columns, owner = json.loads(group.attrs["columns"]), group["sequence"][:]
    named = group["named"][:]
    labels: dict[int, list[Label]] = {}
    for i, (frame, targets, box, position) in enumerate(
        zip(*(group[n][:].tolist() for n in ("frame", "targets", "box", "position")), strict=True)
    ):
        known = {c: v for c, v, there in zip(columns, targets, named[i], strict=True) if there}
        labels.setdefault(int(owner[i]), []).append(
            Label(
                frame,
                known,
                None if math.isnan(box[0]) else tuple(box),
                None if math.isnan(position[0]) else tuple(position),
            )
        )
    group = f["sequences"]
    text = [group[n].asstr()[:].tolist() for n in ("id", "split", "digest")]
    numbers = [group[n][:].tolist() for n in ("length", "fps", "width", "height")]
    cameras = group["camera"][:].tolist() if "camera" in group else [[math.nan] * 5] * len(text[0])
    sequences = tuple(
        FrameSequence(name, split, length, fps, (width, height), digest, tuple(labels.get(i, ())), _camera(camera))
        for i, (name, split, digest, length, fps, width, height, camera) in enumerate(
            zip(*text, *numbers, cameras, strict=True)
        )
    )
    return sequences, group["first"][:]


def _camera(values: list[float]) -> Camera | None:
    fx, fy, cx, cy, height = values
    return None if math.isnan(fx) else Camera(fx, fy, cx, cy, None if math.isnan(height) else height)
