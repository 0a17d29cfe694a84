"""What the terminal shows: messages, tables and progress, but not what heavy libraries print when they are imported."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from features._common.plain_text import printable

logger = logging.getLogger("framebank")  # library code logs by it; the command line shows its messages
SECONDS_PER_LINE = 15.0  # of progress in a log file


class _PrintableFormatter(logging.Formatter):
    """Messages with names from elsewhere do not control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr() -> None:
    """Show messages of level INFO and above on stderr. Further calls have no effect."""
    if handler := logging.lastResort:  # which writes to the current `sys.stderr`, since tests replace it
        handler.setLevel(logging.INFO)
        handler.setFormatter(_PrintableFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Show messages of level WARNING and above if `quiet`, all with their times if `verbose`, else INFO and above."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logger.setLevel(level)
    for handler in logger.handlers:
        handler.setLevel(level)
        handler.setFormatter(_PrintableFormatter(*(("%(asctime)s %(message)s", "%H:%M:%S") if verbose else ())))


def is_quiet() -> bool:
    """Whether the user wants no progress and no messages."""
    return logger.level >= logging.WARNING


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), markdown: bool = False
) -> str:
    """Lay out rows of formatted cells as a table, in Markdown if wanted; columns not in `left` are aligned right."""
    import tabulate  # here, because importing it takes 30 ms

    tabulate.MIN_PADDING = 0  # no extra space in headers, so that tables fit into 80 columns
    return tabulate.tabulate(
        rows,
        headers=header,
        tablefmt="github" if markdown else "simple",
        colalign=["left" if i in left else "right" for i in range(len(header))],
        disable_numparse=True,
        preserve_whitespace=True,
    )


class _ProgressLines(tqdm):  # type: ignore[type-arg]
    """For a log file: prints a new line each time instead of redrawing the last one, and no empty line at the end."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n > self.initial or self.n == self.total:
            print(msg if msg is not None else str(self), file=self.fp, flush=True)

    def close(self) -> None:
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]  # its stubs leave this out


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0) -> tqdm[Any]:
    """A progress bar on stderr for `total` units of work; use it in a `with` block and call its `update`."""
    terminal = sys.stderr.isatty()
    bar = tqdm if terminal else _ProgressLines
    return bar(
        disable=is_quiet(),
        dynamic_ncols=terminal,
        total=total,
        initial=initial,
        desc=description,
        unit=f" {unit}",
        smoothing=0.05,
        mininterval=0.2 if terminal else SECONDS_PER_LINE,
        maxinterval=10 if terminal else SECONDS_PER_LINE,
        bar_format="{desc}: {percentage:3.0f}% "
        + ("|{bar}| " if terminal else "")
        + "{n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        file=sys.stderr,
    )


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Import heavy libraries inside this block; later imports of them are silent anyway. Errors are raised as usual.

    With --verbose, what they print is shown.
    """
    with _no_search_for_cycles():
        if logger.level == logging.DEBUG:
            yield
            return
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        sys.stderr.flush()
        stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(devnull, 2)  # TensorFlow's C++ code prints before any logging level applies
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(devnull)
        for name in ("tensorflow", "absl"):
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Keep Python from looking for reference cycles, which takes 30 % of the time of importing TensorFlow."""
    enabled, loaded = gc.isenabled(), "tensorflow" in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if "tensorflow" in sys.modules and not loaded:
            gc.freeze()  # else the next search walks a million objects, which all stay
        if enabled:
            gc.enable()
