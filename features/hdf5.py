"""How the store uses HDF5: opening, creating, columns, chunks and errors. The only module that imports h5py."""

from __future__ import annotations

import errno
import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import NO_LOCKS, SECONDS_PER_DAY
from features.errors import StoreError
from features.recipe import canonical_json

FORMAT_NAME, FORMAT_VERSION = "framebank", 2
# fixed-array chunk indices, which stay fast at millions of frames, and readable by every HDF5 since 1.10
LIBVER = ("v110", "v110")
MAX_CHUNK = 1 << 24  # bytes in a chunk of a table


class ErrorTolerantFile(io.FileIO):
    """A new file for HDF5 to write to; a write that the system refuses is recorded, for `check` to raise.

    HDF5 itself must not see the error: it crashes the process if its last flush fails, e.g. on a full disk.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
        self._path = path
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error that occurred, if any."""
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer; bytes that were never written are zeros."""
        view = memoryview(buffer).cast("B")
        count = super().readinto(view)
        view[count:] = bytes(len(view) - count)
        return len(view)

    def write(self, data: Any) -> int:
        """Write all of the data, or record the error."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self._error is None and done < len(view):
                done += super().write(view[done:])
        except OSError as e:
            self._error = e
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length, or record the error."""
        size = self.tell() if size is None else size
        try:
            super().truncate(size)
        except OSError as e:
            self._error = self._error or e
        return size


def create_file(disk: ErrorTolerantFile) -> Any:
    """Start a new store or shard."""
    f = h5py.File(disk, "w", libver=LIBVER)
    f.attrs["format"], f.attrs["version"] = FORMAT_NAME, FORMAT_VERSION
    return f


def open_file(path: Path) -> Any:
    """Open a store or shard; a StoreError if it is missing, damaged, of a later format, or links to other files."""
    if not path.is_file():
        raise StoreError(f"{path}: no such store", hint=f"framebank extract --config FILE --store {path}")
    with damage_as_store_error(path), ExitStack() as on_error:
        f = on_error.enter_context(_open_for_reading(path))
        if (name := f.attrs.get("format")) != FORMAT_NAME:
            raise StoreError(f"{path}: not a store", expected=f"format {FORMAT_NAME}", got=name, hint="--store FILE.h5")
        if (version := int(f.attrs["version"])) > FORMAT_VERSION:
            what, newest = f"{path}: written by a later version of framebank", f"format {FORMAT_VERSION} or earlier"
            raise StoreError(what, expected=newest, got=f"format {version}", hint="update framebank")
        _check_self_contained(f, path)
        on_error.pop_all()
    return f


def _open_for_reading(path: Path, locking: bool | None = None) -> Any:
    """Open an HDF5 file, without a lock where there are none; a StoreError if another program writes to it."""
    try:
        return h5py.File(path, "r", locking=locking)
    except OSError as e:
        if e.errno in NO_LOCKS and locking is None:
            return _open_for_reading(path, locking=False)
        if e.errno != errno.EAGAIN and "already open for write" not in str(e):
            raise
        hint = f"close it there; if no program has it open any more, run h5clear -s {path}"
        raise StoreError(f"{path}: another program has opened it for writing", hint=hint) from None


def is_open_elsewhere(path: Path) -> bool:
    """Whether a file is open for reading; where there are no locks to tell, whether it changed in the last day."""
    try:
        h5py.File(path, "r+").close()
    except OSError as e:
        if e.errno in NO_LOCKS:
            return time.time() - path.stat().st_mtime < SECONDS_PER_DAY
        return e.errno == errno.EAGAIN or "already open" in str(e) or "unable to lock" in str(e)
    return False


def _check_self_contained(group: Any, path: Path) -> None:
    """Refuse links and data outside the file: a store from elsewhere must not read the user's other files."""
    for name in group:
        link = group.get(name, getlink=True)
        child = group.get(name) if isinstance(link, h5py.HardLink) else None
        outside = isinstance(child, h5py.Dataset) and (child.external or child.is_virtual)
        if child is None or outside:
            raise StoreError(f"{path}: {group.name.rstrip('/')}/{name} points outside the file", hint="do not use it")
        if isinstance(child, h5py.Group):
            _check_self_contained(child, path)


def copy_chunks(source: Any, target: Any, source_row: int, target_row: int, count: int) -> None:
    """Copy the chunks of `count` frames as stored, checksums included."""
    inner = (0,) * (source.ndim - 1)
    for i in range(count):
        mask, chunk = source.id.read_direct_chunk((source_row + i, *inner))
        target.id.write_direct_chunk((target_row + i, *inner), chunk, filter_mask=mask)


def write_columns(group: Any, columns: Mapping[str, Any]) -> None:
    """Write one checksummed dataset per column; lists are text, arrays are numbers."""
    for name, values in columns.items():
        if isinstance(values, list):
            encoded = [text.encode() for text in values]
            longest = max(map(len, encoded), default=0)
            # variable lengths would be stored where HDF5 has no checksums
            write_array(group, name, np.array(encoded, h5py.string_dtype("utf-8", max(1, longest))))
        else:
            write_array(group, name, values)


def read_text(data: Any) -> list[str]:
    """Read a column of text."""
    texts: list[str] = data.asstr()[:].tolist()
    return texts


def write_array(group: Any, name: str, values: NDArray[Any]) -> None:
    """Write a checksummed dataset; one without entries has no bytes to check."""
    values = np.asarray(values)
    checked = values.ndim > 0 and values.size > 0
    chunks = None
    if checked:
        rows = max(1, MAX_CHUNK // (values.nbytes // len(values)))
        chunks = (min(len(values), rows), *values.shape[1:])
    elif values.ndim == 0:
        # a single number is kept in the dataset's header, which has a checksum of its own
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.COMPACT)
        layout.set_obj_track_times(False)
        space, kind = h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5t.py_create(values.dtype, logical=True)
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=layout, lcpl=links).write(space, space, values)
        return
    group.create_dataset(name, data=values, chunks=chunks, fletcher32=checked, track_times=False)


def write_json(group: Any, name: str, value: object) -> None:
    """Write a value as JSON, whatever its length."""
    write_array(group, name, np.frombuffer(canonical_json(value).encode(), np.uint8))


def read_json(data: Any) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(data[:].tobytes())


@contextmanager
def damage_as_store_error(path: Path) -> Iterator[None]:
    """Turn what is raised for damaged bytes into a StoreError that says how to repair them."""
    try:
        yield
    except PermissionError:
        raise
    # what h5py, numpy and json raise
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, OverflowError, MemoryError) as e:
        hint = f"framebank verify --store {path}, then repair; or move it away and run framebank extract again"
        if not h5py.is_hdf5(path):
            hint = "--store FILE.h5; or, if this was a store, move it away and run framebank extract again"
        raise StoreError(f"{path}: damaged, or not a store ({e})", hint=hint) from None
