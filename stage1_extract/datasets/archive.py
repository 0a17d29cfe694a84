"""Folders and zip archives behind one interface: files are reached the same way in both, from any thread."""

from __future__ import annotations

import re
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Protocol

from features.errors import DataError


class ReadablePath(Protocol):
    """A file or folder, on disk or in an archive; the part of `importlib.resources.abc.Traversable` we need.

    `pathlib.Path` is one. `str()` gives its path, for errors.
    """

    @property
    def name(self) -> str: ...
    def iterdir(self) -> Iterable[ReadablePath]: ...
    def joinpath(self, name: str, /) -> ReadablePath: ...
    def is_dir(self) -> bool: ...
    def is_file(self) -> bool: ...
    def read_bytes(self) -> bytes: ...


class ZipPath:
    """A file or folder in a zip archive, read without unpacking.

    Unlike `zipfile.Path` it lists a folder without going through every name, and several threads may read.
    """

    def __init__(self, archive: _Archive, at: str) -> None:
        self._archive, self._at = archive, at

    def __str__(self) -> str:
        return f"{self._archive.path}/{self._at}" if self._at else str(self._archive.path)

    @property
    def name(self) -> str:
        return PurePosixPath(self._at).name or self._archive.path.name

    def iterdir(self) -> Iterator[ZipPath]:
        return (self.joinpath(name) for name in self._archive.folders[self._at])

    def joinpath(self, name: str, /) -> ZipPath:
        return ZipPath(self._archive, f"{self._at}/{name}" if self._at else name)

    def is_dir(self) -> bool:
        return self._at in self._archive.folders

    def is_file(self) -> bool:
        return self._at in self._archive.files

    def read_bytes(self) -> bytes:
        return self._archive.read(self._at)


class _Archive:
    """An open zip: its folders (path → names within) and its files (path → entry)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: dict[str, list[str]] = {"": []}
        self.files: dict[str, zipfile.ZipInfo] = {}
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as e:
            raise DataError(
                f"{path}: not a zip archive, or truncated", expected="a whole .zip", got=e, hint="download it again"
            ) from None
        for info in self._zip.infolist():
            at = self._safe(info)
            if info.is_dir():
                self._folder(at)
            else:
                parent, _, name = at.rpartition("/")
                self._folder(parent)
                if at not in self.files:
                    self.folders[parent].append(name)
                self.files[at] = info  # of two entries of one name the later counts, as when unpacking

    def read(self, at: str) -> bytes:
        if at not in self.files:
            raise FileNotFoundError(2, "No such file", f"{self.path}/{at}")
        # opening and closing count the archive's users, which is not atomic; reading has zipfile's own lock
        with self._lock:
            file = self._zip.open(self.files[at])
        try:
            return file.read()
        finally:
            with self._lock:
                file.close()

    def _folder(self, at: str) -> None:
        if at not in self.folders:
            self.folders[at] = []
            parent, _, name = at.rpartition("/")
            self._folder(parent)
            self.folders[parent].append(name)

    def _safe(self, info: zipfile.ZipInfo) -> str:
        # orig_filename: zipfile turns the system's own separator into / and cuts at a NUL byte
        name = info.orig_filename
        parts = name.rstrip("/").split("/")
        if "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name) or any(p in ("", ".", "..") for p in parts):
            raise DataError(
                f"{self.path}: unsafe entry {name!r}",
                expected="relative paths with / that stay inside",
                got="a path that could point outside the archive",
                hint="do not unpack it; download it again from its source, or repack the folder",
            )
        return "/".join(parts)


def open_folder_or_zip(path: Path | str, *, hint: str) -> ReadablePath:
    """A folder, or the inside of a .zip.

    Args:
        path: the folder or archive.
        hint: what to do when there is neither.

    Raises:
        DataError: nothing there, not a zip, a truncated one, or one with an entry that points outside.
    """
    path = Path(path)
    if path.is_dir():
        return path
    if not path.exists():
        raise DataError(f"{path}: no such folder or .zip", hint=hint)
    try:
        return ZipPath(_Archive(path), "")
    except OSError as e:
        raise DataError(
            f"{path}: cannot be read", got=e.strerror or e, hint="check the path and its permissions"
        ) from None


def read_file(place: ReadablePath) -> bytes:
    """The contents of a file.

    Raises:
        DataError: missing, unreadable, or damaged in its archive.
    """
    try:
        return place.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{place}: no such file") from None
    except OSError as e:
        raise DataError(f"{place}: cannot be read", got=e.strerror or e) from None
    except ValueError as e:  # a NUL byte in its name
        raise DataError(f"{place}: no path", got=e) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as e:
        # a wrong checksum, a cut or an encrypted entry, an unknown compression
        raise DataError(f"{place}: damaged or unreadable zip entry", got=e) from None


def list_folder(place: ReadablePath) -> list[ReadablePath]:
    """What a folder holds, in natural order; hidden entries and macOS' shadow folders are left out.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        found = [p for p in place.iterdir() if not p.name.startswith((".", "__MACOSX"))]
    except OSError as e:
        raise DataError(f"{place}: cannot be listed", got=e.strerror or e, hint="check its permissions") from None
    return sorted(found, key=lambda p: natural_sort_key(p.name))


def find_folder(place: ReadablePath, *names: str) -> ReadablePath | None:
    """The first folder of one of these names, case aside."""
    wanted = {n.lower() for n in names}
    return next((p for p in list_folder(place) if p.name.lower() in wanted and p.is_dir()), None)


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """A sorting key that puts 2 before 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), p) if p[0] in "0123456789" else (1, 0, p) for p in parts]
