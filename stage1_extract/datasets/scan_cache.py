"""What earlier scans found in files, so that a file is read again only if it has changed.

A file counts as unchanged while its size, its time of modification (in ns) and its inode are the same. The cache is an
SQLite file beside the store; without it, or if it cannot be used, every file is read. Each entry has a checksum, since
what it says decides how an image is decoded.
"""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from features._common.console import logger
from features.limits import FILE_BYTES
from stage1_extract.datasets.archive import ReadablePath, ZipPath

SUFFIX = ".scan"  # of the cache's file, after the store's name
SETTLED_NS = 2 * 10**9  # a file modified more recently may change again without a new time of modification
NOT_REMEMBERED = " "  # what a result begins with that does not depend on the file alone
FILES_PER_BLOCK = 10_000
FILES_PER_QUERY = 500
TABLE = """files
    (path TEXT, kind TEXT, size INT, modified INT, inode INT, result TEXT, PRIMARY KEY (path, kind)) WITHOUT ROWID"""
LONGEST_RESULT = FILE_BYTES  # bytes; the times of a video's frames

FileState = tuple[int, int, int]  # size in bytes, time of modification in ns, inode


class ScanCache:
    """The cache in a file; None: it remembers nothing.

    Args:
        file: where it is, or will be.
        rehash: read every file again, and remember what is found.
        read_only: leave the file as it is.
    """

    def __init__(self, file: Path | None = None, *, rehash: bool = False, read_only: bool = False) -> None:
        self._file, self._rehash, self._read_only = file, rehash, read_only
        self._started = time.time_ns()  # before any file is read

    def scan(
        self,
        files: Sequence[ReadablePath],
        kind: str,
        read: Callable[[list[ReadablePath]], list[str]],
        is_final: Callable[[str], bool] = bool,
    ) -> list[str]:
        """What a scan finds in each file, as a text: remembered from an earlier scan, or else read.

        Args:
            files: the files, in any order.
            kind: what the scan looks for, and all that decides what it finds.
            read: reads some of the files; no text is empty.
            is_final: whether what was found is remembered.
        """
        if self._file is None:
            return read(list(files))
        results, unknown, folder = [""] * len(files), [], str(Path.cwd())
        for start in range(0, len(files), FILES_PER_BLOCK):  # so that memory holds few of them at a time
            block = range(start, min(start + FILES_PER_BLOCK, len(files)))
            paths = [_absolute(files[i], folder) for i in block]
            known = {} if self._rehash else self._known(paths, kind)
            for i, path in zip(block, paths, strict=True):
                state, remembered = file_state(files[i]), known.get(path)
                if remembered is not None and remembered[0] == state:
                    results[i] = remembered[1]
                else:
                    unknown.append((i, path, state))
        if not unknown:
            return results
        new = []
        for (i, _, state), text in zip(unknown, read([files[i] for i, *_ in unknown]), strict=True):
            results[i] = text
            if is_final(text):
                new.append((files[i], state, text))
        self.remember(new, kind)
        return results

    def remember(self, results: Iterable[tuple[ReadablePath, FileState | None, str]], kind: str) -> None:
        """Remember what was found in files, each with its state before it was read."""
        folder = str(Path.cwd())
        rows = [
            (path := _absolute(file, folder), kind, *state, f"{_checksum(path, kind, state, text)} {text}")
            for file, state, text in results
            # a file that changes while it is read has another state afterwards
            if state is not None and self._started - state[1] > SETTLED_NS and file_state(file) == state
        ]
        if rows and self._file is not None and not self._read_only:
            with self._reported_failures(), self._connect() as connection, connection:
                # a journal on the disk doubles what is written, to save what can be read again
                connection.execute("PRAGMA journal_mode = MEMORY")
                connection.execute(f"CREATE TABLE IF NOT EXISTS {TABLE}")
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _known(self, paths: list[str], kind: str) -> dict[str, tuple[FileState, str]]:
        known: dict[str, tuple[FileState, str]] = {}
        if self._file is None or not self._file.exists():
            return known
        with self._reported_failures(), self._connect() as connection:
            for start in range(0, len(paths), FILES_PER_QUERY):
                some = paths[start : start + FILES_PER_QUERY]
                places = ",".join("?" * len(some))
                query = f"SELECT path, size, modified, inode, result FROM files WHERE kind = ? AND path IN ({places})"  # noqa: S608  # only question marks
                for path, *state, stored in connection.execute(query, (kind, *some)):
                    checksum, _, text = stored.partition(" ") if isinstance(stored, str) else ("", "", "")
                    if checksum == _checksum(path, kind, state, text):
                        known[path] = (tuple(state), text)
        return known

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection to the cache; a sqlite3.Error if the file holds anything but our table."""
        assert self._file is not None
        mode = "?mode=ro" if self._read_only else ""
        with closing(sqlite3.connect(f"{self._file.absolute().as_uri()}{mode}", uri=True)) as connection:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_RESULT)
            objects = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")]
            if objects not in ([], [f"CREATE TABLE {TABLE}"]):  # a view or a trigger may never end
                raise sqlite3.DatabaseError("not a cache of scans")
            yield connection

    @contextmanager
    def _reported_failures(self) -> Iterator[None]:
        """Log a failure, which only costs time."""
        try:
            yield
        except sqlite3.Error as e:
            logger.warning(f"{self._file}: cannot be used ({e}), so files are read again. Try: delete it")


def scan_cache_of(store: Path, *, rehash: bool = False, read_only: bool = False) -> ScanCache:
    """The cache beside a store."""
    return ScanCache(store.with_name(store.name + SUFFIX), rehash=rehash, read_only=read_only)


def _checksum(path: str, kind: str, state: Sequence[int], text: str) -> str:
    content = repr((path, kind, *state, text)).encode(errors="surrogatepass")
    return f"{zlib.crc32(content):08x}"


def _absolute(file: ReadablePath, folder: str) -> str:
    """A file's path, which may be relative to the current folder."""
    path = os.path.join(folder, str(file))  # noqa: PTH118  # Path.absolute() takes 10 times as long
    return path if path.isascii() else path.encode(errors="surrogatepass").decode("latin-1")  # names may be no UTF-8


def file_state(file: ReadablePath) -> FileState | None:
    """A file's state, for a file in an archive the archive's; None if there is none."""
    try:
        # `Path.stat` takes three times as long
        stat = file.archive_stat() if isinstance(file, ZipPath) else os.stat(str(file))  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
