"""Every command refused by the system, interrupted, or short of something: one line, nothing half-written, and on."""

from __future__ import annotations

import errno
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.fault_helpers import (
    FAIL,
    FSYNC,
    INTERRUPT,
    LINK,
    MKDIR,
    OPEN,
    READ,
    RENAME,
    TRACEBACK,
    UNLINK,
    WRITE,
    Ended,
    Fault,
    Faults,
)
from tests.kill_helpers import Undisturbed
from tests.kill_scenarios import SCENARIOS

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
EVERYWHERE = WRITE | READ | FSYNC | OPEN | RENAME | MKDIR | LINK | UNLINK
REFUSED = {  # what the system refuses, a word of the line that says so, and the calls
    "disk full": (errno.ENOSPC, r"disk is full|No space left", WRITE | FSYNC | MKDIR),
    "quota": (errno.EDQUOT, r"quota", WRITE | FSYNC | MKDIR),
    "writing fails": (errno.EIO, r"nput/output error", WRITE | FSYNC),
    "reading fails": (errno.EIO, r"nput/output error", READ),
    "read-only": (errno.EROFS, r"ead-only", RENAME | MKDIR | LINK),
    "permission lost": (errno.EACCES, r"ermission denied", OPEN | RENAME | MKDIR),
    "too many files": (errno.EMFILE, r"oo many open files", OPEN),
}


def check_line(ended: Ended, pattern: str, where: str) -> None:
    """One line of ours says what was refused, and what to do."""
    assert ended.status == 2, (where, ended.text)
    assert TRACEBACK not in ended.text, (where, ended.text)
    assert re.search(pattern, ended.text), (where, ended.text)
    assert "framebank: " in ended.text and "Try: " in ended.text, (where, ended.text)


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_the_system_refuses_ends_in_a_line(name: str, heavy: Faults, base: Path, tmp_path: Path) -> None:
    part = f"{tmp_path}/w/"
    undisturbed = Undisturbed(heavy, SCENARIOS[name], base, tmp_path / "w", part)
    rng = random.Random(5)
    for code, pattern, kinds in REFUSED.values():
        calls = undisturbed.calls(kinds)
        for at in {1, *rng.sample(range(1, calls + 1), min(calls, 2))}:
            ended = undisturbed.disturb(Fault(kinds, at, FAIL, code, part))
            if ended.status != 0:
                check_line(ended, pattern, f"{name} {code} at {at} of {calls}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_ctrl_c_ends_in_a_line(name: str, heavy: Faults, base: Path, tmp_path: Path) -> None:
    undisturbed = Undisturbed(heavy, SCENARIOS[name], base, tmp_path / "w")
    rng, statuses = random.Random(6), Counter[int]()
    calls = undisturbed.calls(EVERYWHERE)
    for at in rng.sample(range(1, calls + 1), min(calls, 8)):
        ended = undisturbed.disturb(Fault(EVERYWHERE, at, INTERRUPT))
        statuses[ended.status] += 1
        assert ended.status in (0, 130), (at, calls, ended.text)  # 0: a training that is stopped writes its run
        assert TRACEBACK not in ended.text and "Exception ignored" not in ended.text, (at, calls, ended.text)
        if ended.status == 130:
            assert ended.last_line.startswith("framebank: Interrupted."), (at, calls, ended.text)
    assert statuses[130]


@pytest.mark.parametrize("limits", [{"RLIMIT_FSIZE": 4096}, {"RLIMIT_NOFILE": 14}])
@pytest.mark.parametrize("name", SCENARIOS)
def test_limits_of_the_system_end_in_a_line(
    name: str, limits: dict[str, int], heavy: Faults, base: Path, tmp_path: Path
) -> None:
    undisturbed = Undisturbed(heavy, SCENARIOS[name], base, tmp_path / "w")
    ended = undisturbed.disturb(None, limits=limits)
    if ended.status != 0:
        check_line(ended, r"limit|oo many open files|oo large", f"{name} {limits}")


def test_folder_that_cannot_be_written_is_named(heavy: Faults, base: Path, tmp_path: Path) -> None:
    """Root, too, is refused: its privileges are given up."""
    for name, scenario in SCENARIOS.items():
        folder = tmp_path / name
        shutil.copytree(base, folder)
        scenario.prepare(folder)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        for parent in folder.parents[:3]:
            parent.chmod(0o755)
        ended = heavy.run(folder, scenario.arguments, unprivileged=True)
        assert TRACEBACK not in ended.text, ended.text
        if ended.status != 0:
            check_line(ended, r"ermission denied|cannot be written", name)
