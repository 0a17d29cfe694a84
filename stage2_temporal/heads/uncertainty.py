"""A head's model with what its uncertainty needs, and how that is learned from training and validation examples.

model ──► [ prediction (K) | inputs of the errors' scale (S) | distance from the training examples (1) ]
"""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from features.config import TrainConfig
from stage2_temporal.data.examples import StoreExamples
from stage2_temporal.data.row_profile import row_profile, window_profiles
from stage2_temporal.data.task import Task
from stage2_temporal.evaluation.intervals import calibrate
from stage2_temporal.evaluation.known_cameras import known_cameras
from stage2_temporal.evaluation.novelty import NoveltyModel, fit_novelty
from stage2_temporal.evaluation.uncertainty import INPUTS, PROFILE, UncertainPredictions, Uncertainty, WindowOrigin
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.cross_fitting import interval_folds, pooled_rows, predict_left_out
from stage2_temporal.training.keras_models import apply_operations

MAX_EXAMPLES = 1000  # training or validation examples that are compared
MAX_NUMBERS = 40_000_000  # in their vectors together


def uncertain_model(head: Head, model: keras.Model, novelty: NoveltyModel | None) -> keras.Model:
    """A head's model whose output (batch, K + S + 1) holds more than predictions; the distance is 0 if unknown."""
    scale, scene, prediction = head.error_scale(model), head.scene(model), model.output
    compared = [] if novelty is None or scene is None else [scene]

    def outputs(prediction: Tensor, *others: Tensor) -> Tensor:
        distance = keras.ops.zeros_like(prediction[:, :1])
        if compared and novelty is not None:
            distance, others = _distance(others[-1], novelty), others[:-1]
        return keras.ops.concatenate([prediction, *others, distance], axis=-1)

    tensors = [prediction, *([] if scale is None else [scale]), *compared]
    return keras.Model(model.input, apply_operations("uncertainty", outputs, *tensors), name=model.name)


def learn_uncertainty(
    head: Head, X: StoreExamples, task: Task, settings: TrainConfig
) -> tuple[Uncertainty, UncertainPredictions]:
    """Learn a fitted head's uncertainty, and predict all examples of a task.

    Intervals come from errors on sequences that were left out of a fit: all training and validation sequences, fold by
    fold, where `interval_folds` says so, else the validation sequences.
    """
    rows, profiles = pooled_rows(task), example_profiles(X)
    some = _spread(rows)
    fitted = {INPUTS: _fit_inputs(head, X, rows), PROFILE: fit_novelty(profiles[some], X.groups[some])}
    novelty = {name: model for name, model in fitted.items() if model is not None}
    outputs = predict_outputs(head, uncertain_model(head, head.model_, novelty.get(INPUTS)), X)
    targets, train, validation = task.examples.targets, task.known("train"), task.known("validation")
    folds = interval_folds(head, task, settings)
    left_out = predict_left_out(head, X, task, folds, _predictions_and_inputs) if folds else None
    rows, values = (validation, outputs[validation, :-1]) if left_out is None else left_out
    predicted, inputs = np.split(values, [targets.shape[1]], axis=1)
    constant_error = np.abs(targets[train] - task.constant).mean(axis=0)
    largest = np.where(constant_error > 0, constant_error, np.inf)  # 0 where all targets are equal
    calibration = calibrate(predicted - targets[rows], inputs, X.groups[rows], largest)
    sequences = X.source.store.sequences
    cameras = known_cameras(sequences[i] for i in np.unique(X.groups[pooled_rows(task)]).tolist())
    uncertainty = Uncertainty(task.examples.columns, settings.interval_level, calibration, novelty, cameras)
    origin = WindowOrigin(sequences, X.groups, task.splits)
    return uncertainty, uncertainty.predictions(outputs, profiles if PROFILE in novelty else None, origin)


def _predictions_and_inputs(head: Head, X: StoreExamples) -> Floats:
    """A head's predictions and the inputs of its errors' scale (n, K + S)."""
    return predict_outputs(head, uncertain_model(head, head.model_, None), X)[:, :-1]


def predict_outputs(head: Head, model: keras.Model, X: StoreExamples) -> Floats:
    """The outputs (n, …) of a model with the same inputs as the head's."""
    head_model = head.model_
    try:
        head.model_ = model
        return head._predict_examples(X)
    finally:
        head.model_ = head_model


def example_profiles(X: StoreExamples) -> Floats:
    """The mean profiles (n, F) of the first and the last frame of examples' windows, from the store's thumbnails."""
    ends = X.examples.rows[:, [0, -1]]
    rows, inverse = np.unique(ends, return_inverse=True)
    profiles = np.array([row_profile(X.source.store.thumbnail(int(row))) for row in rows])
    return window_profiles(profiles, inverse.reshape(ends.shape))


def _fit_inputs(head: Head, X: StoreExamples, rows: NDArray[np.int64]) -> NoveltyModel | None:
    """The distribution of what the head computes its output from; None if its model cannot tell."""
    scene = head.scene(head.model_)
    if scene is None:
        return None
    some = X[_spread(rows, int(scene.shape[-1]))]
    return fit_novelty(predict_outputs(head, keras.Model(head.model_.input, scene), some), some.groups)


def _spread(rows: NDArray[np.int64], size: int = 1) -> NDArray[np.int64]:
    """Rows, or as many of them, evenly spread, as vectors of a size may be compared."""
    most = max(2, min(MAX_EXAMPLES, MAX_NUMBERS // (2 * size)))
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _distance(scene: Tensor, novelty: NoveltyModel) -> Tensor:
    """`NoveltyModel.distances` in a graph: (batch, F) → (batch, 1)."""
    centred = scene - novelty.mean.astype(np.float32)
    projected = keras.ops.matmul(centred, novelty.components.T.astype(np.float32))
    squares = keras.ops.square(projected)
    residual = keras.ops.sum(keras.ops.square(centred), axis=-1) - keras.ops.sum(squares, axis=-1)
    inside = keras.ops.sum(squares / novelty.variances.astype(np.float32), axis=-1)
    total = inside + novelty.residual_precision * keras.ops.maximum(residual, 0.0)
    return keras.ops.sqrt(keras.ops.expand_dims(total, -1))
