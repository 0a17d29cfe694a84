"""Commands that are killed, interrupted or refused: nothing finished is lost, one line says why, the next one works."""

from __future__ import annotations

import errno
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from features._common.atomic import sweep
from features.sequences import FrameSequence
from features.store import Store
from tests.fault_helpers import (
    AT_CALLS,
    FAIL,
    FSYNC,
    INTERRUPT,
    KILL,
    LINK,
    MKDIR,
    OPEN,
    READ,
    RENAME,
    TRACEBACK,
    WRITE,
    Fault,
    Faults,
    left_behind,
    store_values,
)
from tests.helpers import write_store
from tests.kill_helpers import STORE, Scenario, Undisturbed

NEW_FOLDER = """
from pathlib import Path
from features._common import folders
{without_exchange}
with folders.{function}(Path("r")) as folder:
    (folder / "who").unlink(missing_ok=True)
    (folder / "who").write_text("new")
    (folder / "more").mkdir(exist_ok=True)
    (folder / "more" / "b").write_text("new")
"""
HOLD_LOCK = """
import time
from pathlib import Path
from features._common.atomic import exclusive_write_lock
{without_locks}
with exclusive_write_lock(Path("a.h5")):
    Path("held").touch()
    time.sleep(60)
"""
WITHOUT_LOCKS = """
import errno, fcntl
def refuse(*_): raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = refuse
"""


def small_store(path: Path, *, packed: bool = True) -> Path:
    sequences = [FrameSequence(f"Train/{i}", "train", 2, 10.0, (64, 36), f"digest{i}") for i in (1, 2)]
    maps = np.random.default_rng(0).normal(size=(4, 2, 3, 4)).astype(np.float32)
    return write_store(path, sequences, {"appearance": maps}, packed=packed)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_a_command_killed_at_any_step_loses_nothing(step: int, light: Faults, tmp_path: Path) -> None:
    """At every `step`-th rename, fsync and unlink, while another command or the same one comes next."""
    kill_at_calls("pack", light, tmp_path, step)


@pytest.mark.soak
def test_another_command_killed_at_any_step_loses_nothing(light: Faults, tmp_path: Path) -> None:
    kill_at_calls("unpack", light, tmp_path, step=1)


def kill_at_calls(name: str, faults: Faults, tmp_path: Path, step: int) -> None:
    """Kill a command on a store again and again."""
    small_store(tmp_path / "base" / STORE, packed=name == "unpack")
    undisturbed = Undisturbed(faults, Scenario([name, "--store", STORE], (STORE,)), tmp_path / "base", tmp_path)
    calls = undisturbed.calls(AT_CALLS)
    assert calls >= 4
    for at in range(1, calls + 1, step):
        assert undisturbed.kill(Fault(AT_CALLS, at, KILL), other_first=at % 2 == 0)


@pytest.mark.parametrize("function", ["atomic_folder", pytest.param("updated_folder", marks=pytest.mark.soak)])
@pytest.mark.parametrize("exchanges", [True, False])
def test_a_replaced_folder_is_never_lost(function: str, exchanges: bool, light: Faults, tmp_path: Path) -> None:
    """Killed at any step; where folders cannot be exchanged, the next command brings the old one back."""
    patch = "" if exchanges else "folders._renameat2 = lambda: None"
    code = NEW_FOLDER.format(function=function, without_exchange=patch)
    kinds, gone = AT_CALLS | MKDIR | LINK, 0
    for at in range(60):
        folder = tmp_path / str(at)
        (folder / "r" / "more").mkdir(parents=True)
        (folder / "r" / "who").write_text("old")
        (folder / "r" / "more" / "a").write_text("old")
        ended = light.run(folder, ["-c", code], Fault(kinds, at, KILL))
        gone += not (folder / "r").exists()
        sweep(folder)
        names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        new = ["r/more/b", "r/who"] if function == "atomic_folder" else ["r/more/a", "r/more/b", "r/who"]
        if ended.status == 0:
            assert names == new, at
            if at > 0:
                break
        else:
            assert ended.status == -9, ended.text
            text = (folder / "r" / "who").read_text()
            assert (names, text) in ((["r/more/a", "r/who"], "old"), (new, "new")), (at, names)
    assert 4 < at < 59
    assert gone == (not exchanges)  # between the two renames only


def test_files_that_others_write_to_a_folder_while_it_is_updated_stay(tmp_path: Path) -> None:
    from features._common.atomic import atomic_write
    from features._common.folders import updated_folder

    run = tmp_path / "r"
    for name in ("a", "b"):
        with atomic_write(run / name) as temporary:
            temporary.write_text("old")
    with atomic_write(run / "predicted" / "d") as other, updated_folder(run) as folder:
        for path, text in ((folder / "a", "ours"), (run / "a", "theirs"), (run / "b", "theirs"), (run / "c", "theirs")):
            with atomic_write(path) as temporary:
                temporary.write_text(text)
        other.write_text("theirs")
    texts = {str(p.relative_to(run)): p.read_text() for p in run.rglob("*") if p.is_file()}
    assert texts == {"a": "ours", "b": "theirs", "c": "theirs", "predicted/d": "theirs"}
    assert not left_behind(tmp_path)


@pytest.mark.parametrize("locks", [True, False])
def test_a_second_writer_names_the_first(locks: bool, light: Faults, tmp_path: Path) -> None:
    """By process, host and command; once that was killed, nothing is left of its lock after the next command."""
    without = "" if locks else WITHOUT_LOCKS
    process = light.start(tmp_path, ["-c", HOLD_LOCK.format(without_locks=without)])
    wait_for(tmp_path / "held")
    ended = light.run(tmp_path, ["-c", HOLD_LOCK.format(without_locks=without)])
    assert ended.status == 2
    holder = f"framebank: a.h5: already being written by process {process} on {socket.gethostname()} since "
    assert ended.last_line.startswith(holder), ended.text
    assert ": framebank -c" in ended.text and "Try: wait for it to end" in ended.text
    light.kill(process)
    light.wait(process)
    assert left_behind(tmp_path)
    (tmp_path / "uv.lock").touch()  # of another program
    code = f"{without}\nfrom pathlib import Path\nfrom features._common.atomic import sweep\nsweep(Path())"
    assert light.run(tmp_path, ["-c", code]).status == 0
    assert left_behind(tmp_path) == ["uv.lock"]


def test_a_lock_left_on_another_host_is_named_with_the_file_to_delete(light: Faults, tmp_path: Path) -> None:
    (tmp_path / "a.h5.lock.file").write_text("4711\nelsewhere\n")
    (tmp_path / "a.h5.lock.holder").write_text("process 4711 on elsewhere since 2026-01-01 00:00:00: framebank extract")
    code = HOLD_LOCK.format(without_locks=WITHOUT_LOCKS)
    ended = light.run(tmp_path, ["-c", code])
    assert ended.status == 2
    assert "process 4711 on elsewhere since" in ended.last_line and "framebank extract" in ended.last_line
    assert "if no such process is left on that host, rm a.h5.lock.file" in ended.last_line


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_reader_reads_the_old_store_to_the_end(light: Faults, tmp_path: Path) -> None:
    """Whatever replaces the store meanwhile: a packed one by an index, and an index by a packed one."""
    for packed, command in ((True, "unpack"), (False, "pack")):
        path = small_store(tmp_path / command / "s.h5", packed=packed)
        expected = store_values(path)
        with Store(path) as reader:
            ended = light.run(tmp_path, [command, "--store", str(path)])
            assert ended.status == 0, ended.text
            assert reader.is_packed == packed
            rows = np.arange(reader.frames)
            assert reader.read("appearance", rows).tobytes() == expected["appearance"]
            assert [reader.thumbnail(row) for row in rows.tolist()] == expected["rest"][0]
        assert store_values(path) == expected


REFUSED = {  # what the system refuses → a word of the line, and the calls
    errno.ENOSPC: ("disk is full", WRITE | FSYNC),
    errno.EDQUOT: ("quota", WRITE | FSYNC),
    errno.EFBIG: ("limit", WRITE),
    errno.EIO: ("disk fails", WRITE | FSYNC | READ),
    errno.EACCES: ("ermission denied", OPEN | RENAME | MKDIR | LINK),
    errno.EROFS: ("read-only", OPEN | RENAME | MKDIR),
    errno.EMFILE: ("Too many open files", OPEN),
}


SHORT = (errno.ENOSPC, errno.EACCES)  # in `make test`


@pytest.mark.parametrize("code", [c if c in SHORT else pytest.param(c, marks=pytest.mark.soak) for c in REFUSED])
def test_what_the_system_refuses_is_said_in_a_line(code: int, light: Faults, tmp_path: Path) -> None:
    """At a few calls of a command on a store, which is then what it was, and of the next command."""
    word, kinds = REFUSED[code]
    path = small_store(tmp_path / "w" / "s.h5", packed=False)
    before, names = store_values(path), sorted(p.name for p in path.parent.rglob("*"))
    command = ["pack", "--store", "w/s.h5"]
    for at in (1, 2, 5, 9):
        ended = light.run(tmp_path, command, Fault(kinds, at, FAIL, code, "w/"))
        assert ended.status == 2, (at, ended.text)
        assert word in ended.last_line and "w/s.h5" in ended.last_line, (at, ended.text)
        assert TRACEBACK not in ended.text and len(ended.text.splitlines()) == 1, (at, ended.text)
        assert store_values(path) == before
    assert light.run(tmp_path, ["info", "--store", "w/s.h5"]).status == 0
    assert sorted(p.name for p in path.parent.rglob("*")) == names
    assert light.run(tmp_path, command).status == 0
    assert store_values(path) == before


def test_ctrl_c_at_any_write_ends_in_a_line(light: Faults, tmp_path: Path) -> None:
    """HDF5 calls back into Python to write; an exception there would crash it."""
    interrupt_at_calls(light, tmp_path, step=59)


@pytest.mark.soak
def test_ctrl_c_at_every_write_ends_in_a_line(light: Faults, tmp_path: Path) -> None:
    interrupt_at_calls(light, tmp_path, step=1)


def interrupt_at_calls(faults: Faults, tmp_path: Path, step: int) -> None:
    """Send Ctrl-C to a command at every `step`-th call that reads or writes."""
    base, kinds = small_store(tmp_path / "base" / "s.h5", packed=False).parent, WRITE | READ | FSYNC | RENAME
    calls = faults.run(shutil.copytree(base, tmp_path / "0"), ["pack", "--store", "s.h5"], Fault(0)).calls(kinds)
    assert calls > 30
    for at in range(1, calls + 1, step):
        folder = shutil.copytree(base, tmp_path / str(at))
        ended = faults.run(folder, ["pack", "--store", "s.h5"], Fault(kinds, at, INTERRUPT))
        assert ended.status in (0, 130), (at, ended.text)
        assert TRACEBACK not in ended.text and "Error" not in ended.text, (at, ended.text)
        assert ended.status == 0 or ended.last_line.startswith("framebank: Interrupted."), (at, ended.text)
        assert not left_behind(folder)
