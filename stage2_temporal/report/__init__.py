"""The report of a run: one self-contained HTML file that any browser opens, offline, with or without JavaScript."""

from __future__ import annotations

from pathlib import Path

from features._common.atomic import atomic_write
from features.store import Store
from stage2_temporal.report.page import render_page
from stage2_temporal.runs.folder import REPORT
from stage2_temporal.runs.results import read_results


def write_report(run: Path, store: Store) -> Path:
    """Write `report.html` into a run's folder, with frames from the store that it was trained on; return its path.

    Raises:
        DataError: a file of the run is missing or is not as training writes it.
        StoreError: the store lacks a sequence that the run predicted.
    """
    html = render_page(read_results(run), store)
    path = run / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path
