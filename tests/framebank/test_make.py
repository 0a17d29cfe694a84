"""The Makefile: what a user gives it reaches the command as it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (ROOT / ".venv" / "bin" / "framebank").exists(), reason="needs make and .venv"
)


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make without setting up `.venv` again."""
    return subprocess.run(
        ["make", "--old-file", ".venv/.ready", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_paths_may_have_any_character(tmp_path: Path) -> None:
    name = """Bob's "clips" in $HOME;  exit 0"""
    (tmp_path / name).mkdir()
    path = str(tmp_path / name / "nothing").replace("$", "$$")  # as make wants a dollar sign
    plain = path.replace("$$", "$")
    assert f"{plain}: no such store" in make("info", f"STORE={path}").stderr
    assert f"{plain}: no such config" in make("features", f"CONFIG={path}").stderr
    assert f"{plain} is not a run" in make("report", f"RUN={path}").stderr
    config = tmp_path / "c.toml"
    config.write_text('[data]\nlayout = "competition"\n')
    done = make("features", f"CONFIG={config}", f"DATA={path}", f"STORE={tmp_path}/s.h5")
    assert plain in done.stderr and "Try: " in done.stderr


def test_tilde_is_the_home_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}/s.h5: no such store" in make("info", "STORE=~/s.h5", HOME=str(tmp_path)).stderr


def test_store_is_named_after_the_config() -> None:
    assert "stores/video.h5: no such store" in make("info", "CONFIG=configs/video.toml").stderr


def test_make_targets_on_a_run_require_run() -> None:
    for target in ("predict", "export", "report"):
        done = make(target)
        assert done.returncode != 0
        assert f"Try: make {target} RUN=NAME" in done.stdout


def test_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", text, re.MULTILINE)
    shown = re.findall(r"^  make ([\w-]+)", make("help").stdout, re.MULTILINE)
    assert shown == targets
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None and {*phony[1].split()} == {*targets}
