"""`python -m framebank`: the same as the command `framebank`."""

import sys

from framebank.cli import main

if __name__ == "__main__":
    sys.exit(main())
