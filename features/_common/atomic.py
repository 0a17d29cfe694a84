"""Atomic writes, after which a file is complete or absent, and a write lock per store, on every operating system."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from features._common.bounded_file import read_bounded
from features._common.console import logger
from features._common.interrupts import uninterrupted
from features._common.leftovers import HOLDER, has_ended, sweep_leftovers, writer_name
from features._common.plain_text import one_line
from features.errors import DataError, StoreError
from features.limits import KB

# from file systems without locks, such as some NFS
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
NO_FOLDER_FLUSH = (errno.EACCES, errno.EBADF, errno.EINVAL, *NO_LOCKS)  # from Windows and some network file systems
SHORT = 0.5  # s, longer than a command that has nothing to do, or deletes a killed one's lock, holds it
HOLDER_BYTES = 4 * KB
NOBODY = "another process"  # holds a lock, as far as is known
# what the system raises for a write without always naming the file
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def atomic_write(path: Path, ending: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it to disk and rename it to `path` on success, delete it on failure.

    A rename is atomic, so a reader sees either the old file or the complete new one. `ending` is that of the temporary
    path, for libraries that choose the format by it. An OSError that writing raises names `path`.

    A DataError if there is something else than a file at `path`, such as a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: not a file, so it is not replaced", hint="choose another path")
    temporary = path.with_name(f".{path.name}.{writer_name()}.tmp{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with naming(path, temporary):
            yield temporary
            fsync_path(temporary)
            temporary.replace(path)
            fsync_path(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the folder cannot be written any more; the next command tries again
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, temporary: Path) -> Iterator[None]:
    """Name `path` in an OSError of a write that names no file, or the temporary one, or a file in that."""
    try:
        yield
    except OSError as e:
        name = str(e.filename or "")
        if not name and e.errno in WRITE_ERRORS:
            raise OSError(e.errno, e.strerror, str(path)) from e
        if name.startswith(str(temporary)):
            raise OSError(e.errno, e.strerror, f"{path}{name.removeprefix(str(temporary))}") from e
        raise


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries where the system can do that, to disk."""
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows flushes only what may be written
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        if not is_folder or e.errno not in NO_FOLDER_FLUSH:
            raise


@contextmanager
def exclusive_write_lock(store: Path, timeout: float = SHORT) -> Iterator[None]:
    """Hold the store's write lock during the block. The operating system releases it if the process dies.

    On a file system without locks, a file with this process's number serves as one; the next process of this host
    removes that of a process that has ended.

    A StoreError names the process, host, time and command if another process holds the lock, even after `timeout` s.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    holder, file = store.with_name(f"{store.name}{HOLDER}"), store.with_name(f"{store.name}.lock")
    lock: BaseFileLock = FileLock(file)
    try:
        try:
            lock.acquire(timeout=timeout)
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise
            logger.info(f"{store.parent}: no locks on this file system; a file is used instead.")
            with contextlib.suppress(OSError):
                file.unlink()  # it locks nothing
            file = store.with_name(f"{store.name}.lock.file")
            lock = SoftFileLock(file)
            lock.acquire(timeout=timeout)
    except Timeout:
        raise StoreError(f"{store}: already being written by {_read(holder)}", hint=_lock_hint(holder, file)) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {socket.gethostname()} since {since}: {_command_line()}"
    try:
        with contextlib.suppress(OSError):  # a full disk, on which there may still be work to do
            holder.unlink(missing_ok=True)  # it may be a link to another file
            with holder.open("x", encoding="utf-8", errors="replace") as file_of_holder:
                file_of_holder.write(text)
        yield
    finally:
        with uninterrupted():
            with contextlib.suppress(OSError):
                file.unlink()  # while it is held; who waits for it sees that the file has gone, and makes a new one
            with contextlib.suppress(OSError):
                if _read(holder) in (text, NOBODY):  # not yet the next one's
                    holder.unlink()
            lock.release()


def sweep(*folders: Path) -> None:
    """Delete what killed commands have left in folders, their locks too, and bring back what they were replacing."""
    for folder in dict.fromkeys(folders):
        sweep_leftovers(folder)
        with contextlib.suppress(OSError):
            _sweep_locks(folder)


def _sweep_locks(folder: Path) -> None:
    """Delete the lock files of killed processes of this host, unless another process holds the lock."""
    for holder in [path for path in folder.glob(f"*{HOLDER}") if _is_stale(path)]:
        store = holder.with_name(holder.name.removesuffix(HOLDER))
        with contextlib.suppress(OSError, StoreError), exclusive_write_lock(store):
            pass  # which deletes them at its end


def _is_stale(holder: Path) -> bool:
    words = _read(holder).split()
    is_ours = words[:1] == ["process"] and words[3:4] == [socket.gethostname()] and words[1].isdecimal()
    return is_ours and has_ended(int(words[1]))


def _read(holder: Path) -> str:
    """Who holds a lock; the file may not be written yet."""
    try:
        return one_line(read_bounded(holder, HOLDER_BYTES).decode(errors="replace").strip()) or NOBODY
    except (OSError, DataError):
        return NOBODY


def _lock_hint(holder: Path, file: Path) -> str:
    hint = "wait for it to end, or stop it"
    words = _read(holder).split()
    if file.suffix == ".file" and words[3:4] != [socket.gethostname()]:  # no process of that host can be asked
        return f"{hint}; if no such process is left on that host, rm {shlex.quote(str(file))}"
    return hint


def _command_line() -> str:
    """The command that this process runs, as its user wrote it."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    name = path.parent.name if path.name == "__main__.py" else path.name
    return one_line(" ".join(shlex.join([name, *arguments]).split()))[:300]
