"""Progress of long work: a bar with rate and remaining time; in a log file, a line every few seconds."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

SECONDS_PER_LINE = 15.0  # in a log


class _ProgressLines(tqdm):  # type: ignore[type-arg]
    """A progress bar that prints a new line each time instead of redrawing the last one."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the current state on a new line."""
        if self.n > self.initial or self.n == self.total:
            print(msg if msg is not None else str(self), file=self.fp, flush=True)

    def close(self) -> None:
        """Print the final state, without the empty line that tqdm adds."""
        if not self.disable:
            self.display()
            self.disable = True
            self._decr_instances(self)  # type: ignore[attr-defined]  # its stubs leave this out


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0) -> tqdm[Any]:
    """A progress bar on stderr for `total` units of work; use it in a `with` block and call its `update`."""
    terminal = sys.stderr.isatty()
    bar = tqdm if terminal else _ProgressLines
    return bar(
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
