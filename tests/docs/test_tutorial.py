"""The tutorial notebook has no output committed, and runs from top to bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
MAX_SECONDS = 300
MAX_PICTURE = 100_000  # characters


def test_cells_are_valid_and_hold_at_most_small_pictures() -> None:
    assert NOTEBOOK["nbformat"] == 4 and len(CODE) >= 8
    for cell in NOTEBOOK["cells"]:
        for output in cell.get("outputs", []):
            assert all(kind.startswith("image/") for kind in output["data"]), cell["id"]
            assert len(json.dumps(output)) < MAX_PICTURE, cell["id"]
    for code in CODE:
        compile(code, "tutorial.ipynb", "exec")


def test_links_of_the_notebook_lead_to_pages() -> None:
    text = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")
    pages = [part.split(")")[0] for part in text.split("](")[1:]]
    assert pages and all((ROOT / "docs" / page).is_file() for page in pages)


@pytest.mark.soak
def test_notebook_runs_from_top_to_bottom_in_five_minutes(tmp_path: Path) -> None:
    """In a fresh process, as plain Python: no cell needs the notebook's own display."""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(CODE)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert time.perf_counter() - start < MAX_SECONDS
    assert "predicted" in result.stdout.splitlines()[-1]
    test = json.loads((tmp_path / "runs" / "tutorial-ridge" / "metrics.json").read_text())["splits"]["test"]
    assert test["model"]["skill"] > 0.9
    assert (tmp_path / "runs" / "tutorial-ridge" / "fused.keras").is_file()
