"""Ctrl-C as a wish that is granted at the next batch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import keras


class DeferredInterrupt(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises KeyboardInterrupt after the batch in which Ctrl-C was pressed; a second one raises at once.

    The signal's own exception comes up wherever Python happens to be, and is lost in a destructor or a callback of C.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C for a wish meanwhile; where another thread trains, or it is ignored, it stays as it is."""
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if self._asked:
            raise KeyboardInterrupt

    on_test_batch_end = on_train_batch_end
