"""Atomic writes, after which a file is complete or absent, and a write lock per store, on every operating system."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from features._common.console import logger
from features.errors import StoreError

# from file systems without locks, such as some NFS
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
NO_FOLDER_FLUSH = (errno.EACCES, errno.EBADF, errno.EINVAL, *NO_LOCKS)  # from Windows and some network file systems

SECONDS_PER_DAY = 86400


def writer_name() -> str:
    """A name for what this process is writing, `HOST-PROCESS-RANDOM`, which no other process or thread uses."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def abandoned_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Those of some unfinished files or folders, named after a `writer_name`, that nobody is writing any more.

    Their writer was a process of this host that has ended, or they have not changed for a day. Earlier versions did not
    name the host, and wrote a store from one process at a time.
    """
    for path in paths:
        writer = re.search(r"[.-]([^.]*)-(\d+)-[0-9a-f]{8}(?:\.tmp)?$", path.name)
        is_ours = writer is not None and writer[1] == _host()
        if writer is None or (is_ours and _has_ended(int(writer[2]))) or _age(path) > SECONDS_PER_DAY:
            yield path


def writer_has_ended(name: str, age: float) -> bool:
    """Whether the process that a `writer_name` is of has ended; that of another host if it began over a day ago.

    Args:
        age: seconds since it began.
    """
    writer = re.fullmatch(r"([^.]*)-(\d+)-[0-9a-f]{8}", name)
    return writer is None or (writer[1] == _host() and _has_ended(int(writer[2]))) or age > SECONDS_PER_DAY


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _has_ended(pid: int) -> bool:
    """Whether there is no process with this number any more; False where that cannot be asked."""
    if os.name == "nt":  # where signal 0 ends a process
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it to disk and rename it to `path` on success, delete it on failure.

    A rename is atomic, so a reader sees either the old file or the complete new one.
    """
    temporary = path.with_name(f".{path.name}.{writer_name()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
def exclusive_write_lock(store: Path, timeout: float = 0) -> Iterator[None]:
    """Hold the store's write lock during the block. The operating system releases it if the process dies.

    On a file system without locks, a file with this process's number serves as one.

    A StoreError names the process, host and time if another process holds the lock, even after `timeout` s.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    holder = store.with_name(f"{store.name}.lock.holder")
    lock: BaseFileLock = FileLock(store.with_name(f"{store.name}.lock"))
    try:
        try:
            lock.acquire(timeout=timeout)
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise
            logger.info(f"{store.parent}: no locks on this file system; a file is used instead.")
            lock = SoftFileLock(store.with_name(f"{store.name}.lock.file"))
            lock.acquire(timeout=timeout)
    except Timeout:
        writer = holder.read_text(encoding="utf-8") if holder.exists() else "another process"
        raise StoreError(f"{store}: already being written by {writer}", hint="wait for it to end, or stop it") from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
