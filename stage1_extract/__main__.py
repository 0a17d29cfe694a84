"""`python -m stage1_extract`: the commands of stage one, frames in, store out. `framebank` has them too."""

from __future__ import annotations

import sys

from framebank.cli import run
from framebank.commands import STAGE_ONE


def main(argv: list[str] | None = None) -> int:
    """Run a command of stage one; returns the exit status."""
    return run(argv, STAGE_ONE, prog="python -m stage1_extract")


if __name__ == "__main__":
    sys.exit(main())
