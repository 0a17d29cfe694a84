"""Aligning a patch with a frame: scale and shift to sub-pixel accuracy, whatever the light.

The rear of a vehicle ahead of a level camera is nearly a plane that faces it, so its picture changes by one scale and
one shift. These three numbers are better determined on a patch 20 px wide than the six of an affine warp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from features._common.types import Image
from features.sequences import Box

Grey = NDArray[np.float32]

BLUR = 0.6  # Gaussian's deviation in grid steps: as much detail on the patch as in the frame, whatever the scale
ITERATIONS = 12
STEP_SCALE, STEP_SHIFT = 0.08, 0.15  # the most one iteration may change the scale by, and the shift in patch sides
DONE = 3e-4  # in patch sides: a change that no longer counts; about a tenth of it is left to go
RIM = 1.5  # grid steps from the edge of what hides the patch at which a point is clear of its blur
STALE = 3e-3  # in patch sides: a change up to which the derivatives are kept
SPREAD = 200  # points at most that the residuals' deviation is taken from
TUKEY = 3.5  # the biweight's constant: 85 % efficient on Gaussian residuals, firm against the background
MIN_WEIGHT = 1.0  # grey levels: residuals are never taken for smaller than quantisation and compression leave


@dataclass(frozen=True)
class Pose:
    """Where a patch is in a frame: its scale relative to the patch's own frame, and its centre in pixels."""

    scale: float
    x: float
    y: float


@dataclass(frozen=True)
class AlignedPatch:
    """A pose, what was seen at the patch's points a last small step before it, and how much each of them counts."""

    pose: Pose
    values: Grey
    weight: Grey


@dataclass(frozen=True)
class PointGrid:
    """The points at which a patch is compared.

    Attributes:
        width, height: of the box in its own frame, px.
        step: distance between points, px of the patch's own frame.
        u, v: (columns,) and (rows,) places relative to the box's centre, px.
        weight: (rows, columns) how much each point counts, 0 to 1.
    """

    width: float
    height: float
    step: float
    u: Grey
    v: Grey
    weight: Grey


def make_grid(width: float, height: float, points: int, margin: float) -> PointGrid:
    """A grid over a box enlarged by `margin` of its sides on each side, its longer side at most `points` long."""
    wide, high = width * (1 + 2 * margin), height * (1 + 2 * margin)
    step = max(1.0, max(wide, high) / points)
    # with a ring of points round the box that doesn't count: differences are taken across it
    u, v = (
        ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
        for n in (max(4, round(wide / step) + 1) + 2, max(4, round(high / step) + 1) + 2)
    )
    # the rim counts less: there the background shows
    soft = [np.minimum(3 * (1 - np.abs(a) / abs(a[0])), 1) for a in (v, u)]
    return PointGrid(width, height, step, u, v, np.outer(*soft))


@dataclass(frozen=True)
class FrameCrop:
    """A part of a frame, blurred to fit a grid at a scale.

    Attributes:
        pixels: its grey levels, each the mean of `shrink` x `shrink` of the frame's.
        left, top: where in the frame the middle of its first pixel is.
        shrink: how many of the frame's pixels one of its pixels is wide.
        size: width, height of the whole frame.
    """

    pixels: Grey
    left: float
    top: float
    shrink: int
    size: tuple[int, int]


def crop_view(frame: Image, pose: Pose, grid: PointGrid, reach: float) -> FrameCrop:
    """The part of a frame round a pose, with `reach` px to spare on each side."""
    height, width = frame.shape[:2]
    blur = BLUR * grid.step * pose.scale
    spare = reach + 3 * blur + 3
    half = abs(float(grid.u[0])) * pose.scale + spare, abs(float(grid.v[0])) * pose.scale + spare
    left, right = (min(max(math.floor(pose.x + s), 0), width) for s in (-half[0], half[0] + 1))
    top, bottom = (min(max(math.floor(pose.y + s), 0), height) for s in (-half[1], half[1] + 1))
    shrink = max(1, int(grid.step * pose.scale / 2))  # a grid this wide needs no finer pixels, and large boxes are slow
    columns, rows = (right - left) // shrink, (bottom - top) // shrink
    middle = (shrink - 1) / 2
    if min(columns, rows) < 4:
        return FrameCrop(np.zeros((0, 0), np.float32), left + middle, top + middle, shrink, (width, height))
    part = frame[top : top + rows * shrink, left : left + columns * shrink]
    if part.ndim == 3:
        part = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(part.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    rest = math.sqrt(blur**2 - (shrink**2 - 1) / 12) / shrink  # the means have blurred it a little already
    smooth = cv2.GaussianBlur(small, (0, 0), rest, borderType=cv2.BORDER_REPLICATE)
    return FrameCrop(smooth, left + middle, top + middle, shrink, (width, height))


def sample_patch(
    view: FrameCrop, grid: PointGrid, pose: Pose, hidden: Sequence[Box] = (), out: Grey | None = None
) -> tuple[Grey, Grey]:
    """The view at a grid's points under a pose, and how much each point counts: 0 outside the frame, or where hidden.

    Args:
        hidden: boxes in the frame, px, of what stands before the patch.
        out: (rows, columns) where the grey levels are put.
    """
    if not view.pixels.size:
        return np.zeros_like(grid.weight), np.zeros_like(grid.weight)
    k = pose.scale * grid.step
    x0, y0 = pose.x + pose.scale * float(grid.u[0]), pose.y + pose.scale * float(grid.v[0])
    matrix = np.array([[k, 0, x0 - view.left], [0, k, y0 - view.top]], np.float64) / view.shrink
    columns, rows = len(grid.u), len(grid.v)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    values = cv2.warpAffine(view.pixels, matrix, (columns, rows), out, flags, cv2.BORDER_REPLICATE)
    right, bottom = view.size[0] - 0.5, view.size[1] - 0.5
    whole = x0 > -0.5 and y0 > -0.5 and x0 + k * (columns - 1) < right and y0 + k * (rows - 1) < bottom
    if whole and not hidden:
        return values, grid.weight
    x, y = x0 + k * np.arange(columns), y0 + k * np.arange(rows)
    seen = np.outer((y > -0.5) & (y < bottom), (x > -0.5) & (x < right))
    for box in hidden:
        across = (x > box[0] - RIM * k) & (x < box[2] + RIM * k)
        seen &= ~np.outer((y > box[1] - RIM * k) & (y < box[3] + RIM * k), across)
    return values, grid.weight * seen.astype(np.float32)


def align_patch(
    view: FrameCrop, grid: PointGrid, patch: Grey, trust: Grey, pose: Pose, hidden: Sequence[Box] = ()
) -> AlignedPatch | None:
    """The pose under which the view looks like the patch up to gain and bias; None where the search runs away.

    Gauss-Newton on the mean of both pictures' gradients (the efficient second-order method of Benhimane and Malis,
    2004, whose answer noise doesn't pull to one side), with Tukey's biweight against what isn't the vehicle.

    Args:
        view: the frame round the pose.
        grid: the patch's grid.
        patch: (rows, columns) what the patch looks like.
        trust: (rows, columns) how much each of its points counts, 0 to 1.
        pose: where to start.
        hidden: boxes in the frame, px, of what stands before the patch.
    """
    side, enough = math.sqrt(grid.width * grid.height), 0.3 * float(trust.sum())
    # rows: growth, shift to the right and down, gain, bias; what is seen; and two that fill up, since eight rows are
    # multiplied in two thirds of the time of six
    design = np.zeros((8, *patch.shape), np.float32)
    design[3], design[4] = -patch, -1
    u, v = (a / np.float32(2 * grid.step) for a in (grid.u[None, :], grid.v[:, None]))
    flat, weighted = design.reshape(8, -1), np.empty((8, patch.size), np.float32)
    whole = grid.weight * trust
    everything = float(whole.sum())
    trusted = np.flatnonzero(trust.reshape(-1) > 0.1)
    some = trusted[:: max(1, len(trusted) // SPREAD)]
    gain, bias, moved = 1.0, 0.0, math.inf
    start = pose
    for _ in range(ITERATIONS):
        values, weight = sample_patch(view, grid, pose, hidden, design[5])
        if weight is grid.weight:  # nearly always: all of it is to be seen
            weight, total = whole, everything
        else:
            weight = weight * trust
            total = float(weight.sum())
        if total < enough or total <= 0:
            return None
        seen = weight
        if math.isfinite(moved):
            error = np.asarray(cv2.addWeighted(patch, -gain, values, 1.0, -bias), np.float32)
            weight = _biweight(error, _deviation(error.reshape(-1)[some])) * seen
        if moved > STALE * side:
            # twice the change from point to point of both pictures' mean
            mean = np.asarray(cv2.addWeighted(patch, gain / 2, values, 0.5, 0.0), np.float32)
            np.subtract(mean[:, 2:], mean[:, :-2], out=design[1, :, 1:-1])
            np.subtract(mean[2:], mean[:-2], out=design[2, 1:-1])
            np.multiply(u, design[1], out=design[0])
            design[0] += v * design[2]
        np.multiply(flat, weight.reshape(-1), out=weighted)
        products = (weighted @ flat.T).astype(np.float64)
        normal, right = products[:5, :5].copy(), -products[:5, 5:6]
        normal.flat[::6] *= 1 + 1e-6
        well, solution = cv2.solve(normal, right, flags=cv2.DECOMP_CHOLESKY)
        grow, dx, dy, gain, bias = solution.ravel().tolist()
        if not (well and math.isfinite(grow + dx + dy + gain + bias)):
            return None
        reach, unit = STEP_SHIFT * side * pose.scale, 2 * grid.step * pose.scale
        grow, dx, dy = (max(-m, min(m, s)) for s, m in ((grow, STEP_SCALE), (dx * unit, reach), (dy * unit, reach)))
        pose = Pose(pose.scale * math.exp(grow), pose.x + dx, pose.y + dy)
        if abs(math.log(pose.scale / start.scale)) > 0.5:
            return None
        moved = max(abs(grow) * side, abs(dx), abs(dy))
        if moved < DONE * side:
            break
    return AlignedPatch(pose, values, seen)


def _deviation(error: Grey) -> float:
    """The robust deviation of errors, by their median."""
    middle = len(error) // 2
    return max(MIN_WEIGHT, 1.4826 * float(np.partition(np.abs(error), middle)[middle]))


def _biweight(error: Grey, spread: float) -> Grey:
    """Tukey's weights, 0 to 1, for errors of a robust deviation `spread`."""
    part = error * np.float32(1 / (TUKEY * spread))
    part *= part
    np.subtract(1, part, out=part)
    np.maximum(part, 0, out=part)
    part *= part
    return part


def patch_correlation(values: Grey, patch: Grey, weight: Grey) -> float:
    """Weighted correlation of two patches, −1 to 1; 0 where either has no contrast."""
    total = float(weight.sum())
    if total <= 0:
        return 0.0
    a, b = (p - float((weight * p).sum()) / total for p in (values, patch))
    weighted = weight * a
    power = float(np.vdot(weighted, a)) * float(np.vdot(weight * b, b))
    return float(np.vdot(weighted, b)) / math.sqrt(power) if power > 1e-6 * total * total else 0.0
