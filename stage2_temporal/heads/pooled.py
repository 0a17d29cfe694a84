"""What heads on pooled maps share: each frame as a vector and how it changed, in a model's graph and from a store."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Self

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA

from features._common.types import Floats, Tensor
from features.errors import ConfigError
from features.principal_components import PCABasis, check_count, fit_pca
from features.streams import APPEARANCE
from stage2_temporal.data.derived_streams import (
    DerivedStream,
    GridPooling,
    PCAProjection,
)
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.data.pooling import absolute_differences, feature_name, pool_frames
from stage2_temporal.heads.frame_pairs import FramePairsHead, fitting_lags
from stage2_temporal.training.keras_models import NamedTensors, concatenate

MIN_CHANGE = 1e-3  # added to each cell's change, relative to the window's mean change
TINY = 1e-12  # and absolutely, for windows in which nothing moves


class PooledHead(FramePairsHead):
    """A head on maps averaged over a grid, or on their first principal components, and on how much these changed."""

    _bases: dict[str, list[NDArray[np.float32]]]  # by input name: kernel and bias of the projection

    def window_lags(self, length: int) -> tuple[int, ...]:
        """The lags in frames at which change is computed in a window of `length` frames."""
        return fitting_lags(self.settings_.lags, length) if self.settings_.difference else ()

    def feature_lags(self, length: int) -> tuple[int, ...]:
        return (0, *self.window_lags(length))

    def reduce_frames(self, name: str, maps: Tensor) -> Tensor:
        if not self.settings_.components:
            return maps
        if name not in self._bases:
            raise ConfigError("head.components needs a basis from training frames", hint="fit the head first")
        kernel, bias = self._bases[name]
        flat = keras.ops.reshape(maps, (-1, maps.shape[1], len(kernel)))
        if not isinstance(maps, keras.KerasTensor):
            return keras.ops.matmul(flat, kernel) + bias
        # in single precision whatever the rest computes in, as the stored components are
        layer = keras.layers.Dense(len(bias), trainable=False, dtype="float32", name=f"{name}.components")
        projected = layer(flat)
        layer.set_weights([kernel, bias])
        return projected

    def frame_features(self, frames: Tensor, lag: int) -> Tensor:
        if not self.settings_.components:
            return pool_frames(frames, self.settings_.grid, lag)
        return absolute_differences(frames, lag) if lag else frames

    def derived_stream(self, stream: str, distance: int) -> DerivedStream:
        return GridPooling(stream, self.settings_.grid, distance)

    def derived_streams(self, examples: StoreExamples) -> list[DerivedStream]:
        self._read_settings()
        self._check_top(examples)
        return super().derived_streams(examples)

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        super().restore(model, folder)
        if self.settings_.components:
            self._bases = {name: model.get_layer(f"{name}.components").get_weights() for name in self.input_streams}
        return self

    def _read_settings(self) -> None:
        super()._read_settings()
        self._bases = {}

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        self._check_top(examples)
        super().prepare(examples, targets)
        if self.settings_.components:
            self._bases = {n: self._fit_basis(examples, s).weights for n, s in self.input_streams.items()}

    def has_stored_features(self, examples: HeadInputs) -> bool:
        if not super().has_stored_features(examples):
            return False
        assert isinstance(examples, StoreExamples)
        # a store with other training clips has another basis than the model
        return all(
            np.array_equal(stored, kept)
            for name, basis in self._bases.items()
            for stored, kept in zip(
                self._projection(self.input_streams[name]).stored_basis(examples.source.store).weights,
                basis,
                strict=True,
            )
        )

    def stored_features(self, examples: HeadInputs) -> NamedTensors:
        if not self.settings_.components:
            return super().stored_features(examples)
        assert isinstance(examples, StoreExamples)
        arrays: NamedTensors = {}
        for name, stream in self.input_streams.items():
            projected = examples.stream(self._projection(stream).name)
            for lag in self.feature_lags(projected.shape[1]):
                arrays[feature_name(name, lag)] = np.asarray(self.frame_features(projected, lag))
        return arrays

    def _projection(self, stream: str) -> PCAProjection:
        return PCAProjection(stream, self.settings_.components)

    def _derived_streams(self, examples: StoreExamples) -> list[DerivedStream]:
        if self.settings_.components:
            return [self._projection(stream) for stream in self.input_streams.values()]
        return super()._derived_streams(examples)

    def _fit_basis(self, examples: HeadInputs, stream: str) -> PCABasis:
        """Return the store's basis, or fit one to training frames."""
        if isinstance(examples, StoreExamples):
            projection, is_derived = self._projection(stream), self._is_derived(examples)
            return (projection.stored_basis if is_derived else projection.fit_basis)(examples.source.store)
        frames = examples.stream(stream)
        frames = frames.reshape(-1, *frames.shape[2:])
        check_count(self.settings_.components, len(frames), math.prod(frames.shape[1:]), "head.components")
        pca = IncrementalPCA(self.settings_.components, copy=False)
        return fit_pca(pca, lambda rows: frames[rows], np.arange(len(frames)))

    def _check_top(self, examples: HeadInputs) -> None:
        if self.settings_.components and self.settings_.normalises_flow:
            raise ConfigError("head.components are of the flow as it is stored", hint="--head.motion raw, or head.grid")
        if self.settings_.components and APPEARANCE in self.settings_.streams and examples.top() is not None:
            raise ConfigError(
                "head.components needs maps that training does not change, but this store has a top",
                expected="a store without a top",
                hint="--head.components 0, or extract with backbone.top = false",
            )


class PooledFrames(PooledHead):
    """A pooled head with one vector per frame: its cells and, with `difference`, their change from frame to frame."""

    def window_lags(self, length: int) -> tuple[int, ...]:
        return (1,) if self.settings_.difference else ()

    def vectors(self, features: NamedTensors) -> Tensor:
        changes = [feature_name(name, 1) for name in self.input_streams]
        return concatenate([repeat_first(v) if name in changes else v for name, v in features.items()])


class PooledStatistics(PooledHead):
    """A pooled head with one vector per window: what each cell holds and how it changes, over the whole window.

    Without `difference`: the cells' means over time. With it, also the logarithm of their mean change; with several
    lags instead the logarithms of the ratios between the changes at one lag and the next. How much a cell changes
    depends on its texture as well as on the motion; how quickly the change grows with the lag depends on motion only.
    """

    def vectors(self, features: NamedTensors) -> Tensor:
        means: list[Tensor] = []
        changes: list[Tensor] = []
        for name in self.input_streams:
            values = features[feature_name(name)]
            means.append(keras.ops.mean(values, axis=1))
            logs = [_log_change(features[feature_name(name, lag)]) for lag in self.window_lags(values.shape[1])]
            changes += [a - b for a, b in itertools.pairwise(logs)] if len(logs) > 1 else logs
        return concatenate(means + changes)


def repeat_first(changes: Tensor) -> Tensor:
    """Give a window's first frame the second frame's change: (batch, T − 1, F) → (batch, T, F)."""
    return keras.ops.concatenate([changes[:, :1], changes], axis=1)


def _log_change(changes: Tensor) -> Tensor:
    """(batch, T − lag, F) → (batch, F): logarithm of the mean change over the window."""
    mean = keras.ops.mean(changes, axis=1)
    # a dead channel must not give an infinite logarithm, whatever the unit of the map
    floor = MIN_CHANGE * keras.ops.mean(mean, axis=-1, keepdims=True) + TINY
    return keras.ops.log(mean + floor)
