"""Folders and zip archives behind one interface, which several threads may use at once."""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, overload

from features._common.bounded_file import check_size, read_bounded
from features._common.plain_text import one_line
from features._common.zip_limits import HINT, ZIP_ERRORS, open_zip
from features.errors import DataError
from features.limits import FILE_BYTES, NESTING

# bytes to decompress at a time: a bound for what they become, which bzip2 can make 45,000 times as much
PIECE, PIECE_OF_OTHERS = 1 << 20, 1 << 12
LONG_NUMBER = 100  # digits
LONGEST_PATH = 1024  # characters in an archive


class ZipPath:
    """A file or folder in a zip. Unlike `zipfile.Path` it lists a folder directly, and several threads may read."""

    def __init__(self, archive: _Archive, inner_path: str) -> None:
        self._archive, self._inner_path = archive, inner_path

    def __str__(self) -> str:
        return f"{self._archive.path}/{self._inner_path}" if self._inner_path else str(self._archive.path)

    @property
    def name(self) -> str:
        return PurePosixPath(self._inner_path).name or self._archive.path.name

    def iterdir(self) -> Iterator[ZipPath]:
        return (self.joinpath(name) for name in self._archive.folders[self._inner_path])

    def joinpath(self, name: str, /) -> ZipPath:
        return ZipPath(self._archive, f"{self._inner_path}/{name}" if self._inner_path else name)

    def is_dir(self) -> bool:
        return self._inner_path in self._archive.folders

    def is_file(self) -> bool:
        return self._inner_path in self._archive.files

    def archive_stat(self) -> os.stat_result:
        """The state of the archive that the file is in."""
        return self._archive.path.stat()

    def read_bytes(self, limit: int = FILE_BYTES) -> bytes:
        return self._archive.read(self._inner_path, limit)


ReadablePath = Path | ZipPath  # a file or folder, on disk or in an archive; `str()` gives the path to show in errors


@dataclass(frozen=True)
class FolderFiles(Sequence[Path]):
    """Files of one folder that are kept as names, which may be shared: a tenth of the memory that paths take."""

    folder: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> FolderFiles: ...
    def __getitem__(self, index: int | slice) -> Path | FolderFiles:
        if isinstance(index, slice):
            return FolderFiles(self.folder, self.names[index])
        return Path(self.folder, self.names[index])


def in_little_memory(files: tuple[ReadablePath, ...]) -> Sequence[ReadablePath]:
    """The same files as names of their folder, if all are in one that is not in an archive."""
    if not files or isinstance(files[0], ZipPath):
        return files
    folder, names = str(files[0].parent), tuple(sys.intern(file.name) for file in files)
    prefix = os.path.join(folder, "")  # noqa: PTH118  # a path has no separator at its end
    same_folder = all(str(file) == prefix + name for file, name in zip(files, names, strict=True))
    return FolderFiles(folder, names) if same_folder else files


class _Archive:
    """An open zip: its folders (path → names of their entries) and its files (path → entry)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: dict[str, dict[str, None]] = {"": {}}
        self.files: dict[str, zipfile.ZipInfo] = {}
        self._lock = threading.Lock()
        self._zip = open_zip(path)
        for info in self._zip.infolist():
            inner_path, is_folder = self._safe_path(info)
            if is_folder:
                self.folders.setdefault(inner_path, {})
            else:
                self.files[inner_path] = info  # the last entry of a name wins, as in unpacking
            while inner_path:
                inner_path, _, name = inner_path.rpartition("/")
                self.folders.setdefault(inner_path, {})[name] = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_archive, (self.path, file_version(self.path))

    def read(self, inner_path: str, limit: int = FILE_BYTES) -> bytes:
        """Read an entry of at most `limit` bytes; a DataError if it is larger, or a link."""
        info, where = self.files[inner_path], f"{self.path}/{inner_path}"
        check_size(where, info.file_size, limit)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{where}: a link, which is not followed", expected="a file")
        piece = PIECE if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else PIECE_OF_OTHERS
        with self._lock, self._zip.open(info) as file:  # ZipFile counts its open entries without a lock
            return b"".join(iter(lambda: file.read(piece), b""))

    def _safe_path(self, info: zipfile.ZipInfo) -> tuple[str, bool]:
        """An entry's path without what some programs add (`./a`, `a\\b`), and whether it is a folder."""
        # orig_filename, because zipfile replaces the system's separator by / and cuts names at a NUL byte
        name = info.orig_filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if len(parts) > NESTING or len(name) > LONGEST_PATH:
            expected = f"at most {NESTING} folders and {LONGEST_PATH:,} characters"
            what = f"{self.path}: too long a path {name[:60]!a}…"
            raise DataError(what, expected=expected, got=f"{len(parts)} and {len(name):,}", hint=HINT)
        if "\0" in name or name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", parts[0] if parts else ""):
            raise DataError(
                f"{self.path}: unsafe entry {info.orig_filename!r}",
                expected="relative paths that stay inside the archive",
                got="a path that could point outside it",
                hint=HINT,
            )
        return "/".join(parts), not parts or name.endswith(("/", "/."))


@lru_cache(maxsize=4)
def _open_archive(path: Path, version: tuple[int, int]) -> _Archive:
    """Open an archive in another process, where tasks that arrive one after another share it."""
    return _Archive(path)


def file_version(path: Path) -> tuple[int, int]:
    """Size and time of modification (ns) of a file, which differ after it has changed; zeros if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def open_folder_or_zip(path: Path | str, *, hint: str) -> ReadablePath:
    """Open a folder, or the inside of a .zip; a DataError, with `hint`, if there is neither, or the zip is unsafe."""
    path = Path(path)
    if path.is_dir():
        return path
    if not path.exists():
        raise DataError(f"{path}: no such folder or .zip", hint=hint)
    return ZipPath(_Archive(path), "")


def read_file(path: ReadablePath, limit: int = FILE_BYTES) -> bytes:
    """Read a file of at most `limit` bytes; a DataError if it is larger, missing, or unreadable."""
    try:
        return path.read_bytes(limit) if isinstance(path, ZipPath) else read_bounded(path, limit)
    except (FileNotFoundError, KeyError):  # on disk, or in an archive
        raise DataError(f"{path}: no such file") from None
    except ZIP_ERRORS as e:
        if getattr(e, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # no fault of the file
            raise
        if isinstance(path, ZipPath):  # a wrong checksum, a truncated or encrypted entry, an unknown compression
            raise DataError(f"{path}: damaged or unreadable zip entry", got=one_line(str(e))) from None
        got = getattr(e, "strerror", None) or e  # ValueError: a NUL byte in the name
        raise DataError(f"{path}: cannot be read", got=got) from e


def list_folder(folder: ReadablePath) -> list[ReadablePath]:
    """List a folder in natural order, without hidden entries and macOS's shadow folders; OSError if it fails.

    Fractions of several lengths of which a longer one ends in 0 are counted, as in 1.9, 1.10: they are no decimals.
    """
    entries = list_unsorted(folder)
    fractions = {fraction for entry in entries for fraction in re.findall(r"\d\.(\d+)", entry.name)}
    shortest = min(map(len, fractions), default=0)
    decimals = not any(fraction.endswith("0") and len(fraction) > shortest for fraction in fractions)
    return sorted(entries, key=lambda entry: natural_sort_key(entry.name, decimals=decimals))


def list_unsorted(folder: ReadablePath) -> list[ReadablePath]:
    """List a folder in any order, without hidden entries and macOS's shadow folders; OSError if it fails."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX"))]


def find_folder(parent: ReadablePath, *names: str) -> ReadablePath | None:
    """Find the first folder with one of these names, or else in upper or lower case; None if there is none."""
    for name in names:  # usually spelt like this, and then the parent need not be listed
        if (folder := parent.joinpath(name)).is_dir():
            return folder
    lower_names = {name.lower() for name in names}
    return next((p for p in list_folder(parent) if p.name.lower() in lower_names and p.is_dir()), None)


def natural_sort_key(name: str, *, decimals: bool = True) -> list[tuple[int, Decimal | int, str]]:
    """A sorting key that puts 2 before 10, and with `decimals` also 0.25 before 0.3."""
    if name.isdecimal():
        return [(0, _number(name), name)]
    parts = re.split(r"((?:^-)?\d+(?:\.\d+)?)" if decimals else r"(\d+)", name)  # every second one is a number
    return [(1 - i % 2, _number(part) if i % 2 else 0, part) for i, part in enumerate(parts) if part]


def _number(digits: str) -> Decimal | int:
    # whole numbers are much faster than decimals, but Python refuses those of thousands of digits
    return int(digits) if digits.isdecimal() and len(digits) < LONG_NUMBER else Decimal(digits)
