"""Fixtures of the tests of fine-tuning; each module has its own run, as the fixture `trained`."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import pytest

from tests.finetune_runs import fuse


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the folder with the run, to work in."""
    shutil.copytree(trained, tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture(scope="module")
def fused(trained: Path) -> keras.Model:
    """The run's fused model; not to be changed."""
    return fuse(trained)
