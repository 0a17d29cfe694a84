"""How a command ends: errors the user can correct become one line on stderr and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from features._common.console import log_to_stderr, logger
from features.errors import FramebankError


def run_command(command: Callable[[], None]) -> int:
    """Call a command and return its exit status: 0; 2 for an error that the user can correct; 130 after Ctrl-C.

    A bug in framebank is raised; it ends with a traceback and Python's exit status 1.
    """
    log_to_stderr()
    try:
        command()
    except FramebankError as e:
        logger.debug("The error was raised here:", exc_info=True)
        print(f"framebank: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("framebank: Interrupted. Finished work is saved; run the same command to resume.", file=sys.stderr)
        return 130  # 128 + SIGINT, as shells have it
    except SystemExit as e:  # tyro has printed help or a completion script
        return int(e.code or 0)
    except BrokenPipeError:  # `framebank info | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains again when it flushes stdout at its end
    except OSError as e:
        if not (line := describe_os_error(e)):
            raise
        print(f"framebank: {line}", file=sys.stderr)
        return 2
    return 0


def describe_os_error(error: OSError) -> str | None:
    """Describe in one line what the operating system refused, if the user can correct it; None otherwise."""
    where = f"{error.filename}: " if error.filename else ""
    disk = "Finished work is saved. Try: free some space and run the same command again."
    folder = "A file is where a folder is needed. Try: choose another path."
    lines = {
        errno.ENOSPC: f"The disk is full. {disk}",
        errno.EDQUOT: f"The disk quota is used up. {disk}",
        errno.EROFS: "The file system is read-only. Try: choose a path that can be written, e.g. with --store.",
        errno.ENOTDIR: folder,
        errno.EEXIST: folder,
        errno.EACCES: "Permission denied. Try: choose another path, or change its permissions.",
    }
    return where + lines[error.errno] if error.errno in lines else None
