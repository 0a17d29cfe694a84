"""Fine-tuning: the fused model trains end to end on frames, the last layers of its backbone unfrozen.

Epoch 0 is the two stages' result, made by the fused model before any step; where no epoch does better on the
validation examples, that is what is kept, and it is said.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.console import text_table
from features.config import Config, read_run_config
from features.errors import BadInputs, ConfigError, DataError, StoreError
from features.recipe import json_digest
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.frame_loader import resize_frame
from stage2_temporal.data.task import Task, read_task
from stage2_temporal.evaluation.history import write_history
from stage2_temporal.evaluation.metrics import as_json, scores
from stage2_temporal.finetune.checkpoint import FinetuneState, with_changes
from stage2_temporal.finetune.image_batches import ReadWindow
from stage2_temporal.finetune.loop import PARTS, FinetuneJob, choose_devices, local_gpus
from stage2_temporal.finetune.unfreeze import backbone_layers, count_unfrozen
from stage2_temporal.fused.fuse import fuse_run
from stage2_temporal.heads import check_uses_maps_alone
from stage2_temporal.report import write_report
from stage2_temporal.runs.results import VERDICT_SPLITS, Metrics, read_metrics
from stage2_temporal.training.keras_models import count_parameters

MODEL, HISTORY, RESULT = "finetuned.keras", "finetune.csv", "finetune.json"
METRICS = ("rmse", "mae", "skill", "spread_ratio")


def finetune(run: Path, store: Store, config: Config) -> None:
    """Fine-tune a finished run; `finetuned.keras`, `finetune.csv` and `finetune.json` appear in it when it is done.

    Stopped at any moment, the same call goes on after the last finished epoch.

    Args:
        config: the run's own, but for `finetune` and `data.path`.

    Raises:
        FramebankError: what the user can mend.
    """
    _same_run(config, read_run_config(run))
    check_uses_maps_alone(run, config)
    metrics, wanted = read_metrics(run), read_task(config, store)
    if metrics.store.fingerprint != store.fingerprint or metrics.store.examples != wanted.digest:
        raise StoreError(
            f"{store.path}: not what {run} was trained on", hint=f"--store {metrics.store.path}, or train anew"
        )
    key = _key(run, store, wanted, config)
    before = _result(run)
    if before and before["key"] == key:
        print(f"{run}: fine-tuned already\n{_table(before)}")
        return
    read = reader(store, wanted, config)
    fused, equality = fuse_run(run, store, config)
    names = [layer.name for layer in backbone_layers(fused)]
    count = count_unfrozen(names, config.finetune.unfreeze)
    job = FinetuneJob(run, store, wanted, config, fused, count, choose_devices(local_gpus()), key, read)
    state = job.train()
    fused.set_weights(with_changes(state.kept, job.start))
    facts = {
        "key": key,
        "settings": config.finetune.model_dump(mode="json"),
        "unfrozen": names[len(names) - count :],
        "parameters": count_parameters(job.model),
        **asdict(job.devices),
        "equality": asdict(equality),
        "epoch0": state.facts,
        "seconds": sum(row.seconds for row in state.history),
        **_verdict(state, job.validated),
        "unit": metrics.unit,
        **_judge(job, metrics),
    }
    _write(run, store, fused, state, facts)
    print(f"{_table(facts)}\n{run / 'report.html'}")


def reader(store: Store, wanted: Task, config: Config) -> ReadWindow:
    """What decodes an example's window, only the frames that are in it.

    Raises:
        BadInputs: sequences whose images are gone or are others than the store was made of, all of them named.
    """
    found, frames = wanted.examples, config.frames
    clips = {clip.sequence.id: clip for clip in scan(config.data).clips}
    faults = []
    for s in np.unique(found.sequence[found.known]):
        sequence = store.sequences[s]
        clip = clips.get(sequence.id)
        if clip is None or clip.sequence.digest != sequence.digest:
            state = "gone or damaged" if clip is None else "not the one in the store"
            faults.append(f"{config.data.path}: sequence {sequence.id} is {state}")
    if faults:
        raise BadInputs(
            f"{len(faults)} sequences cannot be read", faults, hint="make features, or --data.path FOLDER of the images"
        )

    def read(index: int) -> NDArray[np.uint8]:
        s = found.sequence[index]
        source, images = clips[store.sequences[s].id].source, []
        for frame in (found.rows[index] - store.first[s]).tolist():
            images += [resize_frame(image, frames) for image in source.read(frame, frame + 1, frames.min_size)]
        return np.stack(images)

    return read


def _same_run(config: Config, trained: Config) -> None:
    """What a run was trained with stays as it is."""
    data = config.data.model_copy(update={"path": trained.data.path})
    asked = config.model_copy(update={"data": data, "finetune": trained.finetune}).model_dump()
    changed = [
        f"{section}.{name}"
        for section, values in trained.model_dump().items()
        for name in values
        if asked[section][name] != values[name]
    ]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)}: the run was trained with another value",
            hint="only --finetune.… and --data.path can be given; else train anew",
        )


def _key(run: Path, store: Store, wanted: Task, config: Config) -> str:
    """SHA-256 over all that decides the result."""
    options = config.finetune.model_dump(mode="json", exclude={"threads"})
    model = hashlib.sha256((run / "model.keras").read_bytes()).hexdigest() if (run / "model.keras").is_file() else ""
    facts = [options, store.fingerprint, wanted.digest, config.train.seed, config.train.standardise, model]
    return json_digest(facts)


def _result(run: Path) -> dict[str, Any] | None:
    """An earlier result, where its files are all there."""
    if not all((run / name).is_file() for name in (MODEL, HISTORY, RESULT)):
        return None
    try:
        value: dict[str, Any] = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except ValueError as e:
        raise DataError(f"{run / RESULT}: not JSON: {e}", hint=f"rm {run / RESULT}") from None
    return value


def _verdict(state: FinetuneState, validated: bool) -> dict[str, Any]:
    """Which epoch was kept, and whether it was worth it."""
    facts = {"epochs": len(state.history) - 1, "best_epoch": state.best, "helped": None}
    if not validated:
        return {**facts, "verdict": "Without validation examples nobody knows whether fine-tuning helped."}
    first, best = state.history[0].val_loss, state.history[state.best].val_loss
    if state.best == 0:
        words = f"Fine-tuning did not help: no epoch has a lower validation loss than the two stages' {first:.4g}."
        return {**facts, "helped": False, "verdict": f"{words} Their weights are kept."}
    words = f"Fine-tuning helped: validation loss {first:.4g} → {best:.4g} in epoch {state.best}."
    return {**facts, "helped": True, "verdict": words}


def _judge(job: FinetuneJob, metrics: Metrics) -> dict[str, Any]:
    """Constant, two stages and fine-tuned on the validation split and on the one that counts."""
    task, found, splits = job.task, job.task.examples, {}
    counted = next(name for name in VERDICT_SPLITS if len(task.known(name)))
    for split in dict.fromkeys([counted, "validation"]):
        known = task.known(split)
        if len(known) == 0:
            continue
        predicted = job.predict(job.fused, known)
        tuned = scores(found.targets[known], predicted, task.constant, found.columns, found.position[known])
        two = metrics.splits[split]
        parts = {"constant": as_json(two.constant), "two-stage": as_json(two.model), "fine-tuned": as_json(tuned)}
        splits[split] = {"examples": len(known), **parts}
    return {"counted": counted, "splits": splits}


def _table(facts: dict[str, Any]) -> str:
    """The split that counts, one predictor a line, and the verdict."""
    unit = f" [{facts['unit']}]" if facts["unit"] else ""
    part = facts["splits"][facts["counted"]]
    title = f"{facts['counted']}, {part['examples']:,} examples"
    header = [title, f"RMSE{unit}", f"MAE{unit}", "skill", "spread ratio"]
    rows = [
        [name, *("–" if (value := part[name][key]) is None else f"{value:.3f}" for key in METRICS)]
        for name in ("constant", "two-stage", "fine-tuned")
    ]
    return "\n".join(["", text_table(header, rows), "", facts["verdict"]])


def _write(run: Path, store: Store, fused: keras.Model, state: FinetuneState, facts: dict[str, Any]) -> None:
    """The result's files, finetune.json last: where it is, the others are."""
    (run / RESULT).unlink(missing_ok=True)
    with atomic_write(run / MODEL) as temporary:
        whole = temporary.with_suffix(".keras")  # Keras goes by the ending
        try:
            fused.save(whole)
            whole.replace(temporary)
        finally:
            whole.unlink(missing_ok=True)
    with atomic_write(run / HISTORY) as temporary:
        write_history(temporary, state.history)
    with atomic_write(run / RESULT) as temporary:
        text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
    write_report(run, store)
    shutil.rmtree(run / PARTS, ignore_errors=True)
