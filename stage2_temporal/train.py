"""Train a head on a store, and evaluate the trained model again.

    framebank train    --config configs/sample.toml
    framebank evaluate --run sample-ego_speed-fusion

`train` fits the config's head on the training examples, keeps the epoch that is best on the validation examples,
predicts every example and writes a run: a folder with config, model, history, predictions, metrics, card and report.
`evaluate` predicts with a run's saved model and writes its predictions, metrics and report again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features._common.atomic import atomic_write
from features._common.console import logger
from features._common.folders import atomic_folder, updated_folder
from features._common.types import Floats
from features.backbone_names import is_imported
from features.config import Config, read_run_config
from features.errors import DataError, StoreError
from features.normalised_flow import unknown_horizons
from features.principal_components import RUN_FILE, PCABasis, save_bases
from features.store import Store
from features.streams import UNITS
from features.windows import MISPLACED, Examples
from stage2_temporal.data.derived_streams import DerivedStream, try_derive_streams
from stage2_temporal.data.examples import StoreExamples, StoreSource
from stage2_temporal.data.task import Task, read_task, store_origin, window_intervals
from stage2_temporal.evaluation.history import write_history
from stage2_temporal.evaluation.intervals import IntervalScores, interval_scores, sequences_needed
from stage2_temporal.evaluation.metrics import scores, skill_interval, verdict
from stage2_temporal.evaluation.uncertainty import UncertainPredictions, Uncertainty, write_uncertainty
from stage2_temporal.heads import find_head
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.default_head import resolve_default_head
from stage2_temporal.heads.occlusion import occlusion_maps
from stage2_temporal.heads.saved import load_head
from stage2_temporal.heads.uncertainty import learn_uncertainty
from stage2_temporal.report import write_report
from stage2_temporal.report.clips import pick_clips, spread_evenly
from stage2_temporal.report.page import WORST_CLIPS
from stage2_temporal.runs.card import write_card
from stage2_temporal.runs.results import (
    OCCLUSION,
    VERDICT_SPLITS,
    DataSource,
    DroppedExamples,
    Metrics,
    Occlusion,
    Parameters,
    SplitMetrics,
    StoreOrigin,
    occlusion_key,
    read_metrics,
    read_results,
    write_metrics,
    write_predictions,
)
from stage2_temporal.runs.submission import write_submission_files
from stage2_temporal.runs.tracking import check_trackers, tensorboard_callbacks, track_run
from stage2_temporal.training.keras_models import count_parameters, save_model
from stage2_temporal.training.loop import Callbacks

OCCLUSION_SECONDS = 60.0  # at most, roughly
MAX_OCCLUDED = 56  # examples besides the worst clips
FEW_SEQUENCES = 10  # a verdict on fewer comes with a warning


def train(
    config: Config, store: Store, task: Task, path: Path, *, report: bool = True, callbacks: Callbacks = ()
) -> Metrics:
    """Train a head on the task's examples; the run's folder appears at `path` when it is complete.

    Args:
        report: also write the report, which is larger than all the other files together.
        callbacks: of Keras, for heads that gradient descent trains.

    Raises:
        FramebankError: something that the user can correct, such as a setting that does not fit the store.
    """
    check_trackers(config.track)
    with atomic_folder(path) as folder:
        _warn_of_mixed_rates(config, store, task)
        X = _read_examples(config, store, task, task.frame_interval)
        head = _fit_head(config, task, X, [*tensorboard_callbacks(config.track, folder), *callbacks])
        no_folds = {"interval_folds": 0} if head.outcome_.interrupted else {}
        uncertainty, predictions = learn_uncertainty(head, X, task, config.train.model_copy(update=no_folds))
        _say_if_without_intervals(uncertainty)
        save_model(folder / "model.keras", head.model_)
        head.save_extras(folder)
        if bases := {name: PCABasis(**basis) for name in config.map_streams if (basis := store.basis(name))}:
            save_bases(folder / RUN_FILE, bases)  # whoever predicts has no store
        (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        write_history(folder / "history.csv", head.outcome_.history)
        write_uncertainty(folder, uncertainty)
        metrics = _run_metrics(config, store, task, head, predictions)
        _write_predictions_and_metrics(folder, config, store, task, predictions, metrics)
        if report:
            write_report(folder, store)
        track_run(folder)
    if not metrics.trained_backbone:
        logger.warning("The backbone's weights are random (UNTRAINED): this run is only for tests.")
    return metrics


def evaluate(run: Path, store: Store) -> Metrics:
    """Predict with a run's saved model again, and write its predictions, metrics and report again.

    Raises:
        DataError: the folder is not a run, or its model cannot be loaded.
        StoreError: the store or its examples differ from those the run was trained on.
    """
    metrics, config, task = _task_of(run, store)
    X = _read_examples(config, store, task, metrics.frame_interval)
    head = load_head(run, config, lambda head: head.input_shapes(X))
    uncertainty, predictions = learn_uncertainty(head, X, task, config.train)
    origin = StoreOrigin(**store_origin(store, task, config))
    metrics = metrics.model_copy(update={"store": origin, **_score(task, predictions)})
    with updated_folder(run) as folder:
        write_uncertainty(folder, uncertainty)
        _write_predictions_and_metrics(folder, config, store, task, predictions, metrics)
        write_report(folder, store)
    return metrics


def explain(run: Path, store: Store, seconds: float = OCCLUSION_SECONDS) -> Path:
    """Measure how much each cell of the maps counts for a run's predictions, and write occlusion.json for its report.

    The report's worst clips come first, then others of the same split, until `seconds` are over.

    Raises:
        ConfigError: the head reads no maps.
        DataError, StoreError: see `evaluate`.
    """
    metrics, config, task = _task_of(run, store)
    X, results = _read_examples(config, store, task, metrics.frame_interval), read_results(run)
    if len(results.examples) != len(X):
        hint = f"framebank evaluate --run {run}"
        raise DataError(f"{run}: predictions of other examples", expected=len(X), got=len(results.examples), hint=hint)
    head = load_head(run, config, lambda head: head.input_shapes(X))
    worst = pick_clips(results.verdict_examples, WORST_CLIPS, worst=True)
    others = [e for e in results.verdict_examples if e not in worst]
    chosen = [*worst, *(others[i] for i in spread_evenly(len(others), MAX_OCCLUDED))]
    indices = np.array([results.examples.index(e) for e in chosen], np.int64)
    training = task.known("train")
    deviation = task.examples.targets[training].std(axis=0)
    scale = np.where(deviation > 0, deviation, 1.0)
    maps = occlusion_maps(head, X[indices], X[training], config, scale, seconds)
    clips = {occlusion_key(e): maps[i].tolist() for i, e in enumerate(worst[: len(maps)])}
    result = Occlusion(examples=len(maps), mean=maps.mean(axis=0).tolist(), clips=clips)
    with atomic_write(run / OCCLUSION) as temporary:
        temporary.write_text(result.model_dump_json(), encoding="utf-8")
    return run / OCCLUSION


def _task_of(run: Path, store: Store) -> tuple[Metrics, Config, Task]:
    """A run's metrics, config and task; a StoreError if it was trained on another store or other examples."""
    metrics, config = read_metrics(run), read_run_config(run)
    hint = f"--store {metrics.store.path}, or train again on this store"
    if metrics.store.fingerprint != store.fingerprint:
        raise StoreError(f"{store.path}: its recipe differs from the one {run} was trained on", hint=hint)
    task = read_task(config, store)
    if metrics.store.examples != task.digest:
        raise StoreError(f"{store.path}: its examples differ from those {run} was trained on", hint=hint)
    return metrics, config, task


def derive_together(configs: Sequence[Config], store: Store) -> None:
    """Add the derived streams of several heads to the store at once, because a packed store is copied each time.

    A FramebankError if a config does not fit the store.
    """
    streams: list[DerivedStream] = []
    for config in configs:
        task = read_task(config, store)
        config = resolve_default_head(config, store, task.examples)
        head = find_head(config.head.name).from_config(config)
        streams += head.derived_streams(_examples(config, store, task, task.frame_interval))
    if streams:
        try_derive_streams(store.path, streams)


def _read_examples(config: Config, store: Store, task: Task, frame_interval: float | None) -> StoreExamples:
    if config.head.normalises_flow and (text := unknown_horizons(store.sequences)):
        logger.warning(text)
    return _examples(config, store, task, frame_interval)


def _examples(config: Config, store: Store, task: Task, frame_interval: float | None) -> StoreExamples:
    memory, normalised = config.train.memory_gb, config.head.normalises_flow
    rows = task.examples.rows
    source = StoreSource(store.path, rows, memory, frame_interval, normalised, store)
    return StoreExamples(source, task.examples)


def _warn_of_mixed_rates(config: Config, store: Store, task: Task) -> None:
    """Log a warning if the head would see frames at different intervals, without knowing it."""
    rows = task.examples.rows[task.known("train")]
    if config.any_frame_rate or task.interval is None:
        return
    shortest, longest = (float(v) for v in np.quantile(window_intervals(rows, store), (0, 1)))
    if longest > shortest * (1 + MISPLACED):
        logger.warning(
            f"the frames of a window are {shortest:.3g} s apart in some sequences and {longest:.3g} s in others. "
            f"Try: --window.interval {longest:.3g}"
        )


def score_predictions(run: Path, examples: Examples, predictions: UncertainPredictions) -> Metrics:
    """The metrics of a run with the scores of its n predictions for a data set's examples instead of its own.

    The constant predictor is still the run's. A DataError if no example has a known target.
    """
    if not examples.known.any():
        raise DataError("no label with the run's target", expected=", ".join(examples.columns), hint="--input DATA_SET")
    results = read_results(run)
    task = Task(examples, examples.split, np.array(results.constant), None, math.nan)
    return results.metrics.model_copy(update=_score(task, predictions))


def _say_if_without_intervals(uncertainty: Uncertainty) -> None:
    """Log how many sequences the intervals would need, if there are too few."""
    needed, got = sequences_needed(uncertainty.level), uncertainty.scores.sequences
    if got < needed:
        level = f"{100 * uncertainty.level:g} %"
        logger.info(f"no {level} intervals: they need {needed} validation sequences, there are {got}")


def _fit_head(config: Config, task: Task, X: StoreExamples, callbacks: Callbacks) -> Head:
    """Fit the config's head on the training examples; the validation examples, if any, choose the epoch."""
    targets, train_indices, validation_indices = task.examples.targets, task.known("train"), task.known("validation")
    if len(validation_indices) == 0:
        logger.info("no validation examples: the last epoch is kept")
    head: Head = find_head(config.head.name).from_config(config).set_params(validation_split=0.0)  # the task is split
    validation = (X[validation_indices], targets[validation_indices]) if len(validation_indices) else None
    head.fit(X[train_indices], targets[train_indices], validation=validation, callbacks=callbacks)
    result = head.outcome_
    if result.interrupted:
        logger.info(
            f"stopped by Ctrl-C after epoch {len(result.history)} of {config.train.epochs}: "
            f"epoch {result.best_epoch} is kept and the run is written"
        )
    return head


def _run_metrics(config: Config, store: Store, task: Task, head: Head, predictions: UncertainPredictions) -> Metrics:
    """The content of metrics.json."""
    columns, result = config.data.columns, head.outcome_
    units = tuple(UNITS.get(column) for column in columns)
    return Metrics(
        target=columns,
        unit=units[0] if len(set(units)) == 1 else None,
        units=units,
        head=config.head.name,
        backbone=store.recipe.backbone,
        weights=store.recipe.weights,
        trained_backbone=store.recipe.weights != "random",
        parameters=Parameters(**count_parameters(head.model_, int(store.header.trunk.get("parameters", 0)))),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        seconds=result.seconds,
        interrupted=result.interrupted,
        store=StoreOrigin(**store_origin(store, task, config)),
        labels=task.labels,
        interval=task.interval,
        frame_interval=task.frame_interval,
        data=_data_source(config, store),
        recipe={**json.loads(store.recipe.to_json()), "cut": store.header.trunk.get("cut", "unknown")},
        window=config.window.length,
        **_score(task, predictions),
    )


def _data_source(config: Config, store: Store) -> DataSource:
    if is_imported(store.recipe.backbone):
        return DataSource(name=store.path.stem, layout="imported")
    return DataSource(name=Path(config.data.path).name, layout=config.data.layout)


def _score(task: Task, predictions: UncertainPredictions) -> dict[str, Any]:
    """The fields of `Metrics` that follow from the predictions: scores, verdict and dropped labels."""
    examples, splits, predicted = task.examples, {}, predictions.values
    answers = {"model": predicted, "constant": np.broadcast_to(task.constant, predicted.shape)}
    for split in dict.fromkeys(task.splits.tolist()):
        rows = task.known(split)
        if len(rows):
            true, position = examples.targets[rows], examples.position[rows]
            splits[split] = SplitMetrics(
                examples=len(rows),
                skill_interval=skill_interval(
                    true, predicted[rows], answers["constant"][rows], examples.columns, examples.sequence[rows]
                ),
                intervals=_score_intervals(true, predictions[rows], examples.columns),
                unlike_training=None if predictions.unlike is None else float(predictions.unlike[rows].mean()),
                **{k: scores(true, v[rows], task.constant, examples.columns, position) for k, v in answers.items()},
            )
    verdict_split = next(split for split in VERDICT_SPLITS if split in splits)
    sentence, no_better = verdict(verdict_split, splits[verdict_split].model)
    sequences = len(np.unique(examples.sequence[task.known(verdict_split)]))
    if sequences < FEW_SEQUENCES:
        sentence += f" Based on only {sequences} sequence{'s' * (sequences > 1)}; the result may be chance."
    return {
        "splits": splits,
        "interval_level": predictions.level if math.isfinite(predictions.level) else None,
        "verdict": sentence,
        "no_better_than_constant": no_better,
        "dropped": DroppedExamples(window=examples.dropped, unknown=int((~examples.known).sum())),
    }


def _score_intervals(
    true: Floats, predictions: UncertainPredictions, columns: tuple[str, ...]
) -> dict[str, IntervalScores] | None:
    """Score each target's intervals; None if there are none."""
    low, high = predictions.low, predictions.high
    if not np.isfinite(low).all():
        return None
    return {
        name: interval_scores(true[:, k], low[:, k], high[:, k], predictions.level) for k, name in enumerate(columns)
    }


def _write_predictions_and_metrics(
    run: Path, config: Config, store: Store, task: Task, predictions: UncertainPredictions, metrics: Metrics
) -> None:
    with atomic_write(run / "predictions.csv") as temporary:
        write_predictions(temporary, task.examples, task.splits, predictions, store.sequences)
    write_submission_files(run, config.data.layout, task.examples, predictions.values, store.sequences)
    write_metrics(run, metrics)
    write_card(run)
