"""Fine-tune a run: its fused model trains end to end on frames, with the backbone's last layers unfrozen.

    framebank finetune --run NAME --finetune.unfreeze 9 --finetune.learning_rate 1e-5

Epoch 0 is the two stages' own result, predicted by the fused model before any step. If the average of the weights after
all steps has no lower validation loss, those of epoch 0 are kept, and the verdict says so.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from features._common.atomic import atomic_write, exclusive_write_lock
from features._common.bounded_file import read_bounded
from features._common.console import logger, text_table
from features._common.folders import updated_folder
from features._common.plain_text import one_line
from features.config import Config, read_run_config
from features.errors import ConfigError, DataError, StoreError
from features.limits import JSON_BYTES
from features.recipe import json_digest
from features.store import Store
from stage2_temporal.data.task import Task, read_task
from stage2_temporal.evaluation.history import write_history
from stage2_temporal.evaluation.metrics import Scores, scores
from stage2_temporal.finetune.checkpoint import FinetuneState
from stage2_temporal.finetune.loop import STATE_FOLDER, FinetuneJob
from stage2_temporal.finetune.workers import Workers, join_workers
from stage2_temporal.fused.fuse import fuse_run, window_reader
from stage2_temporal.heads import check_uses_maps
from stage2_temporal.report import write_report
from stage2_temporal.runs.results import (
    VERDICT_SPLITS,
    FinetunedSplit,
    FinetuneMetrics,
    Metrics,
    Parameters,
    read_metrics,
)
from stage2_temporal.runs.tables import format_scores
from stage2_temporal.training.keras_models import count_parameters, save_model

MODEL_FILE, HISTORY_FILE, RESULT_FILE = "finetuned.keras", "finetune.csv", "finetune.json"
FREE_SETTINGS = (("data", "path"), ("extract", "threads"))  # may differ from the run's, and so may [finetune]


class ComparedSplit(FinetunedSplit):
    """One split: the scores of the constant predictor, of the two stages and after fine-tuning."""

    examples: int
    constant: Scores
    two_stage: Scores = Field(alias="two-stage")


class FinetuneResult(FinetuneMetrics):
    """finetune.json; `equality` is a `FusedModelCheck`, `helped` is None without validation examples."""

    key: str
    settings: dict[str, Any]
    parameters: Parameters
    policy: str
    replicas: int
    equality: dict[str, Any]
    epoch0: dict[str, float]
    seconds: float
    helped: bool | None
    unit: str | None
    counted: str
    splits: dict[str, ComparedSplit]  # type: ignore[assignment]


def finetune(run: Path, store: Store, config: Config) -> FinetuneResult:
    """Fine-tune a run and write `finetuned.keras`, `finetune.csv` and `finetune.json` into its folder.

    Interrupted at any moment, the same call resumes after the last finished epoch.

    Args:
        run: the run's folder.
        store: the one that the run was trained on.
        config: the run's, with other settings in `finetune` and `data.path` only.

    Raises:
        FramebankError: what the user can correct.
    """
    _check_same_settings(config, read_run_config(run))
    workers = join_workers()
    check_uses_maps(run, config, alone=True)
    metrics, task = read_metrics(run), read_task(config, store)
    if metrics.store.fingerprint != store.fingerprint or metrics.store.examples != task.digest:
        raise StoreError(
            f"{store.path}: differs from the store that {run} was trained on",
            hint=f"--store {metrics.store.path}, or train again",
        )
    key = _result_key(run, store, task, config)
    earlier = _read_result(run)
    if earlier is not None and earlier.key == key:
        logger.info(f"{run}: already fine-tuned with these settings")
        return earlier
    with exclusive_write_lock(run / "finetune") if workers is None or workers.writes else nullcontext():
        result = _finetune(run, store, config, task, metrics, key, workers)
    if workers is not None:
        workers.wait()
    return result or FinetuneResult.model_validate_json((run / RESULT_FILE).read_bytes())


def _finetune(
    run: Path, store: Store, config: Config, task: Task, metrics: Metrics, key: str, workers: Workers | None
) -> FinetuneResult | None:
    """Fine-tune a run, and write the result, or None if another of the `workers` does.

    `key` is the digest of what determines it.
    """
    read = window_reader(store, task.examples, task.examples.known.nonzero()[0], config)
    fused, check = fuse_run(run, store, config)
    job = FinetuneJob(run, store.recipe.dtype, task, config, fused, read, key, workers)
    state = job.train()
    if not job.writes:
        return None
    fused.set_weights(job.model.get_weights())
    helped, verdict = _verdict(state)
    counted = next(split for split in VERDICT_SPLITS if len(task.known(split)))
    splits = [split for split in (counted, "validation") if len(task.known(split))]
    result = FinetuneResult(
        key=key,
        settings=config.finetune.model_dump(mode="json"),
        unfrozen=tuple(job.unfrozen),
        parameters=Parameters(**count_parameters(job.model)),
        policy=job.policy,
        replicas=job.replicas,
        equality=asdict(check),
        epoch0=state.facts,
        seconds=sum(row.seconds for row in state.history),
        epochs=len(state.history) - 1,
        best_epoch=state.best,
        helped=helped,
        verdict=verdict,
        unit=metrics.unit,
        counted=counted,
        splits={split: _compare(split, job, task, metrics) for split in splits},
    )
    if _result_key(run, store, task, config) != key:
        raise DataError(f"{run}: another run has taken its place in the meantime", hint="the same command again")
    with updated_folder(run) as folder:  # all in one step, lest an earlier result be lost
        save_model(folder / MODEL_FILE, fused)
        with atomic_write(folder / HISTORY_FILE) as temporary:
            write_history(temporary, state.history)
        with atomic_write(folder / RESULT_FILE) as temporary:
            temporary.write_text(result.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")
        write_report(folder, store)
        shutil.rmtree(folder / STATE_FOLDER)
    return result


def finetune_table(result: FinetuneResult) -> str:
    """The scores of the constant predictor, the two stages and the fine-tuned model, and the verdict."""
    unit = f" [{result.unit}]" if result.unit else ""
    split = result.splits[result.counted]
    header = [f"{result.counted}, {split.examples:,} examples", f"RMSE{unit}", f"MAE{unit}", "skill", "spread ratio"]
    rows = [
        ["constant", *format_scores(split.constant)],
        ["two-stage", *format_scores(split.two_stage)],
        ["fine-tuned", *format_scores(split.finetuned)],
    ]
    return "\n".join(["", text_table(header, rows), "", result.verdict])


def _check_same_settings(config: Config, trained: Config) -> None:
    """Raise ConfigError with the names of settings that differ from the run's."""
    values, trained_values = config.model_dump(), trained.model_dump()
    changed = [
        f"{section}.{name}"
        for section, settings in trained_values.items()
        for name, value in settings.items()
        if section != "finetune" and (section, name) not in FREE_SETTINGS and values[section].get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: the run was trained with different values",
            hint="change only --finetune.…, --data.path and --extract.threads, or train again",
        )


def _result_key(run: Path, store: Store, task: Task, config: Config) -> str:
    """Digest of everything that determines the result."""
    settings = config.finetune.model_dump(mode="json")
    path = run / "model.keras"
    model = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return json_digest([settings, store.fingerprint, task.digest, config.train.seed, config.train.standardise, model])


def _read_result(run: Path) -> FinetuneResult | None:
    """An earlier result, if its files are complete."""
    if not all((run / name).is_file() for name in (MODEL_FILE, HISTORY_FILE, RESULT_FILE)):
        return None
    path = run / RESULT_FILE
    try:
        return FinetuneResult.model_validate_json(read_bounded(path, JSON_BYTES))
    except ValidationError as e:
        raise DataError(f"{path}: damaged", got=one_line(e.errors()[0]["msg"]), hint=f"rm {path}") from None


def _verdict(state: FinetuneState) -> tuple[bool | None, str]:
    first, last = state.history[0].val_loss, state.history[-1].val_loss
    if math.isnan(first):
        return None, "No verdict: without validation examples, it is unknown whether fine-tuning helped."
    if state.best == 0:
        return False, (
            f"Fine-tuning did not help: the validation loss was {first:.4g} and became {last:.4g}. "
            "The two stages' weights are kept."
        )
    return True, f"Fine-tuning helped: validation loss {first:.4g} → {last:.4g}."


def _compare(split: str, job: FinetuneJob, task: Task, metrics: Metrics) -> ComparedSplit:
    examples, known = task.examples, task.known(split)
    predicted = job.predict(job.fused, known)
    finetuned = scores(examples.targets[known], predicted, task.constant, examples.columns, examples.position[known])
    run = metrics.splits[split]
    return ComparedSplit.model_validate(
        {"examples": len(known), "constant": run.constant, "two-stage": run.model, "fine-tuned": finetuned}
    )
