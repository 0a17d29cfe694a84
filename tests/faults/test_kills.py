"""Commands that are killed at each step: nothing finished is lost, and the next one goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from features.sequences import FrameSequence
from tests.fault_helpers import AT_CALLS, KILL, Fault, Faults, fault_server
from tests.helpers import write_store
from tests.kill_helpers import STORE, Scenario, Undisturbed


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A server without TensorFlow."""
    with fault_server(tmp_path_factory.mktemp("light")) as faults:
        yield faults


@pytest.mark.parametrize("name", ["pack", "unpack"])
def test_a_command_killed_at_any_step_loses_nothing(name: str, light: Faults, tmp_path: Path) -> None:
    """At each rename, fsync and unlink in turn, while another command or the same one comes next."""
    sequences = [FrameSequence(f"Train/{i}", "train", 2, 10.0, (64, 36), f"digest{i}") for i in (1, 2)]
    maps = np.random.default_rng(0).normal(size=(4, 2, 3, 4)).astype(np.float32)
    write_store(tmp_path / "base" / STORE, sequences, {"appearance": maps}, packed=name == "unpack")
    scenario = Scenario([name, "--store", STORE], (STORE,))
    undisturbed = Undisturbed(light, scenario, tmp_path / "base", tmp_path)
    assert undisturbed.calls >= 4
    for at in range(1, undisturbed.calls + 1):
        assert undisturbed.kill(Fault(AT_CALLS, at, KILL), other_first=at % 2 == 0)
