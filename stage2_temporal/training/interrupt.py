"""Defer Ctrl-C until the current batch ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import keras


class DeferredInterrupt(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises KeyboardInterrupt at the end of the batch in which Ctrl-C was pressed; a second Ctrl-C raises at once.

    Python's own handler raises wherever the interpreter happens to be, and the exception is lost in a destructor or a
    callback from C.
    """

    def __init__(self) -> None:
        super().__init__()
        self._interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C during the block; does nothing in a thread other than the main one, or if SIGINT is ignored."""
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(previous):
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self._interrupted = True
            signal.signal(signal.SIGINT, previous)

        signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    on_test_batch_end = on_train_batch_end
