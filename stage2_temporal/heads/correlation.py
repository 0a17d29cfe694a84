"""An LSTM on motion between maps: how the content of each cell moved over some frames, see `data.correlation`.

A small network looks at each cell's displacements, says what speed they mean and how much the cell counts, and an LSTM
follows the weighted mean over the frames. Several such members, trained from different initial weights, are averaged,
and their mean is averaged with a ridge regression on the window's mean vector, whose errors are others.

Predictions of examples that were left out say how much of both is used, see `held_out.stack`: with nothing to learn,
the head predicts the constant. Without validation examples, each member leaves out a part of the training examples
(A. Krogh, J. Vedelsby, "Neural network ensembles, cross validation, and active learning", 1995).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

from features._common.types import Floats, Tensor
from features.head_config import CorrelationLSTMConfig
from features.streams import MEMBER_PREDICTIONS, MIRROR_SIGNS, RIDGE, VECTORS
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.correlation import CELL_FEATURES, correlate_frames, normalise_maps
from stage2_temporal.data.derived_streams import CorrelationPooling, DerivedStream
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.heads.base import Graph, ValidationSet
from stage2_temporal.heads.closed_form import Vectors, linear_layer, standardise_targets, standardise_vectors
from stage2_temporal.heads.frame_pairs import FramePairsHead, fitting_lags
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.held_out import Folds, cross_validated_ridge, stack
from stage2_temporal.training.keras_models import NamedTensors, apply_operations, submodel_from
from stage2_temporal.training.loop import Callbacks, TrainingResult, fit_model, fix_seeds, predict_batches
from stage2_temporal.training.scaling import vector_scale

SCALED_AT_ONCE = 1024  # examples
CELL_MEANS = 4  # weighted means over the cells that a member's LSTM sees
RIDGE_FOLDS = 5
WEIGHTS = "weights"  # the input of the model that trains: of each member's error


class _MemberExamples(NamedTuple):
    """n examples, and which of them count for which member."""

    read: Callable[[NDArray[np.int64]], Vectors]
    targets: Floats  # (n, K)
    counted: NDArray[Any]  # (members, n) 0 or 1


class CorrelationLSTM(FramePairsHead, GradientHead):
    """LSTMs on local correlation between maps, averaged with a ridge regression."""

    settings = CorrelationLSTMConfig

    def feature_lags(self, length: int) -> tuple[int, ...]:
        return fitting_lags(self.settings_.lags, length)

    def reduce_frames(self, name: str, maps: Tensor) -> Tensor:
        return normalise_maps(maps, self.settings_.skip_top)

    def frame_features(self, frames: Tensor, lag: int) -> Tensor:
        return correlate_frames(frames, lag, self.settings_.grid, self.settings_.search)

    def derived_stream(self, stream: str, distance: int) -> DerivedStream:
        return CorrelationPooling(stream, self.settings_.grid, distance, self.settings_.search, self.settings_.skip_top)

    def has_stored_features(self, examples: HeadInputs) -> bool:
        # the store has the motion from each earlier frame to a later one, but a reversed window shows the opposite
        forwards = isinstance(examples, StoreExamples) and bool((np.diff(examples.examples.rows, axis=1) > 0).all())
        return forwards and super().has_stored_features(examples)

    def vectors(self, features: NamedTensors) -> Tensor:
        """(batch, T − 1, cells · inputs · lags · 6): for each frame but the first, the features, cell by cell.

        Frames without a frame `lag` before get the mean of those that have one.
        """
        cells, length = self._cells, max(values.shape[1] for values in features.values())
        parts = []
        for values in features.values():
            values = keras.ops.reshape(values, (-1, values.shape[1], cells, len(CELL_FEATURES)))
            mean = keras.ops.mean(values, axis=1, keepdims=True)
            parts.append(keras.ops.concatenate([mean] * (length - values.shape[1]) + [values], axis=1))
        x = keras.ops.concatenate(parts, axis=-1)
        return keras.ops.reshape(x, (-1, length, cells * x.shape[-1]))

    @property
    def knows_mirrored_vectors(self) -> bool:
        return bool(self.settings_.mirror)  # else left and right are standardised differently

    def mirrored_vectors(self, vectors: Vectors) -> Vectors:
        # cells change sides, and motion to the right is motion to the left
        measured = vectors.shape[-1] // self._cells // len(CELL_FEATURES)  # inputs · lags
        cells = vectors.reshape(*vectors.shape[:-1], *self.settings_.grid, measured, len(CELL_FEATURES))
        sign = np.where(np.array(CELL_FEATURES) == "right", -1, 1).astype(np.float32)
        return (cells[..., ::-1, :, :] * sign).reshape(vectors.shape)

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        members = keras.ops.stack([self._member(vectors, targets, i) for i in range(self.settings_.members)], axis=1)
        members = keras.layers.Identity(name=MEMBER_PREDICTIONS)(members)
        linear = keras.ops.mean(linear_layer(vectors, *self._ridge, name=RIDGE, trainable=False), axis=1)
        return (keras.ops.mean(members, axis=1) + linear) / 2

    def error_scale(self, model: keras.Model) -> Tensor:
        """(batch, 2 · targets) the standard deviation of the members' predictions, and the absolute predictions."""

        def quantities(members: Tensor, predicted: Tensor) -> Tensor:
            return keras.ops.concatenate([keras.ops.std(members, axis=1), keras.ops.abs(predicted)], axis=-1)

        members = model.get_layer(MEMBER_PREDICTIONS).output
        return apply_operations("error_scale", quantities, members, model.output)

    def _member(self, vectors: Tensor, targets: int, index: int) -> Tensor:
        """(batch, T, F) → (batch, targets): a network over the cells of each frame, an LSTM over the frames."""
        settings, (_, time, size) = self.settings_, vectors.shape
        x = keras.ops.reshape(vectors, (-1, time, self._cells, size // self._cells))
        x = keras.layers.Dense(settings.dense, name=f"cell{index}")(x)
        # a gain and an offset per cell, since the same motion means another speed elsewhere: a convolution of width 1
        x = keras.ops.reshape(x, (-1, time, self._cells * settings.dense))
        x = keras.layers.DepthwiseConv1D(1, depthwise_initializer="ones", name=f"place{index}")(x)
        x = keras.ops.reshape(x, (-1, time, self._cells, settings.dense))
        x = keras.layers.Dropout(settings.dropout, name=f"dropout{index}")(keras.ops.gelu(x))
        estimates = keras.layers.Dense(CELL_MEANS, name=f"estimate{index}")(x)
        weights = keras.ops.softmax(keras.layers.Dense(CELL_MEANS, name=f"weight{index}")(x), axis=2)
        x = keras.layers.LSTM(settings.units, name=f"lstm{index}")(keras.ops.sum(weights * estimates, axis=2))
        return keras.layers.Dense(targets, name=f"output{index}")(x)

    @property
    def _cells(self) -> int:
        rows, columns = self.settings_.grid
        return int(rows * columns)

    def _train_model(
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, callbacks: Callbacks
    ) -> None:
        fix_seeds(self.train_.seed)
        graph, members = self._build_graph(), self.settings_.members
        vectors, signs = self._all_vectors(graph, examples), self._mirror_signs(examples)
        count, means = len(vectors), vectors.mean(axis=1)
        frames = examples.examples.rows if isinstance(examples, StoreExamples) else np.arange(count)[:, None]
        ridge_folds, member_folds = (Folds.divide(frames, examples.groups, n) for n in (RIDGE_FOLDS, members))
        if signs is not None:
            means = np.concatenate([means, self.mirrored_vectors(means)])
            targets = np.concatenate([targets, targets * signs])
            ridge_folds, member_folds = ridge_folds.twice(), member_folds.twice()

        def read(rows: NDArray[np.int64]) -> Vectors:
            """The vectors of some examples; from `count` on, of the mirrored ones."""
            values: Vectors = vectors[rows % count]
            values[rows >= count] = self.mirrored_vectors(values[rows >= count])
            return values

        rows = np.arange(len(targets))
        self._scale = vector_scale(read(rows[part]) for part in gen_batches(len(rows), SCALED_AT_ONCE))
        scaled_means = standardise_vectors(means, self._scale).astype(np.float64)
        scaled_targets = standardise_targets(targets, self._target)
        weights, bias, ridge_left_out = cross_validated_ridge(scaled_means, scaled_targets, ridge_folds)
        self._ridge = weights, bias
        model = self._build_model(graph)

        learning, held_out = _MemberExamples(read, targets, np.ones((members, len(rows)))), None
        if validation is not None:
            others = self._all_vectors(graph, validation[0])
            held_out = _MemberExamples(others.__getitem__, validation[1], np.ones((members, len(others))))
            ridge_left_out = standardise_vectors(others.mean(axis=1), self._scale) @ self._ridge[0] + self._ridge[1]
        elif members > 1 and member_folds.fitted.any(axis=1).all():
            learning = _MemberExamples(read, targets, member_folds.fitted)
            held_out = _MemberExamples(read, targets, member_folds.left_out)
        self.outcome_ = self._fit_members(graph, model, learning, held_out, callbacks)
        if held_out is not None:
            constant = np.zeros(targets.shape[1]) if self._target else targets.mean(axis=0)
            each = self._predict_members(graph, model, held_out) - constant
            mean = np.average(each, axis=1, weights=np.repeat(held_out.counted.T[..., None], each.shape[2], axis=2))
            known = np.isfinite(ridge_left_out).all(axis=1)
            scaled = standardise_targets(held_out.targets, self._target) - constant
            factors = stack((mean[known], ridge_left_out[known] - constant), scaled[known])
            self._multiply_parts(model, factors, constant)
        self.model_ = model

    def _fit_members(
        self,
        graph: Graph,
        model: keras.Model,
        learning: _MemberExamples,
        held_out: _MemberExamples | None,
        callbacks: Callbacks,
    ) -> TrainingResult:
        """Train each member on its own error, over the examples that count for it."""
        members, count = self.settings_.members, learning.targets.shape[1]
        weights = keras.Input((members,), name=WEIGHTS)
        each = self._in_target_unit(model.get_layer(MEMBER_PREDICTIONS).output) * weights[..., None]
        learner = keras.Model([*model.inputs, weights], keras.ops.reshape(each, (-1, members * count)), name=model.name)

        def batches(examples: _MemberExamples, seed: int | None = None) -> Batches:
            # errors are multiplied by these, so that the mean square is that of the errors that count
            factors = np.sqrt(examples.counted / examples.counted.mean()).T.astype(np.float32)
            targets = (examples.targets[:, None] * factors[..., None]).reshape(-1, members * count)

            def read(rows: NDArray[np.int64]) -> NamedTensors:
                return {VECTORS: examples.read(rows), WEIGHTS: factors[rows]}

            return Batches(read, np.arange(len(targets)), targets, self.train_.batch, seed)

        return fit_model(
            submodel_from({VECTORS: graph.vectors, WEIGHTS: weights}, learner),
            batches(learning, self.train_.seed),
            None if held_out is None else batches(held_out),
            self.train_,
            deviation=np.tile(self._target.deviation, members) if self._target else None,
            callbacks=callbacks,
        )

    def _predict_members(self, graph: Graph, model: keras.Model, examples: _MemberExamples) -> Floats:
        """Each member's prediction (n, members, K), not in the target's unit."""
        part = keras.Model(graph.vectors, model.get_layer(MEMBER_PREDICTIONS).output)
        return predict_batches(part, Batches(examples.read, np.arange(len(examples.targets)), None, self.train_.batch))

    def _multiply_parts(self, model: keras.Model, factors: tuple[float, float], constant: Floats) -> None:
        """Multiply what the members' mean and the ridge add to the constant (K,); their mean is the prediction."""
        names = [*(f"output{i}" for i in range(self.settings_.members)), RIDGE]
        for name, factor in zip(names, [2 * factors[0]] * self.settings_.members + [2 * factors[1]], strict=True):
            kernel, bias = model.get_layer(name).get_weights()
            model.get_layer(name).set_weights([factor * kernel, constant + factor * (bias - constant)])

    def _mirror_signs(self, examples: HeadInputs) -> Floats | None:
        """(K,) factors of the targets in a mirrored scene; None if windows are not to be mirrored."""
        columns = examples.examples.columns if isinstance(examples, StoreExamples) else ()
        if not self.settings_.mirror or not columns or not set(columns) <= set(MIRROR_SIGNS):
            return None
        return np.array([MIRROR_SIGNS[column] for column in columns])
