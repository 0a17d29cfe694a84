"""Whole commands of extraction with EfficientNet-Lite0: here, on one worker and on two of a cluster, one thread each.

A worker's first command also loads the network there. CLUSTER_FRAMES sets the number of frames.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

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


def extract_with(folder: Path, cluster: LocalDask | None, workers: int = 0) -> float:
    """Seconds of a command that extracts all frames, on a cluster or locally."""
    store = folder / "s.h5"
    command = [sys.executable, "-m", "framebank", "extract", "--config", str(folder / "c.toml"), "--store", str(store)]
    if cluster is not None:
        command += ["--compute.backend", "dask", "--compute.scheduler", str(cluster.scheduler_file)]
        command += ["--compute.workers", str(workers)]
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"LOKY_MAX_CPU_COUNT": "1"}, check=True, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    assert re.search(rf"{FRAMES:,} frames extracted by openvino", done.stdout), done.stdout
    store.unlink()
    return seconds


def measure() -> list[Row]:
    """Measure all in one run, one after another."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_clips(folder / "data", {"Train": FRAMES // 40}, frames=40, size=(320, 180))
        (folder / "c.toml").write_text(CONFIG.format(data=folder / "data"))
        seconds: dict[str, float] = {}
        with local_dask(folder / "dask", workers=1) as cluster:
            seconds["one worker, its first command"] = extract_with(folder, cluster, 1)
            seconds["here"] = extract_with(folder, None)
            seconds["one worker"] = extract_with(folder, cluster, 1)
            cluster.add_worker()
            seconds["two workers, the first command of one"] = extract_with(folder, cluster, 2)
            seconds["two workers"] = extract_with(folder, cluster, 2)
            seconds["here again"] = extract_with(folder, None)
    return [
        {
            "command": kind,
            "seconds": time,
            "frames/s": FRAMES / time,
            "rate beside one worker": seconds["one worker"] / time,
            "time beside here": 2 * time / (seconds["here"] + seconds["here again"]),
        }
        for kind, time in seconds.items()
    ]
