"""The store, format 2: an HDF5 file with the trunk's features and everything else that training needs.

It is packed, with the frames in the same file, or an index, with the frames in shards: HDF5 files in the folder
`STORE.shards`, each written once.

    attributes             format, version
    header                 JSON: recipe, trunk (facts about the frozen part), versions, complete, missing (id -> why)
    sequences/<column>     id, split, first, length, fps, width, height, digest, camera (fx fy cx cy
                           height horizon), region (left top right bottom) in a store of crops only; if any frames are
                           unevenly spaced, times (their seconds end to end), times_stop (a sequence's end in times)
    labels/<column>        sequence, frame, targets (labels, columns; NaN unknown), named (labels, columns: whether
                           the label has the column), box, position; attribute columns (JSON)
    tracks/<column>        key, first, length, a row per track; box (rows, 4), confidence (rows,), a row per frame
    top/weights/<number>   the unfrozen layers' weights; top/architecture: their Keras JSON
    bases/<stream>/<array> the principal components that a stream was computed with, and the maps' mean

    in a packed store and in shards
    frames/<stream>        (frames, ...) one frame per chunk; attribute origin (JSON), except the trunk's
    thumbnails/data        JPEGs end to end, bytes; thumbnails/offset (frames + 1,)

    in an index            shards/ and runs/, see `frame_files`

Shards have `header`, too, and `pieces/`: the frame ranges they contain. All datasets are checksummed (fletcher32).
Format 1 is a packed store with the header and the architecture in attributes, and tables without checksums; older files
lack camera, tracks and bases. Reading needs only numpy and h5py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.errors import DamagedStoreError, StoreError
from features.frame_files import ROWS_PER_CHECK, FrameFiles, unreadable_rows
from features.frame_ranges import StoredRange, full_range, parts_without
from features.hdf5 import damage_as_store_error, open_file
from features.recipe import json_digest
from features.store_schema import table_faults
from features.store_tables import (
    TopRecord,
    check_finite,
    first_not_finite,
    read_header,
    read_sequences,
    read_top,
    read_track,
    read_tracks,
    track_index,
)
from features.streams import APPEARANCE, THUMBNAILS
from features.tracks import Track, track_key_by_label


class Store:
    """A store opened for reading; use it in a `with` block.

    Attributes:
        sequences: its sequences, in order.
        first: (sequences,) row of each sequence's first frame.
        frames: number of frames.
        streams: name → shape, type and origin.
        partial_streams: the same, of derived streams that lack some frames, which `framebank derive` adds.
        damaged_parts: the damaged ones among the parts in `tolerated`, see `store_schema.CHECKS`, and what is wrong
            with each. Labels and tracks that are damaged are left out.

    Raises:
        StoreError: no such file, not a store, damaged, or of a later format.
    """

    def __init__(self, path: Path | str, tolerated: Collection[str] = ()) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        try:
            self.damaged_parts = dict(table_faults(self._file, self.path))
            for part, fault in self.damaged_parts.items():
                if part not in tolerated:
                    raise fault
            with damage_as_store_error(self.path):
                self.header = read_header(self._file)
                self.sequences, self.first = read_sequences(self._file, with_labels="labels" not in self.damaged_parts)
                self.frames = sum(s.length for s in self.sequences)
                self._track_rows = {} if "tracks" in self.damaged_parts else track_index(self._file)
                self.files = FrameFiles(self._file, self.path, self.frames, self.sequences)
            self.streams, self.partial_streams = self.files.streams, self.files.partial
            self.recipe, self.fingerprint = self.header.recipe, self.header.recipe.fingerprint
            self.versions, self.missing = self.header.versions, self.header.missing
            self.complete = self.header.complete
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
        """Close the file and its shards."""
        self.files.close()
        self._file.close()

    @cached_property
    def frames_digest(self) -> str:
        """SHA-256 over recipe and sequences: stores of equal digest have the same frames in the same rows."""
        return json_digest([self.fingerprint, [(s.id, s.length, s.digest) for s in self.sequences]])

    @property
    def is_packed(self) -> bool:
        """Whether the frames are in the store's own file, not in shards."""
        return self.files.sizes is None

    @property
    def size(self) -> int:
        """Bytes of the store's files."""
        return self.path.stat().st_size + sum(self.files.sizes or ())

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
            StoreError: no such stream, or a frame with a wrong checksum, NaN or infinity.
        """
        if stream not in self.streams:
            known = ", ".join(self.streams)
            raise StoreError(f"{self.path}: no stream {stream!r}", expected=f"one of {known}", got=stream)
        rows = np.asarray(rows, np.int64)
        values = self.files.read(stream, rows)
        if (at := first_not_finite(values)) is not None:
            sequence = int(self.first.searchsorted(rows[at], "right")) - 1
            frame = f"frame {rows[at] - self.first[sequence]} of {self.sequences[sequence].id}"
            hint = f"framebank verify --store {self.path}, then repair"
            raise DamagedStoreError(f"{self.path}: {stream}: NaN or infinity in {frame}", hint=hint)
        return values

    def basis(self, stream: str) -> dict[str, NDArray[Any]]:
        """Read the arrays a stream was computed with, such as principal components, by name; most have none."""
        if f"bases/{stream}" not in self._file:
            return {}
        with damage_as_store_error(self.path):
            arrays = {name: data[()] for name, data in self._file[f"bases/{stream}"].items()}
            for name, values in arrays.items():
                check_finite(values, f"bases/{stream}/{name}")
            return arrays

    def table(self, run: Path | str | None = None) -> Any:
        """List the labels as a pandas DataFrame, which the extra `tables` installs: a row per label in the store's
        order, and one for each sequence without labels.

        Columns: `sequence`, `label` (index in its sequence), `frame`, `time` (s in the sequence); the sequence's
        `split`, `frames`, `fps`, `width`, `height` (px); each target in its unit; if any are known, the box `left`,
        `top`, `right`, `bottom` (px), the position `x`, `y` (m), and `camera_fx`, … (px; `camera_height` in m).

        Args:
            run: the folder of a run on this store, whose predictions are added: `run_split`, the window's frames as
                `window_first`, `window_stride` and `window_length`, and for each of the run's targets `NAME_pred`,
                `NAME_low` and `NAME_high`. NaN where the run predicts nothing.

        Raises:
            ConfigError: pandas is not installed.
            DataError: the folder has no predictions.
            StoreError: the run predicts labels that the store does not have.
        """
        from features.table import join_predictions, label_table  # here, since they need pandas

        table = label_table(self.sequences)
        return table if run is None else join_predictions(table, Path(run))

    def thumbnail(self, row: int) -> bytes:
        """Read a frame's small JPEG."""
        return self.files.thumbnails(self.thumbnail_stream, row, 1)[0]

    @property
    def thumbnail_stream(self) -> str:
        """The stream with whose frames the thumbnails are stored."""
        return APPEARANCE if APPEARANCE in self.streams else next(iter(self.streams))

    def top(self) -> TopRecord | None:
        """Read the unfrozen layers with their pretrained weights; None if nothing is unfrozen."""
        with damage_as_store_error(self.path):
            return read_top(self._file)

    @property
    def track_keys(self) -> frozenset[str]:
        """Keys of the stored tracks, see `features.tracks.track_keys`."""
        return frozenset(self._track_rows)

    def tracks(self) -> dict[str, Track]:
        """Read all tracks, by their keys; none if they are damaged, and that is tolerated."""
        if "tracks" in self.damaged_parts:
            return {}
        with damage_as_store_error(self.path):
            return read_tracks(self._file)

    def track(self, sequence: int, label: int) -> Track | None:
        """Read the track of the vehicle that a label, by its index in its sequence, describes; None if it has none."""
        if sequence not in self._track_keys:
            self._track_keys[sequence] = track_key_by_label(self.sequences[sequence])
        rows = self._track_rows.get(self._track_keys[sequence].get(label, ""))
        if rows is None:
            return None
        if rows[1] != (length := self.sequences[sequence].length):
            what = f"{self.path}: the track of label {label} of {self.sequences[sequence].id}: damaged"
            raise DamagedStoreError(what, expected=f"{length} frames", got=rows[1])
        with damage_as_store_error(self.path):
            return read_track(self._file, *rows)

    def stored_ranges(self, stream: str, damaged_rows: Sequence[int] = ()) -> list[StoredRange]:
        """Return where every sequence's frames of a stream are, without those that are damaged or not stored."""
        stored, all_damaged = list[StoredRange](), np.sort(np.asarray(damaged_rows, np.int64))
        fingerprints = {stream: self.files.infos[stream].fingerprint}
        for sequence, first in zip(self.sequences, self.first.tolist(), strict=True):
            from_row, to_row = all_damaged.searchsorted([first, first + sequence.length]).tolist()
            whole = StoredRange(full_range(sequence), self.path, first, fingerprints)
            for part in parts_without(whole, (all_damaged[from_row:to_row] - first).tolist()):
                for offset, path, row, count in self.files.places(stream, part.row, len(part.frame_range)):
                    frame_range, start = part.frame_range, part.frame_range.start + offset
                    if count < len(frame_range):
                        frame_range = replace(frame_range, start=start, stop=start + count)
                    stored.append(StoredRange(frame_range, path, row, fingerprints))
        return stored

    def check_frames(self) -> Iterator[tuple[int, list[str]]]:
        """Read every chunk; yield each frame's row and its damaged streams (`thumbnails` among them), often none."""
        is_stored = {name: self.files.is_stored(name) for name in self.partial_streams}
        for start in range(0, self.frames, ROWS_PER_CHECK):
            rows = np.arange(start, min(start + ROWS_PER_CHECK, self.frames))
            damaged: list[list[str]] = [[] for _ in rows]
            for name in [*self.streams, *is_stored, THUMBNAILS]:
                stored = rows[is_stored[name][rows]] if name in is_stored else rows
                for row in unreadable_rows(stored, partial(self._is_readable, name)):
                    damaged[row - start].append(name)
            yield from zip(rows.tolist(), damaged, strict=True)

    def _is_readable(self, stream: str, rows: NDArray[np.int64]) -> bool:
        """Whether rows of a stream, or thumbnails, can be read; neighbours in case of the latter."""
        if stream != THUMBNAILS:
            return self.files.is_readable(stream, rows)
        is_known = THUMBNAILS in self.damaged_parts
        return is_known or self.files.has_thumbnails(self.thumbnail_stream, int(rows[0]), len(rows))
