"""What a sweep's worker does: one entry after another, each a run's folder, or the error that took its place."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import threading
import time
import traceback
from pathlib import Path

from features._common.cli import describe_os_error
from features._common.quiet_imports import quiet_imports
from features.errors import FramebankError
from features.store import Store
from stage2_temporal.data.task import read_task
from stage2_temporal.runs.folder import atomic_folder
from stage2_temporal.sweep.spec import SweepEntry

ERROR = "error.json"
LOOK_EVERY = 0.2  # seconds between looks whether the sweep still lives


def prepare_worker(parent: int, threads: int) -> None:
    """Make this process a worker: TensorFlow loaded with its share of the cores, deaf to Ctrl-C, ended with the sweep.

    Args:
        parent: the sweep's process.
        threads: TensorFlow's, in one operation.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep hears it, and ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with quiet_imports():
        import tensorflow as tf

        from stage2_temporal import train  # noqa: F401
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def train_entry(entry: SweepEntry, store: Path, sweep: Path) -> str | None:
    """Train one entry into its folder; what went wrong, or None.

    Raises:
        KeyboardInterrupt: the run was stopped by Ctrl-C.
        OSError: the disk is full, or the like: no other entry would fare better.
    """
    with quiet_imports():
        import keras

        from stage2_temporal import train

    keras.utils.clear_session(free_memory=False)  # what the entry before left, its layers' names among it
    words = io.StringIO()
    try:
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words), Store(store) as opened:
            task = read_task(entry.config, opened)
            metrics = train.write_run(entry.config, opened, task, sweep / entry.name, report=False)
    except Exception as e:
        if isinstance(e, OSError) and describe_os_error(e):
            raise
        _record(e, entry, sweep / entry.name)
        return one_line_error(e)
    if metrics["interrupted"]:
        raise KeyboardInterrupt
    return None


def one_line_error(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FramebankError) else f"{type(error).__name__}: {text}"


def _record(error: Exception, entry: SweepEntry, path: Path) -> None:
    """Put the error where the run would be."""
    value = {"error": one_line_error(error), "traceback": traceback.format_exception(error)}
    with atomic_folder(path) as folder:
        (folder / "config.toml").write_text(entry.config.to_toml(), encoding="utf-8")
        (folder / ERROR).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)
