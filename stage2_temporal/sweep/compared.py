"""Trains the runs that `framebank train` compares, two at a time, since one alone keeps a core busy, but not two.

Each process has the threads that TensorFlow takes by itself, so that a run has the same numbers as if alone.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import tensorflow as tf
from joblib import cpu_count

from features._common.console import logger, progress_bar
from features.config import Config
from features.store import Store
from stage2_temporal.data.task import read_task
from stage2_temporal.sweep.runner import train_here
from stage2_temporal.train import train

AT_A_TIME = 2


def pays_side_by_side(runs: int) -> bool:
    """Whether some runs train sooner side by side: there are cores for that, and no GPU, whose memory one run takes."""
    return min(runs, cpu_count()) >= AT_A_TIME and not tf.config.list_physical_devices("GPU")


def train_compared(runs: Sequence[tuple[Config, Path]], store: Path) -> Iterator[Path]:
    """Train runs side by side, and yield the folder of each that is finished. Warnings begin with their run's name.

    Raises:
        FramebankError: of the first run that fails; finished runs are kept.
        KeyboardInterrupt: Ctrl-C; finished runs are kept.
    """
    calls = ((_train_silently, (config, folder, store)) for config, folder in runs)
    hint, terminal = "close other programs, and run the same command again", sys.stderr.isatty()
    with progress_bar(len(runs), "train", "runs") as progress:
        for name, output in train_here(AT_A_TIME, calls, runs[0][1].parent, threads=0, hint=hint):
            progress.update()
            if terminal:
                progress.clear()  # so that what is printed now has a line of its own
            for line in (output or "").splitlines():
                logger.warning(f"{name}: {line}")
            yield next(folder for _, folder in runs if folder.name == name)
            if terminal:
                progress.refresh()


def _train_silently(config: Config, folder: Path, store: Path) -> tuple[str, str | None]:
    """Train a run; return its name and its warnings, which would break the progress bar of all runs."""
    keras.utils.clear_session(free_memory=False)  # forget the layer names of the run before
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), Store(store) as opened:
        train(config, opened, read_task(config, opened), folder)
    return folder.name, output.getvalue()
