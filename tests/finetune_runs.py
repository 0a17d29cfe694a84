"""Fine-tuning runs of tiny models, for tests; fixtures that use them are in `tests/stage2_temporal/conftest.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from features.config import Config, FinetuneConfig, read_run_config
from features.store import Store
from stage2_temporal.data.task import read_task
from stage2_temporal.finetune.finetune import FinetuneResult, finetune
from stage2_temporal.finetune.loop import FinetuneJob
from stage2_temporal.fused.fuse import fuse_run, window_reader


def run_config(folder: Path, run: str = "r", **options: Any) -> Config:
    """The config of a run that `image_runs.train_on_images` made in `folder`, with settings of fine-tuning."""
    config = read_run_config(folder / "runs" / run)
    data = config.data.model_copy(update={"path": str(folder / "clips")})
    options = {"learning_rate": 0.01, "unfreeze": 9} | options
    return config.model_copy(update={"data": data, "finetune": FinetuneConfig(**options)})


def run_finetune(folder: Path, run: str = "r", **options: Any) -> FinetuneResult:
    with Store(folder / "s.h5") as store:
        return finetune(folder / "runs" / run, store, run_config(folder, run, **options))


def make_job(folder: Path, fused: keras.Model, run: str = "r", **options: Any) -> FinetuneJob:
    """The job that `finetune` runs; the run's settings are those of `r`."""
    config = run_config(folder, **options)
    with Store(folder / "s.h5") as store:
        task = read_task(config, store)
        read = window_reader(store, task.examples, task.examples.known.nonzero()[0], config)
        return FinetuneJob(folder / "runs" / run, store.recipe.dtype, task, config, fused, read, "key")


def fuse(folder: Path) -> keras.Model:
    """The fused model of the run `r`."""
    with Store(folder / "s.h5") as store:
        return fuse_run(folder / "runs" / "r", store, run_config(folder))[0]
