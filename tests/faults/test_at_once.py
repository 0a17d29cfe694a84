"""Several commands at once, and processes that commands start: one works, the others name it; no orphan stays."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault_helpers import TRACEBACK, Faults, left_behind, processes_of
from tests.kill_helpers import SECONDS_TO_END
from tests.kill_scenarios import CONFIG, SCENARIOS, SWEEP

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
RENDER = ["render", "sample"]
RUN_SWEEP = ["sweep", *CONFIG, "--sweep", "sweep.toml"]
ENTRIES = '"head.name" = "ridge"\n"head.alpha" = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0]\n'


def copy(base: Path, tmp_path: Path) -> Path:
    """The base folder, with a sweep that has two processes and six entries."""
    folder = shutil.copytree(base, tmp_path / "w")
    (folder / "sweep.toml").write_text(SWEEP.format(jobs=2).rpartition("[[entries]]")[0] + "[[entries]]\n" + ENTRIES)
    return folder


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def workers(process: int) -> list[int]:
    """The workers that a command has started, without loky's tracker of resources."""
    running = [p for p in processes_of(process) if p != process]
    return [p for p in running if b"resource_tracker" not in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.mark.parametrize("arguments", [RUN_SWEEP, RENDER], ids=["sweep", "render"])
def test_no_process_outlives_a_driver_that_was_killed(
    arguments: list[str], heavy: Faults, base: Path, tmp_path: Path
) -> None:
    folder = copy(base, tmp_path)
    for seconds in (0.0, 0.5, 3.0):
        process = heavy.start(folder, arguments)
        wait_until(lambda: len(workers(process)) >= 2)  # noqa: B023  # called at once
        time.sleep(seconds)
        heavy.kill(process)
        heavy.wait(process)
        end = time.monotonic() + SECONDS_TO_END
        while processes_of(process):
            assert time.monotonic() < end, processes_of(process)
            time.sleep(0.05)
    ended = heavy.run(folder, arguments)
    assert ended.status == 0, ended.text
    assert not left_behind(folder)


@pytest.mark.parametrize("arguments", [RUN_SWEEP, RENDER], ids=["sweep", "render"])
def test_a_worker_that_is_killed_ends_the_command_in_a_line(
    arguments: list[str], heavy: Faults, base: Path, tmp_path: Path
) -> None:
    """As the system does when memory runs out."""
    folder = copy(base, tmp_path)
    process = heavy.start(folder, arguments)
    wait_until(lambda: len(workers(process)) >= 2)
    time.sleep(1)
    os.kill(workers(process)[0], signal.SIGKILL)
    ended = heavy.wait(process)
    assert ended.status == 2, ended.text
    assert "killed, most likely because memory ran out" in ended.last_line and TRACEBACK not in ended.text
    ended = heavy.run(folder, arguments)
    assert ended.status == 0, ended.text
    assert not left_behind(folder)


@pytest.mark.parametrize("arguments", [RUN_SWEEP, RENDER], ids=["sweep", "render"])
def test_ctrl_c_ends_all_processes(arguments: list[str], heavy: Faults, base: Path, tmp_path: Path) -> None:
    """A terminal sends it to all of them."""
    folder = copy(base, tmp_path)
    images = len(list(folder.rglob("*.jpg")))
    process = heavy.start(folder, arguments)
    wait_until(lambda: len(workers(process)) >= 2)
    if arguments == RENDER:
        wait_until(lambda: len(list(folder.rglob("*.jpg"))) > images)
    else:
        time.sleep(2)
    os.killpg(process, signal.SIGINT)
    ended = heavy.wait(process)
    assert ended.status == 130, ended.text
    assert ended.last_line.startswith("framebank: Interrupted.") and TRACEBACK not in ended.text
    wait_until(lambda: not processes_of(process))
    assert heavy.run(folder, arguments).status == 0
    assert not left_behind(folder)


@pytest.mark.parametrize("name", ["extract", "sweep", "finetune"])
def test_a_second_command_names_the_first(name: str, heavy: Faults, base: Path, tmp_path: Path) -> None:
    folder = copy(base, tmp_path)
    SCENARIOS[name].prepare(folder)
    arguments = SCENARIOS[name].arguments
    process = heavy.start(folder, arguments)
    wait_until(lambda: list(folder.rglob("*.lock.holder")))
    os.kill(process, signal.SIGSTOP)  # so that it cannot end before the second one has tried
    second = heavy.run(folder, arguments)
    os.kill(process, signal.SIGCONT)
    first = heavy.wait(process)
    assert first.status == 0, first.text
    assert second.status == 2 and TRACEBACK not in second.text, second.text
    assert f"already being written by process {process} on {socket.gethostname()} since" in second.last_line
    assert f"framebank {name}" in second.last_line
    assert not left_behind(folder)


def test_two_trainings_of_one_name_both_finish(heavy: Faults, base: Path, tmp_path: Path) -> None:
    folder = copy(base, tmp_path)
    processes = [heavy.start(folder, ["train", *CONFIG, "--run", "new", "--train.seed", seed]) for seed in ("1", "2")]
    for process in processes:
        ended = heavy.wait(process)
        assert ended.status == 0, ended.text
    for name in ("new", "new-2"):
        assert heavy.run(folder, ["report", "--run", name]).status == 0
    assert not left_behind(folder)
