"""Progress of long work: a bar with rate and time left, or a line now and then where the output is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LINE_EVERY = 15.0  # seconds between lines in a log


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar that prints a line of its own each time instead of drawing over the last one."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the state as a line."""
        if self.n > self.initial or self.n == self.total:
            print(msg if msg is not None else str(self), file=self.fp, flush=True)

    def close(self) -> None:
        """Print the last state, and no empty line after it."""
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]  # its stubs leave this out


def progress_bar(total: int, what: str, unit: str, *, initial: int = 0) -> tqdm[Any]:
    """A progress bar on stderr for `total` units of work; use it in a `with` block and `update` it."""
    terminal = sys.stderr.isatty()
    kind = tqdm if terminal else _Lines
    return kind(
        total=total,
        initial=initial,
        desc=what,
        unit=f" {unit}",
        smoothing=0.05,
        mininterval=0.2 if terminal else LINE_EVERY,
        maxinterval=10 if terminal else LINE_EVERY,
        bar_format="{desc}: {percentage:3.0f}% "
        + ("|{bar}| " if terminal else "")
        + "{n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        file=sys.stderr,
    )
