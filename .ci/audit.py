"""Ask a vulnerability service about the packages in requirements.lock; without one, say so in one line.

Part of `make check`. Ends with status 1 if a locked version has a known weakness.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--requirement", "requirements.lock", "--require-hashes", "--disable-pip"),
    *("--progress-spinner", "off", "--format", "json"),
)
SECONDS = 120


def summarise(report: dict[str, Any]) -> tuple[str, int]:
    """What to print of a report of pip-audit, and the exit status."""
    packages = report.get("dependencies", [])
    answered = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {weakness['id']}, "
        f"corrected in {', '.join(weakness['fix_versions']) or 'no version yet'}"
        for package in answered
        for weakness in package["vulns"]
    ]
    if found:
        return "\n".join([*found, "Try: make lock"]), 1
    if not answered:
        return "pip-audit: skipped, since no vulnerability service answers here", 0
    return f"pip-audit: no known weakness in {len(answered)} of {len(packages)} packages", 0


def main() -> int:
    try:
        # the command has no part from outside
        result = subprocess.run(COMMAND, capture_output=True, text=True, timeout=SECONDS, check=False)  # noqa: S603
        report = json.loads(result.stdout)
    except (subprocess.TimeoutExpired, ValueError):  # not installed, or no network
        report = {}
    text, status = summarise(report)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
