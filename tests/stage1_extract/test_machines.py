"""Machines other than Linux with a local disk: their missing calls, file systems without locks, and consoles."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from filelock import Timeout

from features._common.atomic import atomic_write, exclusive_write_lock, fsync_path
from features._common.console import progress_bar, text_table
from features.errors import StoreError
from features.hdf5 import open_file
from framebank.cli import main
from tests.dataset_helpers import write_clip
from tests.extraction_helpers import CONFIG
from tests.helpers import ROOT

fcntl: Any = pytest.importorskip("fcntl", reason="Windows, which lacks these calls anyway")
LINUX_CALLS = ["sched_getaffinity", "sched_setaffinity", "posix_fadvise", "posix_fallocate", "sched_setscheduler"]
UNIX_CALLS = ["getpriority", "setpriority", "nice", "fork", "getuid", "geteuid", "killpg", "setsid"]


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks, as HDF5 and `flock` report it."""
    file = h5py.File

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def without_locks(name: Any, mode: str = "r", *arguments: Any, locking: bool | None = None, **options: Any) -> Any:
        if isinstance(name, (str, os.PathLike)) and locking is not False:
            refuse()
        return file(name, mode, *arguments, locking=locking, **options)

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(h5py, "File", without_locks)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config for a small data set."""
    write_clip(tmp_path / "data/Train/1")
    (tmp_path / "c.toml").write_text(CONFIG.format(data=tmp_path / "data"))
    return tmp_path / "c.toml"


@pytest.mark.filterwarnings("ignore:Failed to inspect CPU affinity")  # joblib, on Linux only
@pytest.mark.parametrize("calls", [LINUX_CALLS, LINUX_CALLS + UNIX_CALLS], ids=["macos", "windows"])
def test_extraction_needs_no_call_that_only_linux_has(
    calls: list[str], config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in calls:
        monkeypatch.delattr(os, name, raising=False)
    store = config.with_name("s.h5")
    assert main(["extract", "--config", str(config), "--store", str(store)]) == 0
    assert main(["info", "--store", str(store)]) == 0
    assert "3 frames" in capsys.readouterr().out


@pytest.mark.usefixtures("no_locks")
def test_extraction_works_where_files_cannot_be_locked(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = config.with_name("s.h5")
    assert main(["extract", "--config", str(config), "--store", str(store)]) == 0
    assert main(["verify", "--store", str(store)]) == 0
    assert "no locks on this file system" in capsys.readouterr().err
    assert not list(config.parent.glob("*.lock.file"))


@pytest.mark.filterwarnings("ignore")  # filelock's about ENOSYS
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_two_writers_exclude_each_other_without_locks(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    store = tmp_path / "s.h5"
    for _ in range(2):  # it is free again after the block
        message = "already being written by process"
        with exclusive_write_lock(store), pytest.raises(StoreError, match=message), exclusive_write_lock(store):
            pass


def test_another_error_of_a_lock_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="I/O error") as caught, exclusive_write_lock(tmp_path / "s.h5"):
        pass
    assert not isinstance(caught.value, Timeout)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has s.h5 open for writing."""
    with h5py.File(tmp_path / "s.h5", "w", libver=("v110", "v110")) as file:
        file.attrs["format"], file.attrs["version"] = "framebank", 1
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); input()"
    arguments = [sys.executable, "-c", code, str(tmp_path / "s.h5")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"open\n"
        yield process
        process.kill()


def test_store_that_another_program_writes_is_not_called_damaged(
    tmp_path: Path, writer: subprocess.Popen[bytes]
) -> None:
    message = r"s\.h5: another program has opened it for writing\. Try: close it there; .* h5clear"
    with pytest.raises(StoreError, match=message):
        open_file(tmp_path / "s.h5")
    writer.kill()  # it leaves its mark in the file
    writer.wait()
    with pytest.raises(StoreError, match=message):
        open_file(tmp_path / "s.h5")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.EBADF])
def test_folder_that_cannot_be_flushed_is_left_to_the_system(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = os.open

    def open_files(path: Path, flags: int, *arguments: int) -> int:
        if Path(path).is_dir():
            raise OSError(code, "a folder", str(path))
        return open_file(path, flags, *arguments)

    monkeypatch.setattr(os, "open", open_files)
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a").read_text() == "x"
    with pytest.raises(FileNotFoundError):
        fsync_path(tmp_path / "b")


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_consoles_show_a_question_mark_for_what_they_lack(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["info", "--store", "✓ → 速.h5"]) == 2
    print(text_table(["✓"], [["→"]]))
    with progress_bar(2, "✓ → 速", "frame") as bar:
        bar.update(2)
    for stream, text in ((out, b"?"), (err, b": no such store")):
        stream.flush()
        assert text in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_ci_runs_on_every_system_and_on_the_first_and_last_python() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    for name in ("ubuntu-latest", "macos-latest", "windows-latest", '"3.11"', '"3.13"'):
        assert name in workflow
