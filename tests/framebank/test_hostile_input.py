"""Fuzzed files of each kind are read or refused: no traceback, no hang over 20 s, at most 2 GB more memory.

`make test` takes some of each kind, in this process; `make soak` takes 10,000, in processes of their own, since a
library in C may crash.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.hostile_input import KINDS, bounded_memory, check

COUNTS = dict.fromkeys(KINDS, 300) | {"archive": 60, "image": 150, "video": 25, "run_folder": 20, "toml": 150}
SOAK_COUNT = 10_000
MEMORY = 3 << 30  # bytes of a process that has TensorFlow in it, and an input's 2 GB
NEED_KERAS = {"pth": 300, "keras_file": 12, "weights_h5": 12}
COUNTS |= NEED_KERAS


def test_every_kind_is_there() -> None:
    assert len(KINDS) >= 11


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_read_or_refused(kind: str, tmp_path: Path) -> None:
    check(kind, 0, tmp_path)  # libraries that are loaded only now are not an input's memory
    with bounded_memory():
        found = {number: text for number in range(COUNTS[kind]) if (text := check(kind, number, tmp_path))}
    assert found == {}


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_hostile_inputs(kind: str, tmp_path: Path) -> None:
    first, found = 0, []
    while first < SOAK_COUNT:
        command = [sys.executable, "-m", "tests.hostile_input", kind, str(first), str(SOAK_COUNT)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found += [line for line in lines if "found" in line]
        last = max((line["at"] for line in lines if "at" in line), default=first)
        if done.returncode == 0:
            assert lines[-1]["peak"] * 1024 < MEMORY
            break
        found.append({"number": last, "found": f"ended with {done.returncode}: {done.stderr[-2000:]}"})
        first = last + 10
    assert found == []
