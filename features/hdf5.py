"""How the store uses HDF5: opening, creating, columns, chunks and errors. The only module that imports h5py."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features.errors import StoreError

FORMAT_NAME, FORMAT_VERSION = "framebank", 1
THUMBNAIL_BLOCK = 1 << 16
WRITE_BACK = 1 << 22  # bytes: the disk begins with them while more is written, so that the wait at the end is short
# fixed-array chunk indices, which stay quick at millions of frames, and readable by every HDF5 since 1.10
LIBVER = ("v110", "v110")


class ErrorTolerantFile(io.RawIOBase):
    """A new file on the disk, as HDF5 sees it: a write the system refuses is remembered instead of passed on.

    HDF5 crashes the process when its last flush fails (a full disk); this way it never learns of it, `check` raises
    what the system said, and the file is thrown away.

    Raises:
        FileExistsError: an existing file is never opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b", buffering=0)
        self._path, self._at, self._end, self._begun = path, 0, 0, 0
        self._refusal: OSError | None = None

    def check(self) -> None:
        """Raise the first refusal, if there was one."""
        if self._refusal is not None:
            raise OSError(self._refusal.errno, self._refusal.strerror, str(self._path))

    def close(self) -> None:
        """Close the file; what was refused stays refused."""
        self._file.close()
        super().close()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to an offset from the start (0), from here (1) or from the end (2)."""
        self._at = offset + (0, self._at, self._end)[whence]
        return self._at

    def tell(self) -> int:
        """Where the next byte goes."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer; what was never written reads as zeros."""
        view = memoryview(buffer).cast("B")
        self._file.seek(self._at)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        """Write all of the data, or remember why not."""
        view = memoryview(data).cast("B")
        try:
            self._file.seek(self._at)
            done = 0
            while self._refusal is None and done < len(view):
                done += self._file.write(view[done:])
        except OSError as e:
            self._refusal = e
        self._at += len(view)
        self._end = max(self._end, self._at)
        if self._end - self._begun >= WRITE_BACK:
            self._begin()
        return len(view)

    def _begin(self) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice; Linux begins to write what is dirty, and drops only what is written
                os.posix_fadvise(self._file.fileno(), self._begun, self._end - self._begun, os.POSIX_FADV_DONTNEED)
        self._begun = self._end

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length."""
        size = self._at if size is None else size
        try:
            self._file.truncate(size)
        except OSError as e:
            self._refusal = self._refusal or e
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing is held back here."""


def create_file(disk: ErrorTolerantFile) -> Any:
    """A new HDF5 file on a disk."""
    return h5py.File(disk, "w", libver=LIBVER)


def open_file(path: Path) -> Any:
    """The file, opened for reading, once it is known to be a store of a format we read that stands on its own."""
    if path.is_dir():
        raise StoreError(f"{path}: a folder, not a store", hint="--store FILE.h5")
    if not path.is_file():
        raise StoreError(f"{path}: no such store", hint=f"make features CONFIG=… STORE={path}")
    hint = f"move it away and run make features CONFIG=… STORE={path}"
    try:
        f = h5py.File(path, "r")
    except OSError as e:
        if isinstance(e, PermissionError):
            raise
        raise StoreError(f"{path}: truncated, or no store at all ({e})", hint=hint) from None
    try:
        with reading(path, TABLE_FAULTS):
            _check(f, path, hint)
    except BaseException:
        f.close()
        raise
    return f


def _check(f: Any, path: Path, hint: str) -> None:
    if f.attrs.get("format") != FORMAT_NAME:
        raise StoreError(f"{path}: not a store", expected=f"format {FORMAT_NAME}", got=f.attrs.get("format"), hint=hint)
    version = int(f.attrs["version"])
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{path}: written by a later framebank",
            expected=f"format {FORMAT_VERSION} or earlier",
            got=f"format {version}",
            hint="update framebank",
        )
    _self_contained(f, path)


def _self_contained(group: Any, path: Path) -> None:
    """Refuse links and data outside the file: a store from a stranger must not read other files of ours."""
    for name in group:
        kind = group.get(name, getlink=True)
        child = group.get(name) if isinstance(kind, h5py.HardLink) else None
        outside = isinstance(child, h5py.Dataset) and (child.external or child.is_virtual)
        if child is None or outside:
            raise StoreError(f"{path}: {group.name.rstrip('/')}/{name} points outside the file", hint="don't use it")
        if isinstance(child, h5py.Group):
            _self_contained(child, path)


def create_stream(f: Any, name: str, frames: int, shape: tuple[int, ...], dtype: str, origin: str) -> Any:
    """A stream's dataset: first axis = frame, one frame a chunk, checksummed; `origin` in JSON."""
    data = f.create_dataset(
        f"frames/{name}",
        shape=(frames, *shape),
        dtype=dtype,
        chunks=(1, *shape),
        fletcher32=True,
        track_times=False,
    )
    if origin != "{}":  # the trunk's stream follows from the recipe alone
        data.attrs["origin"] = origin
    return data


def copy_chunks(source: Any, target: Any, start: int, at: int, count: int) -> None:
    """Copy `count` frames' chunks as they lie on the disk, checksums included."""
    inner = (0,) * (source.ndim - 1)
    for i in range(count):
        mask, chunk = source.id.read_direct_chunk((start + i, *inner))
        target.id.write_direct_chunk((at + i, *inner), chunk, filter_mask=mask)


def write_columns(group: Any, columns: Mapping[str, Any]) -> None:
    """One dataset a column; lists are text, arrays are numbers."""
    for name, values in columns.items():
        if isinstance(values, list):
            group.create_dataset(name, data=values, dtype=h5py.string_dtype(), track_times=False)
        else:
            group.create_dataset(name, data=values, track_times=False)


def write_array(group: Any, name: str, values: NDArray[Any]) -> None:
    """A dataset in one chunk, checksummed; a scalar as it is."""
    chunks = values.shape if values.ndim and values.size else None
    group.create_dataset(name, data=values, chunks=chunks, fletcher32=chunks is not None, track_times=False)


class ThumbnailWriter:
    """Appends bytes to `thumbnails/data` a block at a time, so that memory stays flat."""

    def __init__(self, f: Any) -> None:
        self._group = f.create_group("thumbnails")
        self._data = self._group.create_dataset(
            "data", (0,), "u1", maxshape=(None,), chunks=(THUMBNAIL_BLOCK,), fletcher32=True, track_times=False
        )
        self._pending: list[NDArray[np.uint8]] = []

    def write(self, data: NDArray[np.uint8]) -> None:
        self._pending.append(data)
        if sum(map(len, self._pending)) >= THUMBNAIL_BLOCK:
            self._flush()

    def finish(self, offsets: NDArray[np.int64]) -> None:
        self._flush()
        self._group.create_dataset("offset", data=offsets, fletcher32=True, track_times=False, chunks=offsets.shape)

    def _flush(self) -> None:
        if self._pending:
            data = np.concatenate(self._pending)
            size = self._data.shape[0]
            self._data.resize((size + len(data),))
            self._data[size:] = data
            self._pending = []


READ_FAULTS = (OSError, KeyError)
# what numpy, json and h5py raise on tables whose bytes are not what was written
TABLE_FAULTS = (*READ_FAULTS, ValueError, TypeError, RuntimeError, IndexError, OverflowError, MemoryError)


@contextmanager
def reading(path: Path, faults: tuple[type[Exception], ...] = READ_FAULTS) -> Iterator[None]:
    """What HDF5 cannot read is a damaged store, and repair mends it."""
    try:
        yield
    except PermissionError:
        raise
    except faults as e:
        raise StoreError(
            f"{path}: damaged ({e})", hint=f"python -m stage1_extract verify --store {path}, then repair"
        ) from None
