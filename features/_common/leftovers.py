"""Unfinished files and folders: named after their writer, and deleted by the next command if that was killed.

A folder `.unfinished.WRITER` holds what is being written under its final name, and, where a folder cannot be replaced
in one step, for a moment the one that it replaces as `.before`, which is brought back.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished."  # in front of the name of a folder that is being filled
BEFORE = ".before"
HOLDER = ".lock.holder"  # after a name: who holds its lock
SECONDS_PER_DAY = 86400

_WRITER = re.compile(r"[.-]([^.]*)-(\d+)-[0-9a-f]{8}(?:\.tmp(?:\.\w+)?|\.partial)?$")


def writer_name() -> str:
    """A name for what this process is writing, `HOST-PROCESS-RANDOM`, which no other process or thread uses."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"


def abandoned_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Those of some unfinished files or folders, named after a `writer_name`, that nobody is writing any more.

    Their writer was a process of this host that has ended, or they have not changed for a day. Earlier versions did not
    name the host, and wrote a store from one process at a time.
    """
    for path in paths:
        writer = _WRITER.search(path.name)
        is_ours = writer is not None and writer[1] == _host()
        if writer is None or (is_ours and has_ended(int(writer[2]))) or _age(path) > SECONDS_PER_DAY:
            yield path


def writer_has_ended(name: str, age: float) -> bool:
    """Whether the process that a `writer_name` is of has ended; that of another host if it began over a day ago.

    Args:
        age: seconds since it began.
    """
    writer = _WRITER.fullmatch(f".{name}")
    return writer is None or (writer[1] == _host() and has_ended(int(writer[2]))) or age > SECONDS_PER_DAY


def sweep_leftovers(folder: Path) -> None:
    """Delete what killed commands have left in a folder, and bring back what they were about to replace.

    What cannot be deleted stays, since the command that comes next may only be reading.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(".") or entry.name.endswith(HOLDER)]
    except OSError:
        return
    for path in abandoned_files(folder / name for name in names if _WRITER.search(name)):
        if path.is_dir() and not path.is_symlink():
            _bring_back(path)
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """Make a folder to work in, and delete it and all that is left in it at the end."""
    sweep_leftovers(parent)
    workspace = parent / f"{UNFINISHED}{writer_name()}"
    try:
        try:
            workspace.mkdir(parents=True)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(parent)) from None
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def has_ended(pid: int) -> bool:
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


def _bring_back(workspace: Path) -> None:
    """Give a folder its name again that a killed command had moved away and not yet replaced."""
    before = workspace / BEFORE
    if not before.exists():
        return
    for unfinished in workspace.glob("[!.]*"):
        final = workspace.with_name(unfinished.name)
        if not final.exists():
            with contextlib.suppress(OSError):  # another command has done it
                before.rename(final)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
