"""What heads on pooled maps have in common: cells' means and changes, the same in a graph and from the store."""

from __future__ import annotations

import itertools

import keras
import numpy as np
from numpy.typing import NDArray

from stage2_temporal.derived import Derived, present, provide
from stage2_temporal.heads.base import Floats, Head
from stage2_temporal.heads.graph import Named, Tensor, joined
from stage2_temporal.inputs import APPEARANCE, Inputs, Windows, as_maps
from stage2_temporal.pooling import average, change, check_grid

FLOOR = 1e-3  # of the window's mean change, added to each cell's
TINY = 1e-12  # and this where nothing moves at all


class Pooled(Head):
    """A head that sees each map as `grid` cells; with `difference` also how much each cell changed.

    Arrays, by name: `<input>.mean` (n, T, F) and for each lag `<input>.change<lag>` (n, T − lag, F). Where nothing that
    is trained lies before them, they are derived into the store once, see `stage2_temporal.derived`.
    """

    def derived(self, examples: Inputs) -> list[Derived]:
        """The derived streams that training would put into the store, were they lacking.

        Raises:
            ConfigError: settings out of range, or a difference of one frame.
        """
        self._begin()
        return self._wanted(examples) if self._frozen(examples) else []

    def _prepare(self, examples: Windows, targets: Floats) -> None:
        if isinstance(examples, Inputs) and self._frozen(examples) and not self._ready(examples):
            provide(examples.source.path, self._wanted(examples))

    def _ready(self, examples: Windows) -> bool:
        if not isinstance(examples, Inputs) or not self._frozen(examples):
            return False
        store, wanted = examples.source.store, self._wanted(examples)
        if all(present(store, d) for d in wanted):
            return True
        # another process, or we ourselves, may have put a new file in its place
        return examples.source.renew() and all(present(examples.source.store, d) for d in wanted)

    def _arrays(self, examples: Windows) -> Named:
        assert isinstance(examples, Inputs)
        rows, found = examples.examples.rows, {}
        for name, stream in self._inputs.items():
            found[f"{name}.mean"] = examples.stream(Derived(stream, self._head.grid).name)
            for lag in self._lags(rows.shape[1]):
                later, distance = np.maximum(rows[:, lag:], rows[:, :-lag]), _distance(rows, lag)
                parts = [(d, np.flatnonzero(distance == d)) for d in np.unique(distance).tolist()]
                values = [examples.read(Derived(stream, self._head.grid, d).name, later[at]) for d, at in parts]
                back = np.argsort(np.concatenate([at for _, at in parts]), kind="stable")
                found[f"{name}.change{lag}"] = np.concatenate(values)[back]
        return found

    def _summarise(self, base: Named) -> Named:
        grid, found = self._head.grid, {}
        for name, values in base.items():
            maps = self._with_top(as_maps(values), name)
            check_grid(grid, *maps.shape[2:4])
            found[f"{name}.mean"] = average(maps, grid)
            for lag in self._lags(maps.shape[1]):
                found[f"{name}.change{lag}"] = change(maps, grid, lag)
        return found

    def _lags(self, length: int) -> tuple[int, ...]:
        """The distances in frames over which change is looked at, those that fit into a window.

        Raises:
            ConfigError: there is no frame before.
        """
        if not self._head.difference:
            return ()
        return tuple(lag for lag in self._head.lags if lag < length) or (min(self._head.lags),)

    def _wanted(self, examples: Inputs) -> list[Derived]:
        """The derived streams that `_arrays` reads."""
        rows, grid = examples.examples.rows, self._head.grid
        distances = {d for lag in self._lags(rows.shape[1]) for d in _distance(rows, lag).tolist()}
        return [Derived(s, grid, d) for s in self._inputs.values() for d in (0, *sorted(distances))]

    def _frozen(self, examples: Inputs) -> bool:
        """Whether no trainable layer lies before the pooling."""
        top = examples.top() if APPEARANCE in self._head.streams else None
        return top is None or not top.weights


class PooledFrames(Pooled):
    """A pooled head whose vectors are one a frame: cells' means, and their change since the frame before.

    The window's first frame is given the second's change.
    """

    def _lags(self, length: int) -> tuple[int, ...]:
        return (1,) if self._head.difference else ()

    def _vectors(self, arrays: Named) -> Tensor:
        parts = []
        for name, values in arrays.items():
            later = name.endswith(".change1")
            parts.append(keras.ops.concatenate([values[:, :1], values], axis=1) if later else values)
        return joined(parts)


class Statistics(Pooled):
    """A pooled head whose vectors are one a window: what each cell holds and how it changes, over the whole window.

    Without `difference`: the cells' means over time. With it, beside them: of one lag the logarithm of the mean change,
    of several the logarithms of the ratios between one lag's and the next one's. How much a cell changes depends on its
    texture as much as on the motion; how quickly the change grows with the lag depends on the motion alone.
    """

    def _vectors(self, arrays: Named) -> Tensor:
        parts: list[Tensor] = []
        changes: dict[str, list[Tensor]] = {}
        for name, values in arrays.items():
            stream, kind = name.rsplit(".", 1)
            mean = keras.ops.mean(values, axis=1)
            if kind == "mean":
                parts.append(mean)
            else:
                # a dead channel must not become an infinite logarithm, whatever the unit of the map
                floor = FLOOR * keras.ops.mean(mean, axis=-1, keepdims=True) + TINY
                changes.setdefault(stream, []).append(keras.ops.log(mean + floor))
        for logs in changes.values():
            parts += [a - b for a, b in itertools.pairwise(logs)] if len(logs) > 1 else logs
        return joined(parts)


def _distance(rows: NDArray[np.int64], lag: int) -> NDArray[np.int64]:
    """(n,) rows between a window's frames that lie `lag` apart in it."""
    found: NDArray[np.int64] = np.abs(rows[:, lag] - rows[:, 0]) if lag < rows.shape[1] else np.zeros(0, np.int64)
    return found
