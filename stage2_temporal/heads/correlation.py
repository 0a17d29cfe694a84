"""An LSTM on motion between maps: how the content of each cell moved over some frames, see `data.correlation`.

A small network looks at each cell's displacements, says what speed they mean and how much the cell counts, and an LSTM
follows the weighted mean over the frames. Several such members, trained from different initial weights, are averaged,
and their mean is averaged with a ridge regression on the window's mean vector, whose errors are others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.utils import gen_batches

from features._common.types import Floats, Tensor
from features.head_config import CorrelationLSTMConfig
from features.streams import MEMBER_PREDICTIONS, MIRROR_SIGNS, RIDGE, VECTORS
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.correlation import CELL_FEATURES, correlate_frames, normalise_maps
from stage2_temporal.data.derived_streams import CorrelationPooling, DerivedStream
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.heads.base import ValidationSet
from stage2_temporal.heads.closed_form import Vectors, linear_layer, standardise_targets, standardise_vectors
from stage2_temporal.heads.frame_pairs import FramePairsHead, fitting_lags
from stage2_temporal.heads.fusion import PENALTIES
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.training.keras_models import NamedTensors, apply_operations, submodel_from
from stage2_temporal.training.loop import Callbacks, fit_model, fix_seeds
from stage2_temporal.training.scaling import vector_scale

SCALED_AT_ONCE = 1024  # examples
CELL_MEANS = 4  # weighted means over the cells that a member's LSTM sees


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
        if signs is not None:
            means, targets = np.concatenate([means, self._mirrored(means)]), np.concatenate([targets, targets * signs])

        def read(rows: NDArray[np.int64]) -> Vectors:
            """The vectors of some examples; from `count` on, of the mirrored ones."""
            values: Vectors = vectors[rows % count]
            values[rows >= count] = self._mirrored(values[rows >= count])
            return values

        def batches(read: Callable[[Any], Any], y: Floats, seed: int | None = None) -> Batches:
            repeated = np.tile(y, members)  # each member has its own error
            return Batches(read, np.arange(len(y)), repeated, self.train_.batch, seed)

        rows = np.arange(len(targets))
        self._scale = vector_scale(read(rows[part]) for part in gen_batches(len(rows), SCALED_AT_ONCE))
        ridge = RidgeCV(PENALTIES).fit(
            standardise_vectors(means, self._scale).astype(np.float64), standardise_targets(targets, self._target)
        )
        self._ridge = np.reshape(ridge.coef_, (targets.shape[1], -1)).T, np.reshape(ridge.intercept_, -1)
        model = self._build_model(graph)
        each = self._in_target_unit(model.get_layer(MEMBER_PREDICTIONS).output)
        each = keras.ops.reshape(each, (-1, members * targets.shape[1]))
        validation_batches = None
        if validation is not None:
            validation_batches = batches(self._all_vectors(graph, validation[0]).__getitem__, validation[1])
        self.outcome_ = fit_model(
            submodel_from({VECTORS: graph.vectors}, keras.Model(model.input, each, name=model.name)),
            batches(read, targets, self.train_.seed),
            validation_batches,
            self.train_,
            deviation=np.tile(self._target.deviation, members) if self._target else None,
            callbacks=callbacks,
        )
        self.model_ = model

    def _mirror_signs(self, examples: HeadInputs) -> Floats | None:
        """(K,) factors of the targets in a mirrored scene; None if windows are not to be mirrored."""
        columns = examples.examples.columns if isinstance(examples, StoreExamples) else ()
        if not self.settings_.mirror or not columns or not set(columns) <= set(MIRROR_SIGNS):
            return None
        return np.array([MIRROR_SIGNS[column] for column in columns])

    def _mirrored(self, vectors: Vectors) -> Vectors:
        """The vectors (…, F) of mirrored scenes: cells change sides, and motion to the right is motion to the left."""
        measured = vectors.shape[-1] // self._cells // len(CELL_FEATURES)  # inputs · lags
        cells = vectors.reshape(*vectors.shape[:-1], *self.settings_.grid, measured, len(CELL_FEATURES))
        sign = np.where(np.array(CELL_FEATURES) == "right", -1, 1).astype(np.float32)
        return (cells[..., ::-1, :, :] * sign).reshape(vectors.shape)
