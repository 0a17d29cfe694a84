"""Track, appearance and motion together: what pooled maps and flow say of the scene, what the box says of a vehicle.

It begins with an answer that is solved at once: from the track the robust line of `box_ridge`; where no example has a
tracked box (own speed), a ridge on the window's mean. A recurrent layer over the frames learns what that leaves over.
What lies before it, the store's top included, stays as it is, so that a window is summarised once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV

from features._common.types import Floats, Tensor
from features.head_config import FusionConfig
from features.streams import GEOMETRY
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import HeadInputs, StoreExamples, as_maps
from stage2_temporal.data.pooling import check_grid, grid_changes, grid_means
from stage2_temporal.heads.base import Head, ValidationSet
from stage2_temporal.heads.closed_form import standardise_targets, standardise_vectors
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.graph import Graph, NamedTensors, concatenate
from stage2_temporal.heads.vehicle import VehicleHead, about_vehicles
from stage2_temporal.training.loop import fit_model, fix_seeds
from stage2_temporal.training.scaling import vector_scale
from stage2_temporal.vehicle.camera_geometry import CAMERA_GEOMETRY_FILE

MAX_UNPOOLED_SIZE = 1024  # numbers an entry up to which a stream is taken whole, not pooled
PENALTIES = np.logspace(0, 6, 13)  # of the ridge, on features of deviation 1; the best by leaving one out
Vectors32 = NDArray[np.float32]


class Fusion(VehicleHead):
    """GRU over pooled maps and flow, with the track's states in every frame, on top of a solved answer."""

    settings = FusionConfig
    train_settings = GradientHead.train_settings
    alone = False

    def _prepare(self, examples: HeadInputs, targets: Floats) -> None:
        self.scene_ = None
        if isinstance(examples, StoreExamples) and about_vehicles(examples):
            super()._prepare(examples, targets)

    @property
    def _inputs(self) -> dict[str, str]:
        return {stream: stream for stream in self._head.streams}

    def _entries(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        return Head._entries(self, examples) | ({} if self.scene_ is None else super()._entries(examples))

    def _base(self, examples: HeadInputs) -> NamedTensors:
        found = Head._base(self, examples)
        return found if self.scene_ is None else found | {GEOMETRY: self._geometry(examples)}

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        """(batch, T, F): each frame's cells and their change; then, where there are tracks, states and line."""
        parts = []
        for name in self._inputs:
            maps = self._with_top(as_maps(arrays[name]), name)
            _, time, *entry = maps.shape
            if int(np.prod(entry)) <= MAX_UNPOOLED_SIZE:
                parts.append(keras.ops.reshape(maps, (-1, time, int(np.prod(entry)))))
                continue
            check_grid(self._head.grid, *maps.shape[2:4])
            parts.append(grid_means(maps, self._head.grid))
            if self._head.difference:
                moved = grid_changes(maps, self._head.grid, 1)
                parts.append(keras.ops.concatenate([moved[:, :1], moved], axis=1))
        if self.scene_ is not None:
            clean = self._line.reading.clean(arrays[GEOMETRY])
            told = keras.ops.concatenate([self._line.reading.states(clean), self._line(clean)], axis=-1)
            parts.append(keras.ops.repeat(keras.ops.expand_dims(told, 1), parts[0].shape[1], axis=1))
        return concatenate(parts)

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        x = keras.layers.GRU(self._head.units, name="gru")(vectors)
        if self._head.dense:
            x = keras.layers.Dense(self._head.dense, activation="relu", name="dense")(x)
        x = keras.layers.Dropout(self._head.dropout, name="dropout")(x)
        rest = keras.layers.Dense(targets, kernel_initializer="zeros", name="rest")(x)
        kernel, bias = (part.astype(np.float32) for part in self._solution)
        return rest + keras.ops.matmul(keras.ops.mean(vectors, axis=1), kernel) + bias

    def _learn(self, examples: HeadInputs, targets: Floats, held: ValidationSet | None, logs: Path | None) -> None:
        fix_seeds(self._train.seed)
        graph = self._graph()
        vectors = self._all(graph, examples)
        self._scale = vector_scale([vectors])
        self._solution = self._solve(
            standardise_vectors(vectors, self._scale).mean(axis=1), standardise_targets(targets, self._target)
        )
        entry = keras.Input(vectors.shape[1:], name="vectors")
        tail = self._finished(Graph({"vectors": entry}, {}, entry))

        def batches(values: Vectors32, y: Floats, seed: int | None = None) -> Batches:
            return Batches(_Held(values), np.arange(len(values)), y, self._train.batch, seed)

        self.outcome_ = fit_model(
            tail,
            batches(vectors, targets, self._train.seed),
            None if held is None else batches(self._all(graph, held[0]), held[1]),
            self._train,
            deviation=self._target.deviation if self._target else None,
            logs=logs,
        )
        self.model_ = self._finished(graph)
        for layer in tail.layers:
            if layer.weights:
                self.model_.get_layer(layer.name).set_weights(layer.get_weights())

    def _all(self, graph: Graph, examples: HeadInputs) -> Vectors32:
        return np.concatenate([*self._computed(graph, examples, whole=True)])

    def _solve(self, mean: Vectors32, targets: Floats) -> tuple[Floats, Floats]:
        """Kernel (F, K) and bias (K,) from a window's mean vector to the answer that training starts from."""
        kernel, count = np.zeros((mean.shape[1], targets.shape[1])), targets.shape[1]
        if self.scene_ is None:
            found = RidgeCV(PENALTIES).fit(mean.astype(np.float64), targets)
            return np.reshape(found.coef_, (count, -1)).T, np.reshape(found.intercept_, -1)
        # the line's own answer, the last columns, as it was before it was standardised
        kernel[-count:] = np.eye(count) if self._scale is None else np.diag(self._scale.deviation[-count:])
        return kernel, np.zeros(count) if self._scale is None else self._scale.mean[-count:]

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        return super().restore(
            model, folder if folder is not None and (folder / CAMERA_GEOMETRY_FILE).is_file() else None
        )


class _Held:
    """Vectors in memory."""

    def __init__(self, values: Vectors32) -> None:
        self._values = values

    def windows(self, rows: NDArray[np.int64]) -> Any:
        return self._values[rows]
