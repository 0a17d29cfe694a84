"""How a vehicle grows and moves within its crop: alignment of the CNN's maps of all frames to that of the last one.

A vehicle seen from behind changes by a scale and a shift. Both are found by Gauss-Newton on the maps, from coarse to
fine (Lucas and Kanade, 1981), with the mean of both maps' gradients (efficient second-order minimisation: Benhimane and
Malis, 2004) and less weight for positions that do not fit. Neighbouring frames are aligned first; their chained motion
is where the alignment of each frame to the last one starts from, so that fast vehicles are not lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from features._common.types import Tensor

ITERATIONS = 3  # of Gauss-Newton, per map
MAX_STEP = 0.1  # of one iteration: in log scale, and in shares of half the map
WINDOW = 0.75  # half the width of the region that counts, as a share of half the map; the rest shows other things
OUTLIER = 2.0  # times the mean error: positions with such an error count a quarter
DAMPING = 1e-3  # added to the normal matrix, relative to its diagonal
NORM_FLOOR = 1e-6
ALIGNED_LEVELS = 2  # the finest maps, whose alignments to the last frame are returned

_Pose = tuple[Tensor, Tensor, Tensor]  # (n,) each: log scale, shift to the right and down in shares of half the map


def align_to_last(levels: Sequence[Tensor]) -> list[Tensor]:
    """Align a crop's maps of each frame but the last to those of the last frame.

    Args:
        levels: maps (batch, T, h, w, c) of the same frames, from coarse to fine.

    Returns:
        For each of the finest `ALIGNED_LEVELS` maps, (batch, T − 1, 4): the logarithm of the vehicle's size relative to
        the last frame, its shift to the right and down from there in shares of half the map, and the error that is
        left, relative to the map's variation.
    """
    time = levels[0].shape[1]
    maps = [_normalise(level) for level in levels]
    pose: _Pose | None = None
    for level in maps[: max(1, len(maps) - 1)]:
        pose, _ = _align(_fold(level[:, 1:]), _fold(level[:, :-1]), pose)
    assert pose is not None
    pose = _chain(pose, time - 1)
    aligned = []
    for level in maps[-ALIGNED_LEVELS:]:
        last = keras.ops.repeat(level[:, -1:], time - 1, axis=1)
        pose, error = _align(_fold(last), _fold(level[:, :-1]), pose)
        aligned.append(keras.ops.reshape(keras.ops.stack([*pose, error], axis=-1), (-1, time - 1, 4)))
    return aligned


def _normalise(maps: Tensor) -> Tensor:
    """Scale each channel of each example to deviation 1 over all frames and positions."""
    deviation = keras.ops.std(maps, axis=(1, 2, 3), keepdims=True)
    return maps / (deviation + NORM_FLOOR)


def _fold(maps: Tensor) -> Tensor:
    return keras.ops.reshape(maps, (-1, *maps.shape[2:]))


def _chain(pose: _Pose, steps: int) -> _Pose:
    """Chain the poses of each frame relative to the next one to poses relative to the last frame."""
    growth, right, down = (keras.ops.reshape(p, (-1, steps)) for p in pose)
    chained = [(growth[:, -1], right[:, -1], down[:, -1])]
    for i in range(steps - 2, -1, -1):
        g, x, y = chained[0]
        scale = keras.ops.exp(growth[:, i])
        chained.insert(0, (g + growth[:, i], scale * x + right[:, i], scale * y + down[:, i]))
    return tuple(keras.ops.reshape(keras.ops.stack(parts, axis=1), (-1,)) for parts in zip(*chained, strict=True))


def _align(template: Tensor, maps: Tensor, pose: _Pose | None) -> tuple[_Pose, Tensor]:
    """Find the pose at which each of `maps` (n, h, w, c) looks like its template, and the error (n,) that is left."""
    _, height, width, _ = template.shape
    half_width, half_height = width / 2, height / 2
    u, v = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in (width, height))  # positions from the middle
    across, upright = (np.exp(-((a / half / WINDOW) ** 4)) for a, half in ((u, half_width), (v, half_height)))
    window = np.outer(upright, across).astype(np.float32)[None, :, :, None]
    u_map, v_map = u[None, None, :, None], v[None, :, None, None]
    if pose is None:
        zero = keras.ops.zeros_like(template[:, 0, 0, 0])
        pose = zero, zero, zero
    growth, right, down = pose
    power = keras.ops.sum(keras.ops.square(template) * window, axis=(1, 2, 3)) + NORM_FLOOR
    for _ in range(ITERATIONS):
        scale = keras.ops.exp(growth)
        warped = _sample(maps, _positions(v, scale, down * half_height), _positions(u, scale, right * half_width))
        error = warped - template
        mean = (warped + template) / 2
        dx = keras.ops.pad((mean[:, :, 2:] - mean[:, :, :-2]) / 2, [(0, 0), (0, 0), (1, 1), (0, 0)])
        dy = keras.ops.pad((mean[:, 2:] - mean[:, :-2]) / 2, [(0, 0), (1, 1), (0, 0), (0, 0)])
        size = keras.ops.mean(keras.ops.abs(error), axis=-1, keepdims=True)
        usual = keras.ops.sum(size * window, axis=(1, 2), keepdims=True) / float(window.sum()) + NORM_FLOOR
        weight = keras.ops.reciprocal(keras.ops.square(1 + keras.ops.square(size / (OUTLIER * usual)))) * window
        step = _solve([dx * u_map + dy * v_map, dx * half_width, dy * half_height], error, weight)
        growth, right, down = growth - step[0], right - scale * step[1], down - scale * step[2]
    left = keras.ops.sum(keras.ops.square(error) * window, axis=(1, 2, 3)) / power
    return (growth, right, down), left


def _positions(offsets: np.ndarray, scale: Tensor, shift: Tensor) -> Tensor:
    """(n, positions) where a map is sampled, along one axis."""
    middle, last = float(-offsets[0]), float(len(offsets) - 1)
    positions = middle + keras.ops.expand_dims(scale, 1) * offsets[None] + keras.ops.expand_dims(shift, 1)
    return keras.ops.minimum(keras.ops.maximum(positions, 0.0), last)


def _sample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Sample maps (n, h, w, c) bilinearly at rows (n, h) and columns (n, w), as two products of matrices."""
    _, height, width, channels = maps.shape
    x = keras.ops.matmul(_hat(rows, height), keras.ops.reshape(maps, (-1, height, width * channels)))
    x = keras.ops.transpose(keras.ops.reshape(x, (-1, height, width, channels)), (0, 2, 1, 3))
    x = keras.ops.matmul(_hat(columns, width), keras.ops.reshape(x, (-1, width, height * channels)))
    return keras.ops.transpose(keras.ops.reshape(x, (-1, width, height, channels)), (0, 2, 1, 3))


def _hat(positions: Tensor, count: int) -> Tensor:
    """(n, m) positions → (n, m, count) weights of linear interpolation."""
    return keras.ops.relu(1 - keras.ops.abs(keras.ops.expand_dims(positions, 2) - np.arange(count, dtype=np.float32)))


def _solve(derivatives: Sequence[Tensor], error: Tensor, weight: Tensor) -> list[Tensor]:
    """Solve the weighted normal equations of three unknowns by Cramer's rule, since LiteRT has no solver."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return keras.ops.sum(weight * a * b, axis=(1, 2, 3))

    p, q, r = derivatives
    a, d, f = (product(x, x) * (1 + DAMPING) + NORM_FLOOR for x in (p, q, r))
    b, c, e = product(p, q), product(p, r), product(q, r)
    x, y, z = (product(part, error) for part in derivatives)
    cofactors = d * f - e * e, c * e - b * f, b * e - c * d
    determinant = a * cofactors[0] + b * cofactors[1] + c * cofactors[2]
    steps = [
        cofactors[0] * x + cofactors[1] * y + cofactors[2] * z,
        cofactors[1] * x + (a * f - c * c) * y + (b * c - a * e) * z,
        cofactors[2] * x + (b * c - a * e) * y + (a * d - b * b) * z,
    ]
    return [keras.ops.minimum(keras.ops.maximum(s / determinant, -MAX_STEP), MAX_STEP) for s in steps]
