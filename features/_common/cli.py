"""How a command ends: errors the user can correct become one line on stderr and an exit status."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from types import TracebackType

from features._common.console import log_to_stderr, logger
from features._common.plain_text import printable
from features.errors import REFUSALS, FramebankError

INTERRUPTED = "Interrupted. Finished work is saved; run the same command to resume."
HDF5_REFUSED = re.compile(r"errno = ([0-9]+), error message")  # as HDF5 words what the system refused
OUT_OF_MEMORY = (
    "Out of memory. Finished work is saved. Try: close other programs, or a smaller batch, and run the same command "
    "again."
)


def run_command(command: Callable[[], None]) -> int:
    """Call a command and return its exit status: 0; 2 for an error that the user can correct; 130 after Ctrl-C.

    A bug in framebank is raised; it ends with a traceback and Python's exit status 1.
    """
    log_to_stderr()
    sys.unraisablehook, sys.excepthook = _report_unraisable, _report_uncaught
    try:
        command()
    except FramebankError as e:
        logger.debug("The error was raised here:", exc_info=True)
        print(printable(f"framebank: {e}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"framebank: {INTERRUPTED}", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    except SystemExit as e:  # tyro has printed help or a completion script
        return int(e.code or 0)
    except BrokenPipeError:  # `framebank info | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains again when it flushes stdout at its end
    except Exception as e:
        if not (line := describe_error(e)):
            raise
        print(printable(f"framebank: {line}"), file=sys.stderr)
        return 2
    return 0


def _report_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Leave out what HDF5 says once more, when a file is forgotten that it could not write."""
    if "h5py" not in str(unraisable.object):
        sys.__unraisablehook__(unraisable)


def _report_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Leave out the same where h5py prints it itself."""
    if "Can't decrement id ref count" not in str(error):
        sys.__excepthook__(kind, error, traceback)


def describe_error(error: Exception) -> str | None:
    """Describe in one line what the machine refused, if the user can correct it; None otherwise."""
    if isinstance(error, OSError) and error.errno is not None:
        return describe_os_error(error)
    if isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if said := HDF5_REFUSED.search(str(error)):  # h5py raises a RuntimeError where a file is closed
        return describe_os_error(OSError(int(said[1]), ""))
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None and isinstance(error, tensorflow.errors.OpError):
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *REFUSALS):
            if os.strerror(code) in str(error):
                return describe_os_error(OSError(code, ""))
        if isinstance(error, tensorflow.errors.ResourceExhaustedError):
            return OUT_OF_MEMORY
    return None


def describe_os_error(error: OSError) -> str | None:
    """Describe in one line what the operating system refused, if the user can correct it; None otherwise."""
    where = f"{error.filename}: " if error.filename else ""
    again = "run the same command again"
    disk = f"Finished work is saved. Try: free some space and {again}."
    folder = "A file is where a folder is needed. Try: choose another path."
    denied = "Permission denied. Try: choose another path, or change its permissions."
    network = f"The network drive does not answer. Finished work is saved. Try: mount it again and {again}."
    files = f"Too many open files. Finished work is saved. Try: ulimit -n 4096, and {again}."
    lines = {
        errno.ENOSPC: f"The disk is full. {disk}",
        errno.EDQUOT: f"The disk quota is used up. {disk}",
        errno.EFBIG: "The file would be larger than the file system or a limit admits. Try: ulimit -f unlimited, or "
        "choose a path on another disk.",
        errno.EROFS: "The file system is read-only. Try: choose a path that can be written, e.g. with --store.",
        errno.EIO: f"The disk fails (input/output error). Finished work is saved. Try: check the disk, and {again} or "
        "choose a path on another one.",
        errno.ENOTDIR: folder,
        errno.EEXIST: folder,
        errno.ENAMETOOLONG: "The name is too long. Try: choose a shorter one.",
        errno.ELOOP: "Links lead to each other. Try: choose another path.",
        errno.EISDIR: "A folder is where a file is needed. Try: choose another path.",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.EMFILE: files,
        errno.ENFILE: files,
        errno.ENOMEM: OUT_OF_MEMORY,
        errno.ESTALE: network,
        errno.ETIMEDOUT: network,
    }
    if error.errno == errno.ENOENT and error.filename:
        return f"{where}No such file or folder; it may have been deleted meanwhile. Try: {again}."
    return where + lines[error.errno] if error.errno in lines else None
