"""Track, appearance and motion in one head: pooled maps and flow describe the scene, the track describes the vehicle.

It starts from a linear model that is solved in one step: for tracked vehicles the robust one of `box_ridge`, for ego
speed a ridge regression on the window's mean vector. A GRU over the frames then learns the residual. Everything before
the GRU, the store's top included, is left as it is, so that each window's vectors are computed only once.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

import keras
import numpy as np
from sklearn.linear_model import RidgeCV

from features._common.types import Floats, Tensor
from features.head_config import FusionConfig, HeadConfig
from features.streams import GEOMETRY, VECTORS
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.data.pooling import pool_frames
from stage2_temporal.heads.base import Head, ValidationSet
from stage2_temporal.heads.closed_form import Vectors, standardise_targets, standardise_vectors
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.pooled import repeat_first
from stage2_temporal.heads.vehicle import VehicleHead, about_vehicles
from stage2_temporal.training.keras_models import NamedTensors, concatenate, submodel_from
from stage2_temporal.training.loop import Callbacks, fit_model, fix_seeds
from stage2_temporal.training.scaling import Scale, vector_scale
from stage2_temporal.vehicle.camera_geometry import CAMERA_GEOMETRY_FILE

MAX_UNPOOLED_SIZE = 1024  # entries of a stream with at most this many numbers are not pooled
PENALTIES = np.logspace(0, 6, 13)  # of the ridge, on standardised features; leave-one-out errors choose one


class Fusion(VehicleHead, GradientHead):
    """A linear model plus a GRU over pooled maps and flow, with the track's states repeated in every frame."""

    settings: ClassVar[type[HeadConfig]] = FusionConfig
    recurrent: ClassVar[type[keras.layers.Layer]] = keras.layers.GRU
    refit_examples = 1000

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        self.camera_geometry_ = None
        if isinstance(examples, StoreExamples) and about_vehicles(examples):
            super().prepare(examples, targets)

    def input_shapes(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        return Head.input_shapes(self, examples) if self.camera_geometry_ is None else super().input_shapes(examples)

    def input_arrays(self, examples: HeadInputs) -> NamedTensors:
        return Head.input_arrays(self, examples) if self.camera_geometry_ is None else super().input_arrays(examples)

    def vectors(self, features: NamedTensors) -> Tensor:
        """(batch, T, F): each frame's cells and their change; then, with tracks, states and linear prediction."""
        parts = []
        for name in self.input_streams:
            maps = self.with_top(features[name], name)
            _, time, *entry = maps.shape
            if int(np.prod(entry)) <= MAX_UNPOOLED_SIZE:
                parts.append(keras.ops.reshape(maps, (-1, time, int(np.prod(entry)))))
                continue
            parts.append(pool_frames(maps, self.settings_.grid))
            if self.settings_.difference:
                parts.append(repeat_first(pool_frames(maps, self.settings_.grid, lag=1)))
        if self.camera_geometry_ is not None:
            parts.append(self.track_states(features[GEOMETRY], parts[0].shape[1]))
        return concatenate(parts)

    def track_states(self, geometry: Tensor, time: int) -> Tensor:
        """(batch, time, F) the track's states and the linear model's prediction, repeated in every frame."""
        normaliser = self._linear_model.normaliser
        clean = normaliser.clean(geometry)
        track = concatenate([normaliser.states(clean), self._linear_model(clean)])
        return keras.ops.repeat(keras.ops.expand_dims(track, 1), time, axis=1)

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        x = self.recurrent(self.settings_.units, name=self.recurrent.__name__.lower())(vectors)
        residual = self.dense_output(x, targets, "rest", initializer="zeros")
        kernel, bias = (array.astype(np.float32) for array in self._start)
        return residual + keras.ops.matmul(self.window_mean(vectors), kernel) + bias

    def window_mean(self, vectors: Tensor) -> Tensor:
        """(batch, T, F) → (batch, F), from which the linear model predicts."""
        return keras.ops.mean(vectors, axis=1)

    def _train_model(
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, callbacks: Callbacks
    ) -> None:
        fix_seeds(self.train_.seed)
        graph = self._build_graph()
        vectors = self._all_vectors(graph, examples)
        self._scale = vector_scale([vectors])
        mean_vectors = np.asarray(self.window_mean(standardise_vectors(vectors, self._scale)))
        self._start = self._linear_start(mean_vectors, standardise_targets(targets, self._target), self._scale)
        model = self._build_model(graph)

        def batches(values: Vectors, y: Floats, seed: int | None = None) -> Batches:
            return Batches(values.__getitem__, np.arange(len(values)), y, self.train_.batch, seed)

        self.outcome_ = fit_model(
            submodel_from({VECTORS: graph.vectors}, model),
            batches(vectors, targets, self.train_.seed),
            None if validation is None else batches(self._all_vectors(graph, validation[0]), validation[1]),
            self.train_,
            deviation=self._target.deviation if self._target else None,
            callbacks=callbacks,
        )
        self.model_ = model

    def _linear_start(self, mean_vectors: Vectors, targets: Floats, scale: Scale) -> tuple[Floats, Floats]:
        """Kernel (F, K) and bias (K,) that predict targets from a window's mean vector, before any training."""
        count = targets.shape[1]
        if self.camera_geometry_ is None:
            ridge = RidgeCV(PENALTIES).fit(mean_vectors.astype(np.float64), targets)
            return np.reshape(ridge.coef_, (count, -1)).T, np.reshape(ridge.intercept_, -1)
        # the last columns are the linear model's prediction: undo their standardisation
        kernel = np.zeros((mean_vectors.shape[1], count))
        kernel[-count:] = np.diag(scale.deviation[-count:])
        return kernel, scale.mean[-count:]

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        has_track = folder is not None and (folder / CAMERA_GEOMETRY_FILE).is_file()
        return super().restore(model, folder if has_track else None)
