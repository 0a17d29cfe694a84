"""The number of usable CPU cores."""

from __future__ import annotations


def cpu_count() -> int:
    """Return the number of CPU cores this process may use within its affinity and its container's limits."""
    import joblib  # here, because importing it takes 0.1 s

    return int(joblib.cpu_count())
