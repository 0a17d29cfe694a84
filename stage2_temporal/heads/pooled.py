"""What heads on pooled maps have in common: cells' means and changes, the same in a graph and from the store."""

from __future__ import annotations

import itertools

import keras

from stage2_temporal.heads.base import Head, Named, Tensor
from stage2_temporal.heads.pooling import average, change, check_grid

FLOOR = 1e-3  # of the window's mean change, added to each cell's
TINY = 1e-12  # and this where nothing moves at all


class Pooled(Head):
    """A head that sees each map as `grid` cells; with `difference` also how much each cell changed.

    Arrays, by name: `<input>.mean` (n, T, F) and for each lag `<input>.change<lag>` (n, T − lag, F).
    """

    def _summarise(self, base: Named) -> Named:
        grid, found = self._head.grid, {}
        for name, values in base.items():
            maps = self._with_top(as_maps(values), name)
            check_grid(grid, *maps.shape[2:4])
            found[f"{name}.mean"] = average(maps, grid)
            for lag in self._lags:
                found[f"{name}.change{lag}"] = change(maps, grid, lag)
        return found

    @property
    def _lags(self) -> tuple[int, ...]:
        """The distances in frames over which change is looked at."""
        return self._head.lags if self._head.difference else ()


class PooledFrames(Pooled):
    """A pooled head whose vectors are one a frame: cells' means, and their change since the frame before.

    The window's first frame is given the second's change.
    """

    @property
    def _lags(self) -> tuple[int, ...]:
        return (1,) if self._head.difference else ()

    def _vectors(self, arrays: Named) -> Tensor:
        parts = []
        for name, values in arrays.items():
            later = name.endswith(".change1")
            parts.append(keras.ops.concatenate([values[:, :1], values], axis=1) if later else values)
        return keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


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
        return keras.ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]


def as_maps(values: Tensor) -> Tensor:
    """(batch, T, h, w, c), vectors (batch, T, F) as maps of one cell."""
    if len(values.shape) == 5:
        return values
    _, time, features = values.shape
    return keras.ops.reshape(values, (-1, time, 1, 1, features))
