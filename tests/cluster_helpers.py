"""A Dask cluster of processes on this machine, for tests and benchmarks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features._common.types import Image
from stage1_extract.datasets.clip import FrameSource
from tests.helpers import ROOT


class LocalDask:
    """A scheduler and its workers, one thread each; their files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.workers = folder, list[subprocess.Popen[bytes]]()
        self.scheduler_file = folder / "scheduler.json"
        self._log = (folder / "dask.log").open("wb")
        self._processes = [self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
        while not self.scheduler_file.exists():
            assert self._processes[0].poll() is None, self.log()
            time.sleep(0.05)

    def add_worker(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny, which would start a killed one again."""
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0", "--host", "127.0.0.1"]
        worker = self._start("worker", *options, "--local-directory", str(self._folder), environment=environment)
        self._processes.append(worker)
        self.workers.append(worker)
        return worker

    def log(self) -> str:
        """What the scheduler and the workers printed."""
        return (self._folder / "dask.log").read_text(errors="replace")

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._log.close()

    def _start(
        self, command: str, *options: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "LOKY_MAX_CPU_COUNT": "1", **(environment or {})}
        arguments = [sys.executable, "-m", "dask", command, "--scheduler-file", str(self.scheduler_file), *options]
        return subprocess.Popen(arguments, env=variables, cwd=self._folder, stdout=self._log, stderr=self._log)


@contextmanager
def local_dask(folder: Path, workers: int = 2) -> Iterator[LocalDask]:
    """Run a cluster during the block."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = LocalDask(folder)
    try:
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.stop()


@dataclass(frozen=True)
class DeadlySource:
    """A `FrameSource` that kills each process that reads it but one, as a fault in a decoder may."""

    source: FrameSource
    survivor: int  # the process that may read it
    parallel: bool = True

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        if os.getpid() != self.survivor:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.read(start, stop, min_size)
