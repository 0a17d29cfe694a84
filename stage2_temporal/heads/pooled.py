"""What heads on pooled maps have in common: what a frame holds and how it changes, in a graph and from the store."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Self

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from features.errors import ConfigError
from features.store import Store
from features.streams import APPEARANCE
from stage2_temporal.data.derived_streams import DerivedStream, is_stored, try_derive_streams
from stage2_temporal.data.examples import HeadInputs, StoreExamples, as_maps
from stage2_temporal.data.grid_pooling import GridPooling
from stage2_temporal.data.pca_projection import PCABasis, PCAProjection, check_count, fit_pca
from stage2_temporal.data.pooling import absolute_differences, check_grid, grid_changes, grid_means
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.graph import NamedTensors, concatenate

MIN_CHANGE = 1e-3  # of the window's mean change, added to each cell's
TINY = 1e-12  # and this where nothing moves at all


class PooledHead(Head):
    """A head that sees each map as `grid` cells; with `difference` also how much each cell changed.

    With `components` it sees each map's first principal components instead, and by how much each of these changed. The
    basis comes from the store's training split, or from the frames of a plain array, and is part of the model.

    Arrays, by name: `<input>.mean` (n, T, F) and for each lag `<input>.change<lag>` (n, T − lag, F). Where nothing that
    is trained lies before them, they are derived into the store once, see `stage2_temporal.data.derived_streams`.
    """

    _bases: dict[str, list[NDArray[np.float32]]]  # by input name: kernel and bias of the projection

    def derived(self, examples: StoreExamples) -> list[DerivedStream]:
        """The derived streams that training would put into the store, were they lacking.

        Raises:
            ConfigError: settings out of range, a difference of one frame, or components above layers that train.
        """
        self._begin()
        self._check_top(examples)
        return self._wanted(examples) if self._frozen(examples) else []

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        super().restore(model, folder)
        if self._head.components:
            self._bases = {name: model.get_layer(_layer(name)).get_weights() for name in self._inputs}
        return self

    def _begin(self) -> None:
        super()._begin()
        self._bases = {}

    def _prepare(self, examples: HeadInputs, targets: Floats) -> None:
        self._check_top(examples)
        if isinstance(examples, StoreExamples) and self._frozen(examples) and not self._there(examples):
            try_derive_streams(examples.source.path, self._wanted(examples))
        if self._head.components:
            self._bases = {name: self._basis(examples, stream).weights for name, stream in self._inputs.items()}

    def _ready(self, examples: HeadInputs) -> bool:
        if not isinstance(examples, StoreExamples) or not self._frozen(examples) or not self._there(examples):
            return False
        # a store with other training clips has another basis than the model
        return all(self._same(examples.source.store, name) for name in self._bases)

    def _there(self, examples: StoreExamples) -> bool:
        """Whether the store has the derived streams."""
        store, wanted = examples.source.store, self._wanted(examples)
        if all(is_stored(store, d) for d in wanted):
            return True
        # another process, or we ourselves, may have put a new file in its place
        return examples.source.renew() and all(is_stored(examples.source.store, d) for d in wanted)

    def _same(self, store: Store, name: str) -> bool:
        kept = PCABasis.of(store.basis(PCAProjection(self._inputs[name], self._head.components).name))
        return all(np.array_equal(a, b) for a, b in zip(kept.weights, self._bases[name], strict=True))

    def _basis(self, examples: HeadInputs, stream: str) -> PCABasis:
        """The store's, or found from training frames."""
        count = self._head.components
        if isinstance(examples, StoreExamples):
            wanted, there = PCAProjection(stream, count), self._there(examples)  # which may open another file
            store = examples.source.store
            return PCABasis.of(store.basis(wanted.name)) if there else wanted.basis(store)
        frames = examples.stream(stream)
        frames = frames.reshape(-1, *frames.shape[2:])
        check_count(count, len(frames), math.prod(frames.shape[1:]), "head.components")
        return fit_pca(lambda rows: frames[rows], np.arange(len(frames)), count)

    def _arrays(self, examples: HeadInputs) -> NamedTensors:
        assert isinstance(examples, StoreExamples)
        rows = examples.examples.rows
        found: NamedTensors = {}
        for name, stream in self._inputs.items():
            if self._head.components:
                projected = examples.stream(PCAProjection(stream, self._head.components).name)
                found |= {n: np.asarray(values) for n, values in self._told(name, projected).items()}
                continue
            found[f"{name}.mean"] = examples.stream(GridPooling(stream, self._head.grid).name)
            for lag in self._lags(rows.shape[1]):
                later, distance = np.maximum(rows[:, lag:], rows[:, :-lag]), _distance(rows, lag)
                parts = [(d, np.flatnonzero(distance == d)) for d in np.unique(distance).tolist()]
                values = [examples.read(GridPooling(stream, self._head.grid, d).name, later[at]) for d, at in parts]
                back = np.argsort(np.concatenate([at for _, at in parts]), kind="stable")
                found[f"{name}.change{lag}"] = np.concatenate(values)[back]
        return found

    def _summarise(self, base: NamedTensors) -> NamedTensors:
        grid = self._head.grid
        found: NamedTensors = {}
        for name, values in base.items():
            if self._head.components:
                found |= self._told(name, self._projected(name, values))
                continue
            maps = self._with_top(as_maps(values), name)
            check_grid(grid, *maps.shape[2:4])
            found[f"{name}.mean"] = grid_means(maps, grid)
            for lag in self._lags(maps.shape[1]):
                found[f"{name}.change{lag}"] = grid_changes(maps, grid, lag)
        return found

    def _projected(self, name: str, values: Tensor) -> Tensor:
        """(batch, T, …) → (batch, T, components), by a layer that isn't trained."""
        if name not in self._bases:
            raise ConfigError("head.components are found in training frames", hint="fit, on a store or an array")
        weights = self._bases[name]
        # in single precision whatever the rest computes in, as the store's are
        layer = keras.layers.Dense(weights[0].shape[1], trainable=False, dtype="float32", name=_layer(name))
        projected = layer(keras.ops.reshape(values, (-1, values.shape[1], weights[0].shape[0])))
        layer.set_weights(weights)
        return projected

    def _told(self, name: str, projected: Tensor) -> NamedTensors:
        """The arrays of an input whose maps are projected (batch, T, components)."""
        changes = {
            f"{name}.change{lag}": absolute_differences(projected, lag) for lag in self._lags(projected.shape[1])
        }
        return {f"{name}.mean": projected} | changes

    def _lags(self, length: int) -> tuple[int, ...]:
        """The distances in frames over which change is looked at, those that fit into a window.

        Raises:
            ConfigError: there is no frame before.
        """
        if not self._head.difference:
            return ()
        return tuple(lag for lag in self._head.lags if lag < length) or (min(self._head.lags),)

    def _wanted(self, examples: StoreExamples) -> list[DerivedStream]:
        """The derived streams that `_arrays` reads."""
        rows, grid = examples.examples.rows, self._head.grid
        if self._head.components:
            return [PCAProjection(stream, self._head.components) for stream in self._inputs.values()]
        distances = {d for lag in self._lags(rows.shape[1]) for d in _distance(rows, lag).tolist()}
        return [GridPooling(s, grid, d) for s in self._inputs.values() for d in (0, *sorted(distances))]

    def _frozen(self, examples: StoreExamples) -> bool:
        """Whether no trainable layer lies before the pooling."""
        top = examples.top() if APPEARANCE in self._head.streams else None
        return top is None or not top.weights

    def _check_top(self, examples: HeadInputs) -> None:
        if self._head.components and APPEARANCE in self._head.streams and examples.top() is not None:
            raise ConfigError(
                "head.components: layers lie between the stored map and the head, so that its components would change",
                expected="a store without a top",
                hint="--head.components 0, or features anew with backbone.top = false",
            )


class PooledFrames(PooledHead):
    """A pooled head whose vectors are one a frame: cells' means, and their change since the frame before.

    The window's first frame is given the second's change.
    """

    def _lags(self, length: int) -> tuple[int, ...]:
        return (1,) if self._head.difference else ()

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        parts = []
        for name, values in arrays.items():
            later = name.endswith(".change1")
            parts.append(keras.ops.concatenate([values[:, :1], values], axis=1) if later else values)
        return concatenate(parts)


class PooledStatistics(PooledHead):
    """A pooled head whose vectors are one a window: what each cell holds and how it changes, over the whole window.

    Without `difference`: the cells' means over time. With it, beside them: of one lag the logarithm of the mean change,
    of several the logarithms of the ratios between one lag's and the next one's. How much a cell changes depends on its
    texture as much as on the motion; how quickly the change grows with the lag depends on the motion alone.
    """

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        parts: list[Tensor] = []
        changes: dict[str, list[Tensor]] = {}
        for name, values in arrays.items():
            stream, kind = name.rsplit(".", 1)
            mean = keras.ops.mean(values, axis=1)
            if kind == "mean":
                parts.append(mean)
            else:
                # a dead channel must not become an infinite logarithm, whatever the unit of the map
                floor = MIN_CHANGE * keras.ops.mean(mean, axis=-1, keepdims=True) + TINY
                changes.setdefault(stream, []).append(keras.ops.log(mean + floor))
        for logs in changes.values():
            parts += [a - b for a, b in itertools.pairwise(logs)] if len(logs) > 1 else logs
        return concatenate(parts)


def _layer(name: str) -> str:
    """What the projection of an input is called in a model."""
    return f"{name}.components"


def _distance(rows: NDArray[np.int64], lag: int) -> NDArray[np.int64]:
    """(n,) rows between a window's frames that lie `lag` apart in it."""
    found: NDArray[np.int64] = np.abs(rows[:, lag] - rows[:, 0]) if lag < rows.shape[1] else np.zeros(0, np.int64)
    return found
