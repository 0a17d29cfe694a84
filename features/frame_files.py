"""Where the frames of a store are: in its own file, or in shards, of which each holds some rows of one or more streams.

shards/name, size      the files in the store's folder of shards, and their lengths in bytes
runs/<stream>/<column> start, shard, shard_row: from `start` on, the store's rows are the shard's from `shard_row`
                       on; attribute info (JSON): shape, dtype and origin of the stream
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.strict_json import parse_json
from features.errors import DamagedStoreError, StoreError
from features.hdf5 import (
    create_group,
    damage_as_store_error,
    open_file,
    read_attribute,
    read_text,
    write_attribute,
    write_columns,
)
from features.recipe import canonical_json
from features.sequences import FrameSequence
from features.store_schema import check_pieces, check_stream, check_thumbnails
from features.store_tables import StreamInfo, first_not_finite

MAX_OPEN_SHARDS = 64  # per store
ROWS_PER_CHECK = 32  # read at once to find those that cannot be read

StoredRun = tuple[Path, int, int, int]  # file, its first row, the store's first row, count


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive rows of a stream that are consecutive in one file, too."""

    start: NDArray[np.int64]  # (n,) first row in the store, ascending from 0
    file: NDArray[np.int64]  # (n,) index of the file; −1: not stored
    file_row: NDArray[np.int64]  # (n,) first row in that file
    frames: int  # of the stream

    def places(self, row: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Where `count` rows from `row` on are: (offset from `row`, file, its row, count) for each stored part."""
        done = 0
        run = int(self.start.searchsorted(row, "right")) - 1
        while done < count:
            into_run = row + done - int(self.start[run])
            stop = int(self.start[run + 1]) if run + 1 < len(self.start) else self.frames
            part = min(count - done, stop - row - done)
            if self.file[run] >= 0:
                yield done, int(self.file[run]), int(self.file_row[run]) + into_run, part
            done += part
            run += 1

    def last_row(self, file: int) -> int | None:
        """The last row of a file that is in one of the runs; None if none is."""
        here = self.file == file
        if not here.any():
            return None
        counts = np.diff(self.start, append=self.frames)
        return int((self.file_row + counts)[here].max()) - 1


class FrameFiles:
    """The files that hold a store's frames; a store of a single file is its own only one.

    Args:
        sequences: the store's, by which a shard is told from another one under its name; none: it is not.

    Attributes:
        streams: name → shape, type and origin.
        partial: the same, of derived streams that lack some frames.
        paths: of the files.
        sizes: of the files in bytes; None for a store of a single file.
    """

    def __init__(self, f: Any, path: Path, frames: int, sequences: Sequence[FrameSequence] = ()) -> None:
        self._path, self._frames, self._lock = path, frames, RLock()  # Keras reads batches in several threads
        self._sequences, self._first = sequences, np.cumsum([0, *(s.length for s in sequences)])
        self._opened: OrderedDict[int, Any] = OrderedDict()
        self.sizes: list[int] | None = None
        if "shards" in f:
            folder = shard_folder(path)
            self.paths = [folder / name for name in shard_names(f, path)]
            self.sizes = f["shards/size"][:].tolist()
            self.streams: dict[str, StreamInfo] = {}
            self.partial: dict[str, StreamInfo] = {}
            self._runs: dict[str, Runs] = {}
            for name, group in sorted(f["runs"].items()):
                info = parse_json(read_attribute(group, "info"))
                start, shard, shard_row = (group[column][:] for column in ("start", "shard", "shard_row"))
                streams = self.partial if (shard < 0).any() else self.streams
                streams[name] = StreamInfo(tuple(info["shape"]), info["dtype"], info["origin"])
                self._runs[name] = Runs(start, shard, shard_row, frames)
        else:
            self.paths = [path]
            self.streams, self.partial, zero = stream_infos(f), {}, np.zeros(1, np.int64)
            self._runs = dict.fromkeys(self.streams, Runs(zero, zero, zero, frames))
            self._own_file = f

    def close(self) -> None:
        """Close the shards that are open."""
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()

    def places(self, stream: str, row: int, count: int) -> Iterator[tuple[int, Path, int, int]]:
        """Where `count` rows of a stream are: (offset from `row`, file, its row, count) for each stored part."""
        for offset, file, file_row, part in self._runs[stream].places(row, count):
            yield offset, self.paths[file], file_row, part

    def read(self, stream: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Read rows of a stream in any order; StoreError for a shard that is missing or damaged."""
        info = self.infos[stream]
        out = np.empty((len(rows), *info.shape), info.dtype)
        with self._lock:
            for at, start, count in consecutive_runs(rows):
                for offset, file, file_row, part in self._runs[stream].places(start, count):
                    with damage_as_store_error(self.paths[file]):
                        data = self._open(file)["frames"][stream]
                        into = at + offset
                        data.read_direct(out, np.s_[file_row : file_row + part], np.s_[into : into + part])
        return out

    def thumbnails(self, stream: str, row: int, count: int) -> list[bytes]:
        """Read the JPEGs that are stored with `count` rows of a stream, of which all are stored."""
        jpegs: list[bytes] = []
        with self._lock:
            for _, file, file_row, part in self._runs[stream].places(row, count):
                with damage_as_store_error(self.paths[file]):
                    group = self._open(file)["thumbnails"]
                    offsets = group["offset"][file_row : file_row + part + 1]
                    data = group["data"][offsets[0] : offsets[-1]].tobytes()
                    ends = (offsets - offsets[0]).tolist()
                    jpegs += [data[start:stop] for start, stop in itertools.pairwise(ends)]
        return jpegs

    def is_readable(self, stream: str, rows: NDArray[np.int64]) -> bool:
        """Whether rows of a stream can be read, and are finite."""
        try:
            return first_not_finite(self.read(stream, rows)) is None
        except DamagedStoreError:
            return False

    def has_thumbnails(self, stream: str, row: int, count: int) -> bool:
        """Whether the JPEGs of rows can be read."""
        try:
            self.thumbnails(stream, row, count)
        except DamagedStoreError:
            return False
        return True

    def damaged_rows(self, stream: str) -> set[int]:
        """The rows of a stream that cannot be read."""
        return set(unreadable_rows(np.arange(self._frames), lambda rows: self.is_readable(stream, rows)))

    def damaged_thumbnails(self, stream: str) -> set[int]:
        """The rows whose thumbnails cannot be read."""
        rows = np.arange(self._frames)
        return set(unreadable_rows(rows, lambda rows: self.has_thumbnails(stream, int(rows[0]), len(rows))))

    @property
    def infos(self) -> dict[str, StreamInfo]:
        """All streams, partial ones too."""
        return self.streams | self.partial

    def is_stored(self, stream: str) -> NDArray[np.bool_]:
        """Whether each frame of a stream is stored: (frames,)."""
        return self.files_of(stream) >= 0

    def files_of(self, stream: str) -> NDArray[np.int64]:
        """Index of the file that holds each frame of a stream: (frames,); −1: none."""
        runs = self._runs[stream]
        return np.repeat(runs.file, np.diff(runs.start, append=runs.frames))

    def unusable_files(self) -> dict[int, str]:
        """What is wrong with each shard that is missing or cannot be opened, by the file's index."""
        faults: dict[int, str] = {}
        for file in range(len(self.paths)):
            try:
                with self._lock:
                    self._open(file)
            except StoreError as e:
                faults[file] = f"{e.what}; got {e.got}" if e.got else e.what
        return faults

    def _open(self, file: int) -> Any:
        if self.sizes is None:
            return self._own_file
        if file in self._opened:
            self._opened.move_to_end(file)
            return self._opened[file]
        path = self.paths[file]
        if not path.is_file():
            hint = f"copy the folder {path.parent.name} too; or framebank repair --config FILE --store {self._path}"
            raise DamagedStoreError(f"{path}: this shard of {self._path.name} is missing", hint=hint)
        if (size := path.stat().st_size) != self.sizes[file]:
            hint = f"framebank repair --config FILE --store {self._path}"
            raise DamagedStoreError(
                f"{path}: damaged", expected=f"{self.sizes[file]:,} bytes", got=f"{size:,}", hint=hint
            )
        if len(self._opened) >= MAX_OPEN_SHARDS:
            self._opened.popitem(last=False)[1].close()
        opened = open_file(path)
        try:
            with damage_as_store_error(path):
                self._check_shard(opened, file)
        except BaseException:
            opened.close()
            raise
        self._opened[file] = opened
        return opened

    def _check_shard(self, f: Any, file: int) -> None:
        """Check that a shard has the streams that the index says, in the same shape and type, and the rows of each."""
        for name, runs in self._runs.items():
            if (last_row := runs.last_row(file)) is not None:
                info, data = self.infos[name], f["frames"][name]
                check_stream(data)
                if data.shape[1:] != info.shape or data.dtype.name != info.dtype or len(data) <= last_row:
                    expected = f"more than {last_row} frames {info.shape} {info.dtype}"
                    got, what = f"{data.shape} {data.dtype.name}", f"{self.paths[file]}: {name}: not this store's"
                    raise DamagedStoreError(what, expected=expected, got=got)
                check_thumbnails(f, len(data), required=False)
        if self._sequences and "pieces" in f:  # a packed store that became a shard has none
            self._check_pieces(f, self.paths[file], file)

    def _check_pieces(self, f: Any, path: Path, file: int) -> None:
        """Check that a shard has the frames that the index says, not those of another one under its name."""
        check_pieces(f)
        names, digests = (read_text(f["pieces"][column]) for column in ("sequence", "digest"))
        starts, stops, rows = (f["pieces"][column][:] for column in ("start", "stop", "row"))
        for stream, runs in self._runs.items():
            counts = np.diff(runs.start, append=self._frames)
            for run in np.flatnonzero(runs.file == file).tolist():
                file_row, moved = int(runs.file_row[run]), int(runs.start[run] - runs.file_row[run])
                pieces = rows.searchsorted([file_row, file_row + int(counts[run]) - 1], "right").tolist()
                for piece in range(max(0, pieces[0] - 1), pieces[1]):
                    row = max(file_row, int(rows[piece]))
                    frame_there = int(starts[piece]) + row - int(rows[piece])
                    if frame_there >= stops[piece]:
                        continue  # the run begins behind this range
                    i = int(self._first.searchsorted(row + moved, "right")) - 1
                    sequence, frame = self._sequences[i], row + moved - int(self._first[i])
                    is_other = names[piece] != sequence.id and digests[piece] != sequence.digest
                    if is_other or frame != frame_there:
                        what = f"{path}: {stream}: another shard under this one's name"
                        expected, got = f"{sequence.id} frame {frame}", f"{names[piece]} frame {frame_there}"
                        raise DamagedStoreError(what, expected=expected, got=got)


def shard_folder(store: Path) -> Path:
    """Return the folder beside a store in which its shards are."""
    return store.with_name(f"{store.name}.shards")


def shard_names(f: Any, path: Path) -> list[str]:
    """Return the names of an open store's shards; a StoreError if one leads out of their folder."""
    names = read_text(f["shards/name"]) if "shards" in f else []
    for name in names:
        if not name.endswith(".h5") or Path(name).name != name or "\\" in name:
            raise StoreError(f"{path}: shard {name!r} is outside the store's folder", hint="do not use it")
    return names


def consecutive_runs(rows: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Split rows into runs of consecutive ones: (index in `rows`, first row, count) each."""
    if len(rows) == 0:
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    counts = np.diff(starts, append=len(rows))
    return [(int(a), int(rows[a]), int(n)) for a, n in zip(starts, counts, strict=True)]


def unreadable_rows(rows: NDArray[np.int64], is_readable: Callable[[NDArray[np.int64]], bool]) -> Iterator[int]:
    """Yield the rows that cannot be read; `is_readable` gets blocks of them, and each row of a block that is not."""
    for start in range(0, len(rows), ROWS_PER_CHECK):
        block = rows[start : start + ROWS_PER_CHECK]
        if not is_readable(block):
            yield from (int(row) for row in block if not is_readable(np.array([row])))


def stream_infos(f: Any) -> dict[str, StreamInfo]:
    """Return the streams whose frames are in an open file, by name."""
    return {
        name: StreamInfo(d.shape[1:], d.dtype.name, parse_json(read_attribute(d, "origin") or "{}"))
        for name, d in sorted(f["frames"].items())
    }


def write_runs(
    f: Any, shards: Mapping[Path, int], frames: int, runs: Mapping[str, tuple[StreamInfo, Sequence[StoredRun]]]
) -> None:
    """Write where the frames are.

    Args:
        shards: each file and its length in bytes.
        frames: number of rows of the store.
        runs: by stream, its description, and (file, its row, the store's row, count) of each run, in order; rows
            between them are not stored.
    """
    index = {path: i for i, path in enumerate(shards)}
    columns = {"name": [path.name for path in shards], "size": np.array(list(shards.values()), np.int64)}
    write_columns(create_group(f, "shards"), columns)
    for name, (info, places) in runs.items():
        group = create_group(f, f"runs/{name}")
        value = {"shape": info.shape, "dtype": info.dtype, "origin": dict(info.origin)}
        write_attribute(group, "info", canonical_json(value))
        rows = list(_with_gaps(places, index, frames))
        table = np.array(rows, np.int64).reshape(-1, 3)
        write_columns(group, dict(zip(("start", "shard", "shard_row"), table.T.copy(), strict=True)))


def _with_gaps(places: Sequence[StoredRun], index: Mapping[Path, int], frames: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, shard and its row of each run, and of each gap."""
    stop = 0
    for path, source_row, row, count in places:
        if row > stop:
            yield stop, -1, 0
        yield row, index[path], source_row
        stop = row + count
    if stop < frames:
        yield stop, -1, 0
