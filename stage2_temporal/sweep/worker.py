"""A worker process of a sweep: it trains one entry after another into run folders, or records why one failed.

This module must not load TensorFlow when it is imported: `prepare_worker` first makes the process ignore Ctrl-C.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from joblib import cpu_count

from features._common.cli import describe_os_error
from features._common.console import quiet_imports
from features._common.folders import atomic_folder
from features._common.processes import become_worker
from features.config import Config
from features.errors import FramebankError
from features.store import Store
from stage2_temporal.data.task import read_task

if TYPE_CHECKING:
    from stage2_temporal.training.loop import Callbacks

ERROR_FILE = "error.json"


def prepare_worker(parent: int, threads: int, folder: Path) -> None:
    """Make this process a worker: load TensorFlow with some threads, ignore Ctrl-C, end with the parent process."""
    os.chdir(folder)  # the parent's, which the sweep's paths are relative to
    become_worker(parent)
    with quiet_imports():
        import tensorflow as tf

        from stage2_temporal import train  # noqa: F401
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def train_entry_in_worker(name: str, config: Config, store: Path, sweep_folder: Path) -> tuple[str, str | None]:
    """Like `train_entry`, in a worker of a cluster."""
    use_all_threads()
    return train_entry(name, config, store, sweep_folder)


def use_all_threads() -> None:
    """Give TensorFlow as many threads as joblib counts cores."""
    with quiet_imports():
        import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(cpu_count())
    tf.config.threading.set_inter_op_parallelism_threads(cpu_count())


def store_digest(store: Path) -> str:
    """Digest of the first megabyte of a store, which every worker must see."""
    with store.open("rb") as f:
        return hashlib.sha256(f.read(1 << 20)).hexdigest()[:16]


class PrunedError(Exception):
    """A run that a search ends early; raised by a callback.

    Args:
        epoch: the last one that was trained, from 1.
        skill: the best so far on the validation split.
    """

    def __init__(self, epoch: int, skill: float) -> None:
        super().__init__(f"pruned after epoch {epoch}")
        self.epoch, self.skill = epoch, skill


def train_entry(
    name: str, config: Config, store: Path, sweep_folder: Path, callbacks: Callbacks = ()
) -> tuple[str, str | None]:
    """Train one entry into its folder; return its name and, if it failed, the error, which its folder records.

    KeyboardInterrupt if Ctrl-C stopped it; OSError if the disk is full or similar, so that all others would fail too;
    PrunedError if a callback raises it.
    """
    with quiet_imports():
        import keras

        from stage2_temporal.train import train

    keras.utils.clear_session(free_memory=False)  # forget the layer names of the previous entry
    output = io.StringIO()  # the progress of single runs would break the sweep's progress bar
    path = sweep_folder / name
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), Store(store) as opened:
            metrics = train(config, opened, read_task(config, opened), path, report=False, callbacks=callbacks)
    except PrunedError:
        raise
    except Exception as e:
        if isinstance(e, OSError) and describe_os_error(e):
            raise
        text = " ".join(str(e).split())
        error = text if isinstance(e, FramebankError) else f"{type(e).__name__}: {text}"
        record = {"error": error, "traceback": traceback.format_exception(e)}
        with atomic_folder(path) as folder:
            (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
            (folder / ERROR_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return name, error
    if metrics.interrupted:
        raise KeyboardInterrupt
    return name, None
