"""How the store uses HDF5: opening, creating, columns, chunks and errors. The only module that imports h5py."""

from __future__ import annotations

import ctypes
import errno
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import NO_LOCKS
from features._common.leftovers import SECONDS_PER_DAY
from features._common.strict_json import parse_json
from features.bit_errors import corrected_chunk
from features.errors import DamagedStoreError, DataError, StoreError, raise_refusal
from features.limits import MB
from features.recipe import canonical_json

FORMAT_NAME, FORMAT_VERSION = "framebank", 2
# fixed-array chunk indices, which stay fast at millions of frames, and readable by every HDF5 since 1.10
LIBVER = ("v110", "v110")
MAX_LINKS = 65535  # in a group's header, the most that HDF5 admits
MAX_CHUNK = 1 << 24  # bytes in a chunk of a table
MAX_OBJECTS = 10_000  # groups and datasets in a file; a store has a few dozen, and one for each weight of the top
MAX_ARRAYS = 1_000_000  # groups and datasets in a file of another tool, which may have one for each sequence
MAX_TEXT = 1 << 28  # bytes of text of variable length read at once
DAMAGE = (  # what h5py, numpy and json raise for it
    *(OSError, LookupError, ValueError, TypeError, RuntimeError),
    *(ArithmeticError, AttributeError, MemoryError),
)
FOREIGN = "use another copy, or move it away and run framebank extract again"


class ErrorTolerantFile(io.FileIO):
    """A new file for HDF5 to write to; a write that the system refuses is recorded, for `check` to raise.

    HDF5 itself must not see the error: it crashes the process if its last flush fails, e.g. on a full disk.
    """

    def __init__(self, path: Path, check_interrupt: Callable[[], None] = lambda: None) -> None:
        """Create the file; `check` also calls `check_interrupt`, since Ctrl-C must not be raised in a callback."""
        super().__init__(path, "x+")
        self._path, self._check_interrupt = path, check_interrupt
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error that occurred, if any."""
        self._check_interrupt()
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))

    def readinto(self, buffer: Any) -> int:
        """Fill the whole buffer; bytes that were never written are zeros."""
        view = memoryview(buffer).cast("B")
        try:
            count = super().readinto(view)
        except OSError as e:
            self._error, count = self._error or e, 0
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
    write_attribute(f, "format", FORMAT_NAME)
    f.attrs["version"] = FORMAT_VERSION
    return f


def open_file(path: Path) -> Any:
    """Open a store or shard; a StoreError if it is missing, damaged, of a later format, or links to other files."""
    if not path.is_file():
        raise StoreError(f"{path}: no such store", hint=f"framebank extract --config FILE --store {path}")
    with damage_as_store_error(path), ExitStack() as on_error:
        f = on_error.enter_context(_open_for_reading(path))
        if (name := read_attribute(f, "format")) != FORMAT_NAME:
            raise StoreError(f"{path}: not a store", expected=f"format {FORMAT_NAME}", got=name, hint="--store FILE.h5")
        if (version := int(read_attribute(f, "version"))) > FORMAT_VERSION:
            what, newest = f"{path}: written by a later version of framebank", f"format {FORMAT_VERSION} or earlier"
            raise StoreError(what, expected=newest, got=f"format {version}", hint="update framebank")
        _check_objects(f, path)
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


@contextmanager
def open_arrays(path: Path) -> Iterator[dict[str, Any]]:
    """Open any HDF5 file and yield its datasets of numbers by name; a DataError for one that is none, or is unsafe.

    No link to another file or object is followed, so that a file from elsewhere cannot read the user's others.
    """
    hint = "write the features again, into a plain HDF5 file"
    try:
        with h5py.File(path, "r") as f:
            arrays, groups, seen = dict[str, Any](), [f], set[int]()
            while groups:
                group = groups.pop()
                if len(seen) + len(group) > MAX_ARRAYS:
                    raise DataError(f"{path}: too many datasets", expected=f"at most {MAX_ARRAYS:,}", hint=hint)
                for name in group:
                    link = group.id.links.get_info(name.encode("utf-8", "surrogateescape"))
                    if link.type != h5py.h5l.TYPE_HARD or link.u in seen:  # groups in themselves have no end
                        raise DataError(f"{path}: {group.name}/{name} is a link, which is not followed", hint=hint)
                    seen.add(link.u)
                    child = group[name]
                    if isinstance(child, h5py.Group):
                        groups.append(child)
                    elif isinstance(child, h5py.Dataset) and child.dtype.kind in "fiu" and child.ndim:
                        if child.external or child.is_virtual:
                            raise DataError(f"{path}: {child.name} points outside the file", hint=hint)
                        arrays[child.name.lstrip("/")] = child
            yield arrays
    except DAMAGE as e:
        raise DataError(f"{path}: not an HDF5 file, or damaged ({e})", hint=hint) from None


def _check_objects(f: Any, path: Path) -> None:
    """Check every group and dataset of a file before any is read.

    A store from elsewhere must not read the user's other files through a link, nor exhaust the memory: all datasets
    together are at most as large as the file, and every object has a single name, so that there are no cycles.
    """
    seen: set[int] = set()
    remaining = path.stat().st_size
    groups = [f]
    while groups:
        group = groups.pop()
        if len(seen) + len(group) > MAX_OBJECTS:
            raise DamagedStoreError(f"{path}: too many objects", expected=f"at most {MAX_OBJECTS:,}", hint=FOREIGN)
        for name in group:
            where = f"{path}: {group.name.rstrip('/')}/{name}"
            link = group.id.links.get_info(name.encode("utf-8", "surrogateescape"))
            child = group[name] if link.type == h5py.h5l.TYPE_HARD else None
            if child is None or (isinstance(child, h5py.Dataset) and (child.external or child.is_virtual)):
                raise StoreError(f"{where} points outside the file", hint="do not use it")
            if link.u in seen:
                raise DamagedStoreError(f"{where} is a second name of another part", hint=FOREIGN)
            seen.add(link.u)
            if isinstance(child, h5py.Group):
                groups.append(child)
                continue
            if not isinstance(child, h5py.Dataset) or _type_name(child) is None:
                raise DamagedStoreError(f"{where} is neither numbers nor text", hint=FOREIGN)
            if set(child._filters) - {"fletcher32", "shuffle"}:
                raise DamagedStoreError(f"{where} is compressed, which no store is", hint="h5repack -f NONE OLD NEW")
            remaining -= (child.size or 0) * child.id.get_type().get_size()
            if remaining < 0:
                raise DamagedStoreError(f"{where} declares more numbers than the file can hold", hint=FOREIGN)


def _type_name(data: Any) -> str | None:
    """Return whether a dataset has text, numbers or truth values; None for anything else."""
    kind = data.id.get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        return "text"
    if isinstance(kind, h5py.h5t.TypeEnumID):
        return "bool" if data.dtype == bool else None
    is_number = isinstance(kind, (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)) and kind.get_size() <= 8
    return data.dtype.name if is_number else None


def looks_like_a_store(path: Path) -> bool:
    """Whether a file that cannot be opened may have been a store: it has HDF5's signature, or the format's name."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    return start.startswith(b"\x89HDF\r\n\x1a\n") or FORMAT_NAME.encode() in start


def unchecked_values(data: Any) -> tuple[NDArray[Any], bool]:
    """Read a table's dataset whose checksums may be wrong; also return whether its numbers are certain all the same."""
    if data.chunks is None or not data.fletcher32:
        return np.asarray(data[()]), False
    chunks, is_certain = [], True
    for row in range(0, len(data), data.chunks[0]):
        _, raw = data.id.read_direct_chunk((row, *[0] * (data.ndim - 1)))
        corrected = corrected_chunk(raw)
        is_certain &= corrected is not None
        content = raw[:-4] if corrected is None else corrected
        chunks.append(np.frombuffer(content, data.dtype).reshape(data.chunks))
    return np.concatenate(chunks)[: len(data)], is_certain


def copy_chunks(source: Any, target: Any, source_row: int, target_row: int, count: int) -> None:
    """Copy the chunks of `count` frames as stored, checksums included."""
    inner = (0,) * (source.ndim - 1)
    for i in range(count):
        mask, chunk = source.id.read_direct_chunk((source_row + i, *inner))
        target.id.write_direct_chunk((target_row + i, *inner), chunk, filter_mask=mask)


def create_group(parent: Any, path: str) -> Any:
    """Return the group at a path, creating what is missing of it.

    All its names are kept in its header. HDF5 would move more than eight of them into a heap, and HDF5 1.14 crashes the
    process when a bit of that is wrong.
    """
    for name in path.split("/"):
        if name not in parent:
            layout = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
            if set_limit := _link_limit_setter():
                set_limit(layout.id, MAX_LINKS, 0)
            h5py.h5g.create(parent.id, name.encode(), gcpl=layout)
        parent = parent[name]
    return parent


@cache
def _link_limit_setter() -> Any:
    """HDF5's function for it, which h5py does not offer; None where it cannot be reached."""
    try:
        function = ctypes.CDLL(h5py.h5p.__file__).H5Pset_link_phase_change
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
    return function


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
    if data.ndim != 1:
        raise ValueError(f"{data.name} has the shape {data.shape}, not a column's")
    if not data.id.get_type().is_variable_str():
        fixed: list[str] = data.asstr()[:].tolist()
        return fixed
    # in format 1; many rows may refer to the same long text, so that only what is read shows how long they are
    size = Path(data.file.filename).stat().st_size
    step, texts = max(1, min(1 << 16, MAX_TEXT // size)), list[str]()
    for start in range(0, len(data), step):
        texts += data.asstr()[start : start + step].tolist()
        if sum(map(len, texts[start:])) > size or len(texts) > size:
            raise ValueError(f"{data.name} has more text than the file can hold")
    return texts


def write_attribute(node: Any, name: str, text: str) -> None:
    """Write text where HDF5 has a checksum for it, which it has not for text of variable length."""
    encoded = text.encode()
    node.attrs.create(name, encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))


def read_attribute(node: Any, name: str) -> Any:
    """Read a single value of an attribute; text as str; None if there is no such attribute."""
    if name not in node.attrs:
        return None
    if node.attrs.get_id(name).shape != ():
        raise ValueError(f"attribute {name} is not a single value")
    value = node.attrs[name]
    return value.decode() if isinstance(value, bytes) else value


def write_array(group: Any, name: str, values: NDArray[Any]) -> None:
    """Write a checksummed dataset; one without entries has no bytes to check."""
    folder, _, name = name.rpartition("/")
    group = create_group(group, folder) if folder else group
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
        h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=layout).write(space, space, values)
        return
    group.create_dataset(name, data=values, chunks=chunks, fletcher32=checked, track_times=False)


def write_json(group: Any, name: str, value: object) -> None:
    """Write a value as JSON, whatever its length."""
    write_array(group, name, np.frombuffer(canonical_json(value).encode(), np.uint8))


def read_json(data: Any) -> Any:
    """Read what `write_json` wrote."""
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"{data.name} is not JSON")
    return parse_json(data[:].tobytes())


@contextmanager
def damage_as_store_error(path: Path) -> Iterator[None]:
    """Turn what is raised for damaged bytes into a StoreError that says how to repair them."""
    try:
        yield
    except DAMAGE as e:
        raise_refusal(e, path)
        hint = f"framebank verify --store {path}, then repair; or move it away and run framebank extract again"
        try:
            is_hdf5 = h5py.is_hdf5(path)
        except OSError as error:
            raise_refusal(error, path)
            is_hdf5 = False
        if not is_hdf5:
            hint = "--store FILE.h5; or, if this was a store, move it away and run framebank extract again"
        raise DamagedStoreError(f"{path}: damaged, or not a store ({e})", hint=hint) from None


def check_weights(file: Path | IO[bytes], size: int) -> None:
    """Raise a ValueError if an HDF5 file of `size` bytes links elsewhere, or declares far more than it holds."""
    limit, declared = 2 * size + 64 * MB, 0
    with h5py.File(file, "r") as f:

        def find_fault(name: str, link: Any) -> str | None:
            nonlocal declared
            if not isinstance(link, h5py.HardLink):
                return f"{name[:80]} links to somewhere else"
            item = f[name]
            if isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    return f"{name[:80]} is in another file"
                declared += item.nbytes
            return f"weights of more than {limit:,} bytes in a file of {size:,}" if declared > limit else None

        if fault := f.visititems_links(find_fault):
            raise ValueError(fault)
