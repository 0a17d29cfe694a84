"""Put off Ctrl-C: in a callback of a C library that writes, it would crash the process; in a clean-up, leave files."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[Callable[[], None]]:
    """Raise Ctrl-C's KeyboardInterrupt at the end of the block, or when it calls the function that this yields."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield lambda: None
        return
    signals: list[int] = []

    def check() -> None:
        if signals:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):
        yield check
        return
    signal.signal(signal.SIGINT, lambda number, _: signals.append(number))
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()
