"""The logger that all of framebank's library code uses; the command line shows its messages on stderr."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("framebank")


class _StderrHandler(logging.Handler):
    """Writes each message to the current `sys.stderr`, which tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Show messages of level INFO and above on stderr. Further calls have no effect."""
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
        logger.setLevel(logging.INFO)
