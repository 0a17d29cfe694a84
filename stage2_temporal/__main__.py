"""`python -m stage2_temporal`: the commands of stage two, store in, models out. `framebank` has them too."""

from __future__ import annotations

import sys

from framebank.cli import run
from framebank.commands import STAGE_TWO


def main(argv: list[str] | None = None) -> int:
    """Run a command of stage two; returns the exit status."""
    return run(argv, STAGE_TWO, prog="python -m stage2_temporal")


if __name__ == "__main__":
    sys.exit(main())
