"""`python -m framebank`, and the command `framebank`."""

import signal
import sys


def main() -> int:
    """Run the command that the process was started with; returns the exit status."""
    try:
        from framebank.cli import main as run  # here, so that Ctrl-C ends imports like anything else
    except KeyboardInterrupt:
        print("framebank: Interrupted.", file=sys.stderr)
        return 130
    status = run()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from what libraries do at the end
    return status


if __name__ == "__main__":
    sys.exit(main())
