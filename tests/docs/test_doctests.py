"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGES = ("features", "framebank", "stage1_extract", "stage2_temporal")


def modules_with_doctests() -> list[str]:
    """Names of all modules that have an example in a docstring."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(_module_name(path) for path in files if ">>> " in path.read_text(encoding="utf-8"))


def _module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", modules_with_doctests())
def test_docstring_examples_give_the_output_shown(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
