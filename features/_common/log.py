"""The one logger of framebank. Library code logs to it; the command line shows it on stderr."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("framebank")


class _StderrHandler(logging.Handler):
    """Writes each message as a line to whatever `sys.stderr` is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Show messages from level INFO up on stderr; a second call changes nothing."""
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
        logger.setLevel(logging.INFO)
