"""Atomic writes, after which a file is complete or absent, and a write lock per store."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from features.errors import StoreError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush it to disk and rename it to `path` on success, delete it on failure.

    A rename is atomic, so a reader sees either the old file or the complete new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive_write_lock(store: Path, timeout: float = 0) -> Iterator[None]:
    """Hold the store's write lock during the block. The operating system releases it if the process dies.

    A StoreError names the process, host and time if another process holds the lock, even after `timeout` s.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    holder = store.with_name(f"{store.name}.lock.holder")
    lock = FileLock(store.with_name(f"{store.name}.lock"))
    try:
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
