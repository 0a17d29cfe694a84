"""Records runs in TensorBoard's logs and in MLflow, if `[track]` asks for it. Both are extras, imported when used.

MLflow gets a finished run in one go, from the run's files. By default it writes files into the folder `mlruns`; its
telemetry is switched off, so that nothing is sent anywhere unless `track.address` names a server.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from features._common.console import logger
from features._common.extras import require_package
from features.config import Config, TrackConfig, read_run_config
from stage2_temporal.evaluation.history import Epoch, read_history
from stage2_temporal.runs.results import RETRAIN, Metrics, read_metrics
from stage2_temporal.runs.tables import metrics_table

LOCAL_STORE = "mlruns"
ARTIFACTS = ("config.toml", "metrics.json", "history.csv", "predictions.csv", "report.html", "model.keras")
EXTRA = "track"
SCORES = ("rmse", "mae", "skill", "spread_ratio")
MAX_PARAMETERS, MAX_METRICS = 100, 1000  # that MLflow takes at once


def check_trackers(track: TrackConfig) -> None:
    """Raise a ConfigError if a package is missing; called before a training begins."""
    if track.tensorboard:
        require_package("tensorboard", EXTRA, "track.tensorboard")
    if track.mlflow:
        require_package("mlflow", EXTRA, "track.mlflow")


def tensorboard_callbacks(track: TrackConfig, folder: Path) -> list[Any]:
    """The Keras callbacks that write each epoch into a run's folder while it trains."""
    if not track.tensorboard:
        return []
    import keras

    return [keras.callbacks.TensorBoard(log_dir=str(_log_folder(folder)), write_graph=False)]


def track_run(folder: Path) -> None:
    """Record the finished run in a folder as its `[track]` says; a tracker that fails is warned of, the run stays."""
    config = read_run_config(folder)
    if config.track.tensorboard:
        _write_summaries(folder, config)
    if config.track.mlflow:
        try:
            _record_in_mlflow(folder, config)
        except Exception as e:  # whatever a server or a network makes of it
            logger.warning(f"{folder.name}: not recorded in MLflow: {' '.join(str(e).split())}")


def run_parameters(config: Config) -> dict[str, str]:
    """All settings of a run by their full names, except where it is recorded."""
    sections = config.model_dump(mode="json", exclude={"track"})
    return {f"{s}.{key}": json.dumps(value) for s, settings in sections.items() for key, value in settings.items()}


def final_scores(metrics: Metrics) -> dict[str, float]:
    """The model's and the constant predictor's scores, as `test/skill` and `test/constant/rmse`; only finite ones."""
    scores = {
        f"{split}/{prefix}{name}": float(getattr(predictor, name))
        for split, scored in metrics.splits.items()
        for prefix, predictor in (("", scored.model), ("constant/", scored.constant))
        for name in SCORES
    }
    return {name: value for name, value in scores.items() if isfinite(value)}


def _log_folder(run: Path) -> Path:
    return run / "tensorboard"


def _epoch_values(history: tuple[Epoch, ...]) -> Iterator[tuple[int, dict[str, float]]]:
    for row in history:
        values = asdict(row)
        yield values.pop("epoch"), {name: value for name, value in values.items() if isfinite(value)}


def _write_summaries(folder: Path, config: Config) -> None:
    """Write what Keras' callback does not: settings, the final table, and the history of heads without epochs."""
    import tensorflow as tf

    metrics, history = read_metrics(folder), read_history(folder / "history.csv", RETRAIN)
    writer = tf.summary.create_file_writer(str(_log_folder(folder) / "run"))
    settings = "\n".join(f"| {name} | {value} |" for name, value in run_parameters(config).items())
    with writer.as_default(step=metrics.best_epoch):
        tf.summary.text("settings", f"| setting | value |\n| --- | --- |\n{settings}")
        tf.summary.text("results", f"```\n{metrics_table(metrics)}\n```")
        for name, value in final_scores(metrics).items():
            tf.summary.scalar(name, value)
        for epoch, values in _epoch_values(history):
            for name, value in values.items():
                tf.summary.scalar(f"history/{name}", value, step=epoch)
    writer.close()


def _record_in_mlflow(folder: Path, config: Config) -> None:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when it is imported
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which its later versions refuse otherwise
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    metrics, history = read_metrics(folder), read_history(folder / "history.csv", RETRAIN)
    client = MlflowClient(tracking_uri=config.track.address or Path(LOCAL_STORE).absolute().as_uri())
    name = config.track.experiment
    experiment = client.get_experiment_by_name(name)
    try:
        identity = experiment.experiment_id if experiment else client.create_experiment(name)
    except MlflowException:  # another process made it meanwhile
        identity = client.get_experiment_by_name(name).experiment_id
    finished = int(1000 * time.time())
    started = finished - int(1000 * metrics.seconds)
    tags = {"head": metrics.head, "target": ",".join(metrics.target), "verdict": metrics.verdict}
    run = client.create_run(identity, start_time=started, tags=tags, run_name=folder.name).info.run_id
    try:
        parameters = [Param(key, value) for key, value in run_parameters(config).items()]
        for i in range(0, len(parameters), MAX_PARAMETERS):
            client.log_batch(run, params=parameters[i : i + MAX_PARAMETERS])
        when, curves = started, []
        for epoch, values in _epoch_values(history):
            when += int(1000 * values.get("seconds", 0.0))
            curves += [Metric(key, value, when, epoch) for key, value in values.items()]
        finals = [Metric(key, value, finished, metrics.best_epoch) for key, value in final_scores(metrics).items()]
        points = [*curves, *finals]
        for i in range(0, len(points), MAX_METRICS):
            client.log_batch(run, metrics=points[i : i + MAX_METRICS])
        client.log_text(run, metrics_table(metrics), "results.txt")
        for file in ARTIFACTS:
            if (folder / file).is_file():
                client.log_artifact(run, str(folder / file))
    except BaseException:
        client.set_terminated(run, "FAILED")
        raise
    client.set_terminated(run, end_time=finished)
