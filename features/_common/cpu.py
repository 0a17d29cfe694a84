"""How many CPU cores there are to use."""

from __future__ import annotations


def cpu_count() -> int:
    """Number of CPU cores this process may use, by its affinity and the limits of its container; at least 1."""
    import joblib  # here, because importing it takes 0.1 s

    return int(joblib.cpu_count())
