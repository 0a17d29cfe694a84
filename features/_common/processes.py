"""Worker processes that leave Ctrl-C to the process that started them, and end when it does."""

from __future__ import annotations

import os
import signal
import threading
import time

PARENT_CHECK_INTERVAL = 0.2  # seconds


def become_worker(parent: int) -> None:
    """Make this process, which `parent` started, ignore Ctrl-C, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_INTERVAL)
    os._exit(1)
