"""Whole commands of extraction with EfficientNet-Lite0: here, on one worker and on two of a cluster, one thread each.

Each worker keeps to a core of its own, as Slurm binds tasks: else one worker alone decodes on the second core, too.
A worker's first command also loads the network there. CLUSTER_FRAMES sets the number of frames.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.timing import Row
from tests.cluster_helpers import LocalDask, local_dask
from tests.helpers import ROOT, write_clips

FRAMES = int(os.environ.get("CLUSTER_FRAMES", "2000"))
CONFIG = """
[data]
layout = "competition"
path = "{data}"
[backbone]
name = "EfficientNetLite0"
[extract]
engine = "openvino"
threads = 1
tracks = false
"""


def cpu_seconds(cluster: LocalDask) -> float:
    """CPU time so far of the commands and the workers."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    workers = [psutil.Process(worker.pid).cpu_times() for worker in cluster.workers]
    return ended.ru_utime + ended.ru_stime + sum(times.user + times.system for times in workers)


def add_worker_on(cluster: LocalDask, core: int) -> None:
    """Start a worker that keeps to a core."""
    psutil.Process(cluster.add_worker().pid).cpu_affinity([core])


def extract_with(folder: Path, cluster: LocalDask, workers: int) -> tuple[float, float]:
    """Seconds, by the clock and of CPU time, of a command that extracts all frames on some workers, or none: here."""
    store = folder / "s.h5"
    command = [sys.executable, "-m", "framebank", "extract", "--config", str(folder / "c.toml"), "--store", str(store)]
    if workers:
        command += ["--compute.backend", "dask", "--compute.scheduler", str(cluster.scheduler_file)]
        command += ["--compute.workers", str(workers)]
    start, cpu = time.perf_counter(), cpu_seconds(cluster)
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"LOKY_MAX_CPU_COUNT": "1"}, check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start, cpu_seconds(cluster) - cpu
    assert re.search(rf"{FRAMES:,} frames extracted by openvino", done.stdout), done.stdout
    store.unlink()
    return seconds


def measure() -> list[Row]:
    """Measure all in one run, one after another."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "data", {"Train": FRAMES // 40}, frames=40, size=(320, 180))
        (folder / "c.toml").write_text(CONFIG.format(data=folder / "data"))
        with local_dask(folder / "dask", workers=0) as cluster:
            add_worker_on(cluster, 0)
            seconds = {
                "one worker, its first command": extract_with(folder, cluster, 1),
                "here": extract_with(folder, cluster, 0),
                "one worker": extract_with(folder, cluster, 1),
            }
            add_worker_on(cluster, 1)
            seconds["two workers, the first command of one"] = extract_with(folder, cluster, 2)
            seconds["two workers"] = extract_with(folder, cluster, 2)
    return [
        {
            "command": kind,
            "seconds": clock,
            "frames/s": FRAMES / clock,
            "rate beside one worker": seconds["one worker"][0] / clock,
            "CPU seconds": cpu,
            "CPU time beside here": cpu / seconds["here"][1],
        }
        for kind, (clock, cpu) in seconds.items()
    ]
