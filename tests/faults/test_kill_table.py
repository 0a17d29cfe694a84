"""Every command killed again and again, at system calls and at random moments: the table of kills."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.fault_helpers import AT_CALLS, KILL, Fault, Faults
from tests.kill_helpers import Undisturbed
from tests.kill_scenarios import SCENARIOS

AT_A_CALL, AT_RANDOM = 5, 10  # kills of each command; of all together, 200 and more, 60 of them at calls


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_killed_command_loses_nothing_finished(name: str, heavy: Faults, base: Path, tmp_path: Path) -> None:
    """Prints a row of the table: command, kills at a rename, fsync or unlink, and kills at a random moment."""
    rng, kills = random.Random(17), Counter[str]()
    undisturbed = Undisturbed(heavy, SCENARIOS[name], base, tmp_path / "w")
    calls = range(1, undisturbed.calls(AT_CALLS) + 1)
    for at in rng.sample(calls, min(len(calls), AT_A_CALL)):
        assert undisturbed.kill(Fault(AT_CALLS, at, KILL), other_first=at % 2 == 0)
        kills["at a call"] += 1
    while kills["at random"] < AT_RANDOM:
        moment = rng.uniform(0, undisturbed.seconds)
        kills["at random"] += undisturbed.kill(None, moment, other_first=rng.random() < 0.5)
    print(f"\n| {name} | {kills['at a call']} | {kills['at random']} |", flush=True)
