"""Imports of heavy libraries: silent, and without Python's search for reference cycles."""

from __future__ import annotations

import gc
import logging

import pytest

from features._common.console import logger, quiet_imports


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_search_for_cycles_rests_during_imports_alone(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "level", level)
    with pytest.raises(ImportError), quiet_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
