"""An epoch of training on a store larger than memory, and one on examples of it that are held in memory.

Maps of InceptionResNetV2 with random content. STORE_GB sets the store's size, 20 by default, and LIMIT_GB what a
process that reads it in parts may allocate, 3 by default. Its files are not in the system's cache. On Linux only.
The last epoch is timed, since the first one also builds the graph. Two limits give the same loss.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import Row
from features.config import Config
from features.sequences import FrameSequence, Label
from features.store_tables import Header, StreamInfo
from features.store_writer import StoreContent, StreamContent, save_store
from features.streams import APPEARANCE
from stage2_temporal.data.examples import load_examples
from stage2_temporal.heads import find_head
from tests.helpers import RECIPE

STORE_GB = float(os.environ.get("STORE_GB", "20"))
LIMIT_GB = float(os.environ.get("LIMIT_GB", "3"))
HELD_GB = 2.0  # of the examples that are held in memory
PARTS_GB = 0.6  # for the parts of the store that are in memory at a time
INFO = StreamInfo((5, 9, 1536), "float16")
LENGTH = 8  # frames per clip
EXAMPLE_GB = LENGTH * INFO.frame_bytes / 1e9
HEADS: dict[str, dict[str, Any]] = {
    "flatten_lstm": {"units": 64},  # the published model's 256 need 1.1 GB for weights and moments alone
    "pooled_lstm": {"units": 256},
}


def measure() -> list[Row]:
    """Three rows per head."""
    rows: list[Row] = []
    held_in_memory = {"epochs": 4, "memory_gb": 2 * HELD_GB, "examples": round(HELD_GB / EXAMPLE_GB)}
    limits = {f"below {LIMIT_GB:g} GB": 1.0, f"below {0.8 * LIMIT_GB:g} GB": 0.8}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "s.h5")
        write_store(store, round(STORE_GB / EXAMPLE_GB))
        for head in HEADS:
            held = _train(store, head, **held_in_memory)
            rows += [{"head": head, "examples": "in memory", **held}]
            for name, part in limits.items():
                parts = _train(store, head, epochs=2, memory_gb=part * PARTS_GB, limit=part * LIMIT_GB)
                ratio = float(parts["ms per example"]) / float(held["ms per example"])
                rows += [{"head": head, "examples": f"read in parts, {name}", **parts, "ratio": ratio}]
    return rows


def write_store(path: Path, clips: int) -> None:
    """Write an index of so many labelled clips, and their maps in shards."""
    rng = np.random.default_rng(0)

    def clip(i: int) -> FrameSequence:
        label = Label(LENGTH - 1, {"ego_speed": float(rng.uniform(5, 30))})
        return FrameSequence(f"Train/{i}", "train", LENGTH, 20.0, (1280, 720), f"{i}", (label,))

    def maps() -> Iterator[NDArray[Any]]:
        base = rng.random((256, *INFO.shape), np.float32).astype(INFO.dtype)
        for start in range(0, clips * LENGTH, len(base)):
            yield np.roll(base, start // len(base), axis=0)[: clips * LENGTH - start]

    sequences = [clip(i) for i in range(clips)]
    streams = {APPEARANCE: StreamContent(INFO, batches=maps())}
    save_store(path, StoreContent(Header(RECIPE), sequences, streams), packed=False)


def _train(store: Path, head: str, **settings: float) -> Row:
    """Train in a process of its own, see `train_epochs`."""
    arguments = json.dumps({"head": head, **settings})
    command = [sys.executable, "-m", "benchmarks.larger_than_memory", str(store), arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: Row = json.loads(done.stdout.splitlines()[-1])
    return result


def train_epochs(store: Path, head: str, epochs: int, memory_gb: float, examples: int = 0, limit: float = 0.0) -> Row:
    """Train on the first so many examples, 0: all, and time the last epoch."""
    config = Config.model_validate({
        "data": {"target": "ego_speed"}, "window": {"length": LENGTH}, "head": {"name": head, **HEADS[head]},
        "train": {"epochs": epochs, "memory_gb": memory_gb, "batch": 32},
    })  # fmt: skip
    callbacks = []
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9),) * 2)
        shards = store.with_name(f"{store.name}.shards")
        callbacks = [keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: _drop_from_cache(shards))]
    X, y, _ = load_examples(store, config)
    if examples:
        X, y = X[:examples], y[:examples]
        X.source.rows = np.unique(X.examples.rows)
    started = time.process_time()
    fitted = find_head(head).from_config(config).fit(X, y, callbacks=callbacks)
    cpu, epoch = time.process_time() - started, fitted.outcome_.history[-1]
    return {
        "count": len(y),
        "seconds per epoch": epoch.seconds,
        "ms per example": 1000 * epoch.seconds / len(y),
        "CPU ms per example": 1000 * cpu / epochs / len(y),
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "loss": f"{epoch.loss:.9g}",
    }


def _drop_from_cache(folder: Path) -> None:
    """Drop a folder's files from the system's cache."""
    for path in folder.glob("*.h5"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    print(json.dumps(train_epochs(Path(sys.argv[1]), **json.loads(sys.argv[2]))))
