"""The store, format 1: one HDF5 file with the trunk's features and everything else that training needs.

    attributes             format, version, recipe (JSON), fingerprint, complete, missing (JSON: id -> why),
                           versions (JSON), trunk (JSON: facts about the frozen part)
    frames/<stream>        (frames, ...) one frame per chunk, fletcher32; attribute origin (JSON), except the trunk's
    bases/<stream>/<array> what a derived stream was computed with: its principal components, and their mean
    thumbnails/data        JPEGs end to end, bytes; thumbnails/offset (frames + 1,)
    sequences/<column>     id, split, first, length, fps, width, height, digest, camera (fx fy cx cy
                           height horizon), region (left top right bottom) in a store of crops only; if any frames are
                           unevenly spaced, times (their seconds end to end), times_stop (a sequence's end in times)
    labels/<column>        sequence, frame, targets (labels, columns; NaN unknown), named (labels, columns: whether
                           the label has the column), box, position; attribute columns (JSON)
    tracks/<column>        key, first, length, a row per track; box (rows, 4), confidence (rows,), a row per frame
    top/weights/<number>   the unfrozen layers' weights; attribute architecture: their Keras JSON

Camera, tracks and bases were added later; older files lack them. Shards have the same form, with `pieces/` instead of
`sequences/` and `labels/`: the frame ranges they contain. Reading needs only numpy and h5py.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.errors import StoreError
from features.frame_ranges import FrameRange, StoredRange
from features.hdf5 import damage_as_store_error, open_file
from features.recipe import Recipe, json_digest
from features.sequences import Camera, FrameSequence, Label
from features.streams import THUMBNAILS
from features.tracks import Track, track_key_by_label


@dataclass(frozen=True)
class StreamInfo:
    """Shape and type of one frame's entry in a stream, and what determines its numbers.

    The trunk's stream is determined by the recipe, and has an empty `origin`.
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
    """The unfrozen layers, from the map at the cut to the backbone's output: Keras JSON and pretrained weights."""

    architecture: str
    weights: list[NDArray[Any]]


@dataclass(frozen=True)
class Header:
    """A store's attributes."""

    recipe: Recipe
    # facts about the frozen part: `parameters`, `cut` in words, `relative_error` per engine
    trunk: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # library name → version that wrote the file
    missing: Mapping[str, str] = field(default_factory=dict)  # sequence id → why it is not in the store
    complete: bool = True  # all sequences of the data set are stored, or the user chose to skip the missing ones


class Store:
    """A store opened for reading; use it in a `with` block.

    Attributes:
        sequences: its sequences, in order.
        first: (sequences,) row of each sequence's first frame.
        frames: number of frames.
        streams: name → shape, type and origin.

    Raises:
        StoreError: no such file, not a store, damaged, or of a later format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        try:
            with damage_as_store_error(self.path):
                attributes = self._file.attrs
                self.recipe, self.complete = Recipe.from_json(attributes["recipe"]), bool(attributes["complete"])
                self.versions, self.missing = json.loads(attributes["versions"]), json.loads(attributes["missing"])
                trunk = json.loads(attributes["trunk"])
                self.header = Header(self.recipe, trunk, self.versions, self.missing, self.complete)
                self.fingerprint = str(attributes["fingerprint"])
                self.sequences, self.first = _sequences(self._file)
                self.streams = stream_infos(self._file)
                self.frames = int(self._file["thumbnails/offset"].shape[0]) - 1
                self._offsets: NDArray[np.int64] = self._file["thumbnails/offset"][:]
                self._track_rows = track_index(self._file)
            self._index = {s.id: i for i, s in enumerate(self.sequences)}
            self._track_keys: dict[int, dict[int, str]] = {}  # index of a sequence → of its label → track's key
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def index(self, sequence_id: str) -> int:
        """Return the position of a sequence in `sequences`."""
        if sequence_id not in self._index:
            raise StoreError(f"{self.path}: no sequence {sequence_id!r}", hint=f"framebank info --store {self.path}")
        return self._index[sequence_id]

    @cached_property
    def frame_times(self) -> Floats:
        """(frames,) seconds at which each frame was taken, in its sequence."""
        return np.concatenate([s.frame_times for s in self.sequences])

    @cached_property
    def frame_intervals(self) -> Floats:
        """(frames,) seconds since the frame before, in its sequence; a first frame has the second one's."""
        return np.concatenate([s.frame_intervals for s in self.sequences])

    def read(self, stream: str, rows: NDArray[np.int64] | Sequence[int]) -> NDArray[Any]:
        """Read rows of a stream, in any order and with repeats: (len(rows), …) in the stored dtype.

        Cast the result if needed: letting HDF5 convert half to single precision while reading is 80 times slower.

        Raises:
            StoreError: no such stream, or a frame with a wrong checksum.
        """
        if stream not in self.streams:
            known = ", ".join(self.streams)
            raise StoreError(f"{self.path}: no stream {stream!r}", expected=f"one of {known}", got=stream)
        data = self._file["frames"][stream]
        rows = np.asarray(rows, np.int64)
        out = np.empty((len(rows), *data.shape[1:]), data.dtype)
        with damage_as_store_error(self.path):
            for at, start, count in consecutive_runs(rows):
                data.read_direct(out, np.s_[start : start + count], np.s_[at : at + count])
        return out

    def basis(self, stream: str) -> dict[str, NDArray[Any]]:
        """Read the arrays a derived stream was computed with, by name; most streams have none."""
        if f"bases/{stream}" not in self._file:
            return {}
        with damage_as_store_error(self.path):
            return {name: data[()] for name, data in self._file[f"bases/{stream}"].items()}

    def thumbnail(self, row: int) -> bytes:
        """Read a frame's small JPEG."""
        with damage_as_store_error(self.path):
            data: NDArray[np.uint8] = self._file["thumbnails/data"][self._offsets[row] : self._offsets[row + 1]]
        return data.tobytes()

    def top(self) -> TopRecord | None:
        """Read the unfrozen layers with their pretrained weights; None if nothing is unfrozen."""
        if "top" not in self._file:
            return None
        with damage_as_store_error(self.path):
            group = self._file["top"]
            weights = [group["weights"][k][()] for k in sorted(group["weights"], key=int)]
            return TopRecord(str(group.attrs["architecture"]), weights)

    @property
    def track_keys(self) -> frozenset[str]:
        """Keys of the stored tracks, see `features.tracks.track_keys`."""
        return frozenset(self._track_rows)

    def tracks(self) -> dict[str, Track]:
        """Read all tracks, by their keys."""
        with damage_as_store_error(self.path):
            return {key: read_track(self._file, *rows) for key, rows in self._track_rows.items()}

    def track(self, sequence: int, label: int) -> Track | None:
        """Read the track of the vehicle that a label, by its index in its sequence, describes; None if it has none."""
        if sequence not in self._track_keys:
            self._track_keys[sequence] = track_key_by_label(self.sequences[sequence])
        rows = self._track_rows.get(self._track_keys[sequence].get(label, ""))
        with damage_as_store_error(self.path):
            return None if rows is None else read_track(self._file, *rows)

    def stored_ranges(self, damaged_rows: Sequence[int] = ()) -> list[StoredRange]:
        """Return every sequence as ranges in this file, without the damaged rows."""
        stored = []
        streams = {name: info.fingerprint for name, info in self.streams.items()}
        for sequence, first in zip(self.sequences, self.first.tolist(), strict=True):
            damaged = sorted({r - first for r in damaged_rows if first <= r < first + sequence.length})
            for before, stop in itertools.pairwise([-1, *damaged, sequence.length]):
                if (start := before + 1) < stop:
                    frame_range = FrameRange(sequence.id, sequence.digest, start, stop)
                    stored.append(StoredRange(frame_range, self.path, first + start, streams))
        return stored

    def check_frames(self) -> Iterator[tuple[int, list[str]]]:
        """Read every chunk; yield each frame's row and its damaged streams (`thumbnails` among them), often none."""
        for row in range(self.frames):
            damaged = []
            for name in self.streams:
                try:
                    self._file["frames"][name][row]
                    if row == 0:  # a damaged basis counts as damage of the stream's first frame
                        self.basis(name)
                except (OSError, StoreError):
                    damaged.append(name)
            try:
                self._file["thumbnails/data"][self._offsets[row] : self._offsets[row + 1]]
            except OSError:
                damaged.append(THUMBNAILS)
            yield row, damaged


def consecutive_runs(rows: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Split rows into runs of consecutive ones: (index in `rows`, first row, count) each."""
    if len(rows) == 0:
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    counts = np.diff(starts, append=len(rows))
    return [(int(a), int(rows[a]), int(n)) for a, n in zip(starts, counts, strict=True)]


def stream_infos(f: Any) -> dict[str, StreamInfo]:
    """Return the streams of an open store or shard, by name."""
    return {
        name: StreamInfo(d.shape[1:], d.dtype.name, json.loads(d.attrs.get("origin", "{}")))
        for name, d in sorted(f["frames"].items())
    }


def track_index(f: Any) -> dict[str, tuple[int, int]]:
    """Return where the tracks of an open store or shard are: key → first row and number of rows."""
    if "tracks" not in f:
        return {}
    group = f["tracks"]
    columns = group["key"].asstr()[:].tolist(), group["first"][:].tolist(), group["length"][:].tolist()
    return {key: (first, length) for key, first, length in zip(*columns, strict=True)}


def read_track(f: Any, first: int, length: int) -> Track:
    """Read a track of an open store or shard."""
    rows = np.s_[first : first + length]
    return Track(f["tracks/box"][rows], f["tracks/confidence"][rows])


def _sequences(f: Any) -> tuple[tuple[FrameSequence, ...], NDArray[np.int64]]:
    labels = _labels(f["labels"])
    group = f["sequences"]
    text = [group[n].asstr()[:].tolist() for n in ("id", "split", "digest")]
    numbers = [group[n][:].tolist() for n in ("length", "fps", "width", "height")]
    cameras = group["camera"][:].tolist() if "camera" in group else [[math.nan] * 6] * len(text[0])
    regions = map(tuple, group["region"][:].tolist()) if "region" in group else [None] * len(text[0])
    rows = zip(*text, *numbers, map(_camera, cameras), regions, _times(group), strict=True)
    sequences = tuple(
        FrameSequence(name, split, length, fps, (width, height), digest, tuple(labels.get(i, ())), *optional)
        for i, (name, split, digest, length, fps, width, height, *optional) in enumerate(rows)
    )
    return sequences, group["first"][:]


def _times(group: Any) -> list[tuple[float, ...] | None]:
    """Read each sequence's times; None where its frames are evenly spaced."""
    if "times" not in group:
        return [None] * len(group["id"])
    times, stops = group["times"][:].tolist(), group["times_stop"][:].tolist()
    return [tuple(times[a:b]) or None for a, b in itertools.pairwise([0, *stops])]


def _labels(group: Any) -> dict[int, list[Label]]:
    """Read the labels, by the index of their sequence."""
    names = json.loads(group.attrs["columns"])
    columns = [group[n][:].tolist() for n in ("sequence", "frame", "targets", "named", "box", "position")]
    labels: dict[int, list[Label]] = {}
    for sequence, frame, targets, named, box, position in zip(*columns, strict=True):
        values = {name: v for name, v, has_column in zip(names, targets, named, strict=True) if has_column}
        known_box = None if math.isnan(box[0]) else tuple(box)
        known_position = None if math.isnan(position[0]) else tuple(position)
        labels.setdefault(sequence, []).append(Label(frame, values, known_box, known_position))
    return labels


def _camera(values: list[float]) -> Camera | None:
    fx, fy, cx, cy, *road = values  # older stores have no horizon
    return None if math.isnan(fx) else Camera(fx, fy, cx, cy, *(None if math.isnan(v) else v for v in road))
