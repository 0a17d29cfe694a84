"""Commands that run with a fault: killed, interrupted or refused at a system call, or at a random moment."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features.store import Store
from tests.helpers import ROOT

RENAME, FSYNC, UNLINK, WRITE, READ, OPEN, MKDIR, LINK = (1 << i for i in range(8))
AT_CALLS = RENAME | FSYNC | UNLINK
KILL, INTERRUPT, FAIL = 1, 2, 3
NOBODY = 65534
TRACEBACK = "Traceback (most recent call last)"
LEFT_BEHIND = (".tmp", ".partial", ".lock", ".holder", ".lock.file")


@dataclass(frozen=True)
class Fault:
    """A fault at the `at`-th system call of some `kinds` on paths that contain `part`; 0: they are only counted."""

    kinds: int
    at: int = 0
    action: int = KILL
    code: int = errno.EIO
    part: str = ""


@dataclass
class Ended:
    """How a command has ended."""

    status: int  # negative: by a signal
    text: str  # what it printed
    counts: list[int]  # the calls of each kind, on the fault's paths

    def calls(self, kinds: int) -> int:
        """The number of calls of some kinds."""
        return sum(count for i, count in enumerate(self.counts) if kinds >> i & 1)

    @property
    def last_line(self) -> str:
        """The last line that it printed, where an error is."""
        return (self.text.strip().splitlines() or [""])[-1]


@dataclass
class Faults:
    """Runs commands in processes that a server forks."""

    server: subprocess.Popen[str]
    log: Path
    count: int = 0
    running: dict[int, Path] = field(default_factory=dict)

    def start(self, folder: Path, arguments: Sequence[str], fault: Fault | None = None, **request: Any) -> int:
        """Start a command in a folder; return its process."""
        self.count += 1
        log = self.log / f"{self.count}.log"
        request |= {"folder": str(folder), "arguments": list(arguments), "log": str(log)}
        if fault is not None:
            request["fault"] = (fault.kinds, fault.at, fault.action, fault.code, fault.part)
        process = int(self._ask({"start": request}))
        self.running[process] = log
        return process

    def wait(self, process: int) -> Ended:
        """Wait until a process has ended."""
        status, counts = self._ask({"wait": process})
        return Ended(status, self.running.pop(process).read_text(errors="replace"), counts)

    def run(self, folder: Path, arguments: Sequence[str], fault: Fault | None = None, **request: Any) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(folder, arguments, fault, **request))

    def kill(self, process: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process, but not to those that it has started."""
        os.kill(process, number)  # one that has ended stays a zombie until the server waits for it

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())


@contextmanager
def fault_server(folder: Path, *libraries: str) -> Iterator[Faults]:
    """Compile the library of faults, and start a server with it; the test is skipped where that cannot be done."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = folder / "faults.so"
    source = ROOT / "tests" / "faults.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.fault_server", *libraries]
    (folder / "logs").mkdir()
    (folder / "logs").chmod(0o777)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            yield Faults(server, folder / "logs")
        finally:
            server.kill()


def left_behind(folder: Path) -> list[str]:
    """Unfinished files and folders, and locks, anywhere in a folder."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if (path.name.startswith(".") and not path.name.startswith(".replaced-")) or path.name.endswith(LEFT_BEHIND)
    ]


def store_values(path: Path) -> dict[str, Any]:
    """All that a store holds, whether it is packed or not."""
    with Store(path) as store:
        rows = np.arange(store.frames)
        values: dict[str, Any] = {name: store.read(name, rows).tobytes() for name in store.streams}
        top = store.top()
        weights = [] if top is None else [w.tobytes() for w in top.weights]
        thumbnails = [store.thumbnail(row) for row in rows.tolist()]
        tracks = {key: track.boxes.tobytes() for key, track in store.tracks().items()}
        return (
            values
            | {"header": replace(store.header, versions={}), "tables": (repr(store.sequences), weights)}
            | {"rest": (thumbnails, tracks, store.partial_streams)}
        )


def processes_of(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def results(folder: Path) -> dict[str, Any]:
    """All that commands have made in a folder, without times, by path; two that are equal have equal results."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".h5":
            found[name] = "store"
        elif path.suffix == ".keras":
            found[name] = _model_content(path)
        elif path.suffix == ".json" and "saved_model" not in name:
            found[name] = _without_times(json.loads(path.read_text()))
        elif path.name in ("history.csv", "finetune.csv", "leaderboard.csv"):
            found[name] = len(path.read_text().splitlines())
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
            found[name] = "page"
        elif path.suffix in (".csv", ".toml", ".npz"):
            found[name] = path.read_bytes()
        else:
            found[name] = "file"
    return found


def _model_content(path: Path) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as weights, h5py.File(weights) as f:

        def visit(name: str, node: object) -> None:
            if isinstance(node, h5py.Dataset):
                content[name] = node[()].tobytes()

        f.visititems(visit)
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(entry) for name, entry in value.items() if name not in ("seconds", "path")}
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value
