"""What every test needs: TensorFlow's and NumPy's settings before they load, hypothesis' profile, real material."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # there is a process per core already

import pytest
from hypothesis import settings

from features._common.console import log_to_stderr
from tests.helpers import CHROMIUM, REAL

settings.register_profile("noisy machines", deadline=None)
settings.load_profile("noisy machines")
log_to_stderr()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to Ctrl-C
gc.disable()  # until all tests are imported, and with them TensorFlow


def pytest_collection_finish() -> None:
    """Search for reference cycles again, but not among the million objects of imported modules, and less often.

    TensorFlow makes millions of objects per graph: at Python's own thresholds, the search takes a tenth of the time.
    """
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture
def real() -> Path:
    """The folder of real material; the test is skipped where it is absent."""
    if not REAL.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return REAL


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, as Playwright's `Browser`."""
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
    ]  # fmt: skip
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()
