"""A run: from a config and a store to a folder with model, metrics, predictions and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from features._common.atomic import atomic_write
from features._common.log import logger
from features._common.types import Floats
from features.config import Config, read_run_config
from features.errors import StoreError
from features.store import Store
from features.streams import UNITS
from stage2_temporal.data.examples import StoreExamples, StoreSource
from stage2_temporal.data.splits import STORED_VALIDATION
from stage2_temporal.data.task import Task, read_task, store_origin
from stage2_temporal.evaluation.metrics import Scores, as_json, scores, verdict
from stage2_temporal.heads import find_head
from stage2_temporal.report import write_report
from stage2_temporal.runs import submission, tables
from stage2_temporal.runs.folder import atomic_folder, read_metrics
from stage2_temporal.training.loop import TrainingResult
from stage2_temporal.training.model_files import load_model
from stage2_temporal.training.scaling import parameters

FEW = 10  # test sequences below which a verdict comes with a warning
JUDGED = ("test", "validation", STORED_VALIDATION, "train")  # the first of these with labels gets the verdict


def train(config: Config, store: Store, wanted: Task, path: Path) -> None:
    """Train as the config says; the run's folder appears at `path` when it is whole.

    Raises:
        FramebankError: what the user can mend.
    """
    metrics = write_run(config, store, wanted, path)
    if not metrics["trained_backbone"]:
        logger.warning("the backbone's weights are random, UNTRAINED: for tests only")
    print(f"{tables.metrics_table(metrics)}\n{path / 'report.html'}")


def write_run(config: Config, store: Store, wanted: Task, path: Path, *, report: bool = True) -> dict[str, Any]:
    """What `train` does, without its closing words; the metrics.

    Args:
        report: also write the report, which is larger than all the rest.

    Raises:
        FramebankError: what the user can mend.
    """
    with atomic_folder(path) as folder:
        metrics = _train(config, store, wanted, folder)
        _write_json(folder / "metrics.json", metrics)
        if report:
            write_report(folder, store)
    return metrics


def evaluate(path: Path, store: Store) -> None:
    """Predict with a run's saved model anew and rewrite its metrics, predictions and report.

    Raises:
        DataError: no run there, or its model cannot be loaded.
        StoreError: the store is of another recipe.
    """
    metrics, config = read_metrics(path), read_run_config(path)
    if metrics["store"]["fingerprint"] != store.fingerprint:
        raise StoreError(
            f"{store.path}: not the recipe {path} was trained on",
            expected=metrics["store"]["fingerprint"][:12],
            got=store.fingerprint[:12],
            hint=f"--store {metrics['store']['path']}",
        )
    wanted = read_task(config, store)
    if metrics["store"].get("examples") != wanted.digest:
        raise StoreError(
            f"{store.path}: not the examples {path} was trained on; its own figures are not replaced by others'",
            hint=f"--store {metrics['store']['path']}, or train anew where its labels changed",
        )
    X = StoreExamples(StoreSource(store.path, wanted.examples.rows, config.train.memory_gb), wanted.examples)
    predicted = find_head(config.head.name).of(config).restore(load_model(path), path).predict(X)
    metrics |= _judge(wanted, predicted)
    metrics["store"] = store_origin(store, wanted, config)
    with atomic_write(path / "predictions.csv") as temporary:
        _predictions(temporary, wanted, predicted, store, config)
    submission.write_submission_files(path, config.data.layout, wanted.examples, predicted, store.sequences)
    with atomic_write(path / "metrics.json") as temporary:
        _write_json(temporary, metrics)
    write_report(path, store)
    print(f"{tables.metrics_table(metrics)}\n{path / 'report.html'}")


def _train(config: Config, store: Store, wanted: Task, folder: Path) -> dict[str, Any]:
    """Everything but the report; the metrics, without the store."""
    found = wanted.examples
    X = StoreExamples(StoreSource(store.path, found.rows, config.train.memory_gb), found)
    chosen, held_out = wanted.known("train"), wanted.known("validation")
    if len(held_out) == 0:
        logger.info("no validation examples: the last epoch is kept")
    head = find_head(config.head.name).of(config).set_params(validation_split=0.0)  # the task's splits have it in them
    head.fit(
        X[chosen],
        found.targets[chosen],
        validation=(X[held_out], found.targets[held_out]) if len(held_out) else None,
        logs=folder / "tensorboard" if config.train.tensorboard else None,
    )
    outcome = head.outcome_
    if outcome.interrupted:
        logger.info(
            f"stopped by Ctrl-C after epoch {len(outcome.history)} of {config.train.epochs}: "
            f"epoch {outcome.best_epoch} is kept and the run is written"
        )
    predicted = head.predict(X)
    head.model_.save(folder / "model.keras")
    head.keep(folder)
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    tables.write_history(folder / "history.csv", outcome.history)
    _predictions(folder / "predictions.csv", wanted, predicted, store, config)
    submission.write_submission_files(folder, config.data.layout, found, predicted, store.sequences)
    return {**_facts(config, store, wanted, head.model_, outcome), **_judge(wanted, predicted)}


def _facts(config: Config, store: Store, wanted: Task, model: keras.Model, outcome: TrainingResult) -> dict[str, Any]:
    return {
        "target": list(config.data.columns),
        "unit": _unit(config.data.columns),
        "units": [UNITS.get(c) for c in config.data.columns],
        "head": config.head.name,
        "backbone": store.recipe.backbone,
        "weights": store.recipe.weights,
        "trained_backbone": store.recipe.weights != "random",
        "parameters": parameters(model, int(store.header.trunk.get("parameters", 0))),
        "epochs": len(outcome.history),
        "best_epoch": outcome.best_epoch,
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
        "store": store_origin(store, wanted, config),
        "labels": wanted.labels,
    }


def _judge(wanted: Task, predicted: Floats) -> dict[str, Any]:
    """The parts of metrics.json that follow from the predictions."""
    found, parts = wanted.examples, {}
    judged: dict[str, Scores] = {}
    for split in dict.fromkeys(wanted.splits.tolist()):
        known = wanted.known(split)
        if len(known) == 0:
            continue
        true, position = found.targets[known], found.position[known]
        constant = np.broadcast_to(wanted.constant, true.shape)
        judged[split], beside = (
            scores(true, answer, wanted.constant, found.columns, position) for answer in (predicted[known], constant)
        )
        parts[split] = {"examples": len(known), "model": as_json(judged[split]), "constant": as_json(beside)}
    split = next(name for name in JUDGED if name in judged)
    sentence, constant_like = verdict(split, judged[split])
    sequences = len(np.unique(found.sequence[wanted.known(split)]))
    if sequences < FEW:
        sentence += f" Judged by {sequences} sequences only: few enough for luck."
    return {
        "splits": parts,
        "verdict": sentence,
        "no_better_than_constant": constant_like,
        "dropped": {"window": found.dropped, "unknown": int((~found.known).sum())},
    }


def _predictions(path: Path, wanted: Task, predicted: Floats, store: Store, config: Config) -> None:
    tables.write_predictions(path, wanted.examples, wanted.splits, predicted, store.sequences, config.window.stride)


def _unit(columns: tuple[str, ...]) -> str | None:
    units = {UNITS.get(c) for c in columns}
    return units.pop() if len(units) == 1 else None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
