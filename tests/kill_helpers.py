"""Killing a command and checking what is left: nothing finished is lost, and the next command goes on."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features.shard_folder import used_shards
from tests.fault_helpers import Ended, Fault, Faults, left_behind, processes_of, results, store_values

SECONDS_TO_END = 5  # for the workers of a driver that was killed
STORE = "stores/task.h5"


@dataclass(frozen=True)
class Scenario:
    """A command to kill, in a copy of the base folder."""

    arguments: list[str]
    units: tuple[str, ...]  # files and folders, each of which is the old or the new one at any moment
    prepare: Callable[[Path], object] = lambda folder: None
    next: tuple[str, ...] = ("info", "--store", STORE)  # a command of another kind that uses the same folder


def content(folder: Path, unit: str) -> dict[str, Any]:
    """What a unit holds; empty if there is none."""
    path = folder / unit
    if path.suffix == ".h5":
        return store_values(path) if path.exists() else {}
    found = results(path.parent if path.is_file() else path)
    own = {name: value for name, value in found.items() if not path.is_file() or name == path.name}
    return {name: v for name, v in own.items() if not name.startswith(("finetune.parts", ".", "finetune.lock"))}


def everything(folder: Path) -> dict[str, Any]:
    """All that a folder holds, but shards, of which only the names are checked."""
    if (folder / STORE).exists():
        names = {path.name for path in (folder / f"{STORE}.shards").glob("[!.]*.h5")}
        assert names == {name for name in used_shards(folder / STORE) if name in names}
    found = {name: v for name, v in results(folder).items() if ".shards/" not in name and not name.endswith(".scan")}
    return found | {STORE: store_values(folder / STORE) if (folder / STORE).exists() else None}


def state(folder: Path) -> str:
    """A digest of all files and folders, by which a command knows what to do."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"\n{path.relative_to(folder)} {path.is_dir()} ".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Undisturbed:
    """What a scenario's folder holds before and after its command, and how many calls that takes on some paths."""

    def __init__(self, faults: Faults, scenario: Scenario, base: Path, root: Path, part: str = "") -> None:
        self.scenario, self._faults, self._base, self._root = scenario, faults, base, root
        folder = self.new_folder("undisturbed")
        self.before = {unit: content(folder, unit) for unit in scenario.units}
        self._goes_on = {state(folder)}  # the states from which the command is known to do as it should
        started = time.monotonic()
        ended = faults.run(folder, scenario.arguments, Fault(0, part=part))
        assert ended.status == 0, ended.text
        self.seconds, self.calls = time.monotonic() - started, ended.calls
        self.after = {unit: content(folder, unit) for unit in scenario.units}
        self.all = everything(folder)
        assert not left_behind(folder)

    def new_folder(self, name: str) -> Path:
        """A copy of the base folder, as the command finds it."""
        folder = self._root / name
        shutil.copytree(self._base, folder)
        self.scenario.prepare(folder)
        return folder

    def kill(self, fault: Fault | None, seconds: float = 0.0, *, other_first: bool = False) -> bool:
        """Kill the command, check what is left, and let it go on; return whether it was killed."""
        ended = self.disturb(fault, seconds, other_first=other_first)
        assert ended.status in (0, -9), ended.text
        return ended.status == -9

    def disturb(
        self, fault: Fault | None, kill_after: float | None = None, *, other_first: bool = False, **request: Any
    ) -> Ended:
        """Run the command with a fault, or kill it after a time; check what is left, and let it go on."""
        folder, arguments = self.new_folder("disturbed"), self.scenario.arguments
        process = self._faults.start(folder, arguments, fault, **request)
        if fault is None and kill_after is not None:
            time.sleep(kill_after)
            self._faults.kill(process)
        ended = self._faults.wait(process)
        where = f"{arguments} {fault} {kill_after}: {ended.text}"
        for unit in self.scenario.units if "could not be decoded and were skipped" not in ended.text else ():
            assert content(folder, unit) in (self.before[unit], self.after[unit]), (unit, where)
        end = time.monotonic() + SECONDS_TO_END
        while processes_of(process):
            assert time.monotonic() < end, (processes_of(process), where)
            time.sleep(0.05)
        if other_first:
            other = self._faults.run(folder, self.scenario.next)
            assert other.status == 0, (where, other.text)
            assert not (left := left_behind(folder)), (left, where)
        if (found_state := state(folder)) not in self._goes_on:
            again = self._faults.run(folder, arguments)
            assert again.status == 0, (where, again.text)
            assert not (left := left_behind(folder)), (left, where)
            found = everything(folder)
            different = [name for name in self.all.keys() | found.keys() if found.get(name) != self.all.get(name)]
            assert not different, (different, where)
            self._goes_on.add(found_state)
        shutil.rmtree(folder)
        return ended
