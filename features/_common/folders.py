"""Folders that appear, or are replaced, in one step: a reader finds the old one or the complete new one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from features._common.atomic import fsync_path, naming
from features._common.console import logger
from features._common.leftovers import BEFORE, unfinished_folder

TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
_State = tuple[int, int]  # time of modification in ns, size
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # from Linux' headers


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that replaces `path` when the block ends without an error.

    If another process finished a folder at `path` in the meantime, that one stays and this one takes the next free
    name.
    """
    before = path.stat() if path.exists() else None
    with unfinished_folder(path.parent) as workspace:
        folder = workspace / path.name
        folder.mkdir()
        with naming(path, folder):
            yield folder
            _fsync_all(folder)
        if before is not None and path.exists() and os.path.samestat(before, path.stat()):
            _replace(path, folder, workspace)
        elif (final := _place(folder, path)) != path:
            logger.info(f"{path}: another run took this name in the meantime; this run is {final}")
        fsync_path(path.parent)


@contextmanager
def updated_folder(path: Path) -> Iterator[Path]:
    """Yield a copy of a folder, or an empty one, which replaces it when the block ends without an error.

    The copy's files are links, so they must be replaced and not written to, as `atomic_write` does. What other
    processes have written to the folder in the meantime is kept.
    """
    path = path.resolve()
    with unfinished_folder(path.parent) as workspace:
        folder = workspace / path.name
        copied = _link_all(path, folder)
        with naming(path, folder):
            yield folder
            _fsync_all(folder)
        if path.exists():
            _replace(path, folder, workspace)
            replaced = folder if folder.exists() else workspace / BEFORE
            _keep_new_files(replaced, path, copied)
        else:
            folder.rename(path)
        fsync_path(path.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two files or folders in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(second))


@cache
def _renameat2() -> Any:
    """The system's function, which Python does not offer; None where there is none."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return function


def _replace(path: Path, folder: Path, workspace: Path) -> None:
    """Put a folder in the place of another one, which stays in the workspace."""
    if not exchange(folder, path):
        path.rename(workspace / BEFORE)  # the next command brings it back, if this one is killed here
        folder.rename(path)


def _place(folder: Path, path: Path) -> Path:
    """Give a folder a name that no other has: that of `path`, or one with a number."""
    for number in count(1):
        final = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            if not final.exists():
                folder.rename(final)
                return final
        except OSError as e:  # another process was quicker
            if e.errno not in TAKEN:
                raise
    raise AssertionError("unreachable")


def _link_all(source: Path, target: Path) -> dict[Path, _State]:
    """Link, or copy, all files of a folder, if there is one; return each one's state, and that of folders."""
    copied: dict[Path, _State] = {}
    target.mkdir()
    for root, folders, names in os.walk(source):
        here = Path(root).relative_to(source)
        folders[:] = [name for name in folders if not name.startswith(".")]  # others are still being written
        for name in folders:
            (target / here / name).mkdir()
            copied[here / name] = (0, 0)
        for name in [name for name in names if not name.startswith(".")]:
            copied[here / name] = _state(source / here / name)
            try:
                os.link(source / here / name, target / here / name)
            except OSError:  # a file system without hard links
                shutil.copy2(source / here / name, target / here / name)
    return copied


def _keep_new_files(replaced: Path, path: Path, copied: dict[Path, _State]) -> None:
    """Move to a folder what other processes have written to the one that it replaced, since that was copied."""
    for root, folders, names in os.walk(replaced):
        here = Path(root).relative_to(replaced)
        for name in [*folders]:
            if not (path / here / name).exists():
                folders.remove(name)
                if here / name not in copied:
                    (replaced / here / name).rename(path / here / name)
        for name in names:
            before, theirs, ours = copied.get(here / name), replaced / here / name, path / here / name
            is_ours = ours.exists() and (before is None or _state(ours) != before)
            if not is_ours and _state(theirs) != before:
                theirs.replace(ours)


def _state(file: Path) -> _State:
    stat = file.lstat()
    return stat.st_mtime_ns, stat.st_size


def _fsync_all(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            fsync_path(Path(root, name))
        fsync_path(Path(root))
