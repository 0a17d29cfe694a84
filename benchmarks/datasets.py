"""Reading the examples of a store: `fb.tf_dataset` and `fb.torch_dataset` beside the batches that heads train on.

An epoch of maps, shuffled, in batches of 32; of frames held in memory, and of a store that is read in parts. The heads'
own batches are timed as arrays and as Keras hands them to TensorFlow in training. Seconds are per example. PyTorch,
where it is installed, runs in a process of its own. DATASET_MB sets the store's size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

from benchmarks.larger_than_memory import EXAMPLE_GB, write_store
from benchmarks.timing import Row, compare, timer
from features.config import Config
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.datasets import input_streams, tf_dataset, torch_dataset
from stage2_temporal.data.examples import load_examples, read_windows

SIZE_MB = float(os.environ.get("DATASET_MB", "700"))
ARRAYS, KERAS = "the heads' batches, arrays", "the heads' batches, in TensorFlow"
TENSORFLOW, TORCH = "fb.tf_dataset", "fb.torch_dataset"


def measure() -> list[Row]:
    """Two or three rows for each place of the frames and each library."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "s.h5")
        write_store(store, round(SIZE_MB / 1000 / EXAMPLE_GB))
        for library in ["tensorflow", *(["torch"] if find_spec("torch") else [])]:
            for frames, memory_gb in {"in memory": 4.0, "read in parts": SIZE_MB / 4000}.items():
                command = [sys.executable, "-m", "benchmarks.datasets", str(store), library, str(memory_gb)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows += [{"frames": frames, **row} for row in json.loads(done.stdout.splitlines()[-1])]
    return rows


def compare_readers(store: Path, library: str, memory_gb: float, rounds: int = 15) -> list[Row]:
    """Time an epoch of each reader in turn, per example."""
    config = Config.model_validate({
        "data": {"target": "ego_speed"}, "window": {"length": 8}, "head": {"name": "pooled_lstm"},
        "train": {"memory_gb": memory_gb, "batch": 32},
    })  # fmt: skip
    X, y, _ = load_examples(store, config)
    names = input_streams(X, config)
    batches = Batches(lambda some: read_windows(some, names), X, y, config.train.batch, seed=0)

    def arrays() -> None:
        batches.on_epoch_begin()
        for i in range(len(batches)):
            batch = batches[i]  # kept until the next one has been read, as in a loop over a data set
        del batch

    readers: dict[str, Callable[[], object]] = {ARRAYS: arrays}
    if library == "torch":
        from torch.utils.data import BatchSampler, DataLoader, RandomSampler

        dataset = torch_dataset(store, config)
        sampler = BatchSampler(RandomSampler(dataset), config.train.batch, drop_last=False)
        loader = DataLoader(dataset, sampler=sampler, batch_size=None)
        readers[TORCH] = lambda: [None for _ in loader]
        references = {TORCH: (ARRAYS,)}
    else:
        adapter = PyDatasetAdapter(batches, shuffle=False)
        in_tensorflow = adapter.get_tf_dataset()

        def keras_epoch() -> None:
            adapter.on_epoch_begin()
            for _ in in_tensorflow:
                pass
            adapter.on_epoch_end()

        dataset = tf_dataset(store, config)
        readers |= {KERAS: keras_epoch, TENSORFLOW: lambda: [None for _ in dataset]}
        references = {TENSORFLOW: (KERAS,)}
    return compare({name: timer(read, len(X)) for name, read in readers.items()}, references, rounds)


if __name__ == "__main__":
    print(json.dumps(compare_readers(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))))
