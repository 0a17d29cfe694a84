"""Align a patch with a frame: scale and shift to sub-pixel accuracy, under changing light. A vehicle's rear is nearly a
plane facing the camera; on 20 px these three numbers are better determined than the six of an affine warp.
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

BLUR = 0.6  # standard deviation in grid steps; gives patch and frame the same detail at any scale
MAX_ITERATIONS = 12
MAX_SCALE_STEP, MAX_SHIFT_STEP = 0.08, 0.15  # per iteration, of the scale and, in patch sides, of the shift
CONVERGED = 3e-4  # in patch sides; after a step this small, about a tenth of it is left
OCCLUSION_MARGIN = 1.5  # grid steps around what hides the patch, into which it is blurred
GRADIENT_REUSE_STEP = 3e-3  # in patch sides; after a smaller step the gradients are used again
RESIDUAL_POINTS = 200  # at most, to estimate the standard deviation of the residuals
TUKEY = 3.5  # constant of the biweight: 85 % efficient on Gaussian residuals, robust against the background
MIN_DEVIATION = 1.0  # grey levels; what quantisation and compression leave at least


@dataclass(frozen=True)
class Pose:
    """Where a patch is in a frame: its scale relative to the frame it was taken from, and its centre in px."""

    scale: float
    x: float
    y: float


@dataclass(frozen=True)
class PointGrid:
    """The points at which a patch is compared."""

    width: float  # of the box in the patch's frame, px
    height: float
    step: float  # between points, px in the patch's frame
    u: Grey  # (columns,) positions relative to the box's centre, px
    v: Grey  # (rows,)
    weight: Grey  # (rows, columns) how much each point counts, 0 to 1


def make_grid(width: float, height: float, points: int) -> PointGrid:
    """Make a grid over a box of `width` x `height` px, with `points` along the longer side, none in the background."""
    step = max(1.0, max(width, height) / points)
    # with a ring of points around the box, which does not count but is needed for differences
    counts = (max(4, round(side / step) + 1) + 2 for side in (width, height))
    u, v = (((np.arange(n) - (n - 1) / 2) * step).astype(np.float32) for n in counts)
    # the border counts less, because background shows there
    taper = [np.minimum(3 * (1 - np.abs(a) / abs(a[0])), 1) for a in (v, u)]
    return PointGrid(width, height, step, u, v, np.outer(*taper))


@dataclass(frozen=True)
class FrameCrop:
    """A part of a frame, blurred to fit a grid at a scale."""

    pixels: Grey  # grey levels, each the mean of `shrink` x `shrink` pixels of the frame
    left: float  # centre of its first pixel in the frame, px
    top: float
    shrink: int
    size: tuple[int, int]  # width, height of the whole frame, px


def crop_view(frame: Image, pose: Pose, grid: PointGrid, margin: float) -> FrameCrop:
    """Crop a frame around a pose, with `margin` px to spare on each side."""
    height, width = frame.shape[:2]
    blur = BLUR * grid.step * pose.scale
    spare = margin + 3 * blur + 3
    half = abs(float(grid.u[0])) * pose.scale + spare, abs(float(grid.v[0])) * pose.scale + spare
    left, right = (min(max(math.floor(pose.x + s), 0), width) for s in (-half[0], half[0] + 1))
    top, bottom = (min(max(math.floor(pose.y + s), 0), height) for s in (-half[1], half[1] + 1))
    shrink = max(1, int(grid.step * pose.scale / 2))  # such a grid needs no finer pixels, which would be slow
    columns, rows = (right - left) // shrink, (bottom - top) // shrink
    middle = (shrink - 1) / 2
    if min(columns, rows) < 4:
        return FrameCrop(np.zeros((0, 0), np.float32), left + middle, top + middle, shrink, (width, height))
    part = frame[top : top + rows * shrink, left : left + columns * shrink]
    if part.ndim == 3:
        part = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(part.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    remaining = math.sqrt(blur**2 - (shrink**2 - 1) / 12) / shrink  # the means have blurred it a little
    smooth = cv2.GaussianBlur(small, (0, 0), remaining, borderType=cv2.BORDER_REPLICATE)
    return FrameCrop(smooth, left + middle, top + middle, shrink, (width, height))


def sample_patch(
    view: FrameCrop, grid: PointGrid, pose: Pose, hidden: Sequence[Box] = (), out: Grey | None = None
) -> tuple[Grey, Grey]:
    """Sample a crop at a grid's points at a pose: (rows, columns) grey levels, into `out` if given, and weights.

    The weight is 0 outside the frame, and in the boxes `hidden`, px, of vehicles in front.
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
    inside = x0 > -0.5 and y0 > -0.5 and x0 + k * (columns - 1) < right and y0 + k * (rows - 1) < bottom
    if inside and not hidden:  # the usual case; tracking takes 15 % longer without this exit
        return values, grid.weight
    x, y = x0 + k * np.arange(columns), y0 + k * np.arange(rows)
    visible = np.outer((y > -0.5) & (y < bottom), (x > -0.5) & (x < right))
    for box in hidden:
        across = (x > box[0] - OCCLUSION_MARGIN * k) & (x < box[2] + OCCLUSION_MARGIN * k)
        visible &= ~np.outer((y > box[1] - OCCLUSION_MARGIN * k) & (y < box[3] + OCCLUSION_MARGIN * k), across)
    return values, grid.weight * visible.astype(np.float32)


def align_patch(
    view: FrameCrop, grid: PointGrid, patch: Grey, trust: Grey, pose: Pose, hidden: Sequence[Box] = ()
) -> tuple[Pose, Grey, Grey] | None:
    """Find the pose at which a crop looks like a patch up to gain and bias; None if the search diverges.

    Gauss-Newton on the mean of both pictures' gradients, which noise does not bias (efficient second-order
    minimisation: Benhimane and Malis, 2004), with Tukey's biweight against what is not the vehicle.

    The search begins at `pose`. `patch` and `trust` are (rows, columns): the grey levels at the grid's points, and how
    much each counts, 0 to 1; `hidden` as in `sample_patch`. Returns the pose, and (rows, columns) the crop's grey
    levels, from one small step before it, and their weights.
    """
    side, min_total = math.sqrt(grid.width * grid.height), 0.3 * float(trust.sum())
    # rows: growth, shift to the right and down, gain, bias; the grey levels; and two empty ones, because eight rows are
    # multiplied in two thirds of the time of six
    design = np.zeros((8, *patch.shape), np.float32)
    design[3], design[4] = -patch, -1
    u, v = (a / np.float32(2 * grid.step) for a in (grid.u[None, :], grid.v[:, None]))
    flat, weighted = design.reshape(8, -1), np.empty((8, patch.size), np.float32)
    trusted = np.flatnonzero(trust.reshape(-1) > 0.1)
    subset = trusted[:: max(1, len(trusted) // RESIDUAL_POINTS)]
    gain, bias, moved, all_visible = 1.0, 0.0, math.inf, grid.weight * trust
    start = pose
    for _ in range(MAX_ITERATIONS):
        values, weight = sample_patch(view, grid, pose, hidden, design[5])
        visible = weight = all_visible if weight is grid.weight else weight * trust
        if (total := float(weight.sum())) < min_total or total <= 0:
            return None
        if math.isfinite(moved):
            error = np.asarray(cv2.addWeighted(patch, -gain, values, 1.0, -bias), np.float32)
            deviation = max(MIN_DEVIATION, 1.4826 * _median_magnitude(error.reshape(-1)[subset]))  # robust estimate
            biweight = np.square(np.multiply(error, np.float32(1 / (TUKEY * deviation)), out=error), out=error)
            np.maximum(np.subtract(1, biweight, out=biweight), 0, out=biweight)
            weight = np.square(biweight, out=biweight) * visible
        if moved > GRADIENT_REUSE_STEP * side:
            # twice the gradient of both pictures' mean
            mean = np.asarray(cv2.addWeighted(patch, gain / 2, values, 0.5, 0.0), np.float32)
            np.subtract(mean[:, 2:], mean[:, :-2], out=design[1, :, 1:-1])
            np.subtract(mean[2:], mean[:-2], out=design[2, 1:-1])
            np.multiply(u, design[1], out=design[0])
            design[0] += v * design[2]
        np.multiply(flat, weight.reshape(-1), out=weighted)
        products = (weighted @ flat.T).astype(np.float64)
        normal, right = products[:5, :5].copy(), -products[:5, 5:6]
        normal.flat[::6] *= 1 + 1e-6
        solved, solution = cv2.solve(normal, right, flags=cv2.DECOMP_CHOLESKY)
        growth, dx, dy, gain, bias = solution.ravel().tolist()
        if not (solved and math.isfinite(growth + dx + dy + gain + bias)):
            return None
        max_shift, unit = MAX_SHIFT_STEP * side * pose.scale, 2 * grid.step * pose.scale
        limits = ((growth, MAX_SCALE_STEP), (dx * unit, max_shift), (dy * unit, max_shift))
        growth, dx, dy = (max(-limit, min(limit, step)) for step, limit in limits)
        pose = Pose(pose.scale * math.exp(growth), pose.x + dx, pose.y + dy)
        if abs(math.log(pose.scale / start.scale)) > 0.5:
            return None
        moved = max(abs(growth) * side, abs(dx), abs(dy))
        if moved < CONVERGED * side:
            break
    return pose, values, visible


def _median_magnitude(error: Grey) -> float:
    middle = len(error) // 2
    return float(np.partition(np.abs(error), middle)[middle])  # twice as fast as np.median


def patch_correlation(values: Grey, patch: Grey, weight: Grey) -> float:
    """Weighted correlation of two patches, −1 to 1; 0 if either has no contrast."""
    total = float(weight.sum())
    if total <= 0:
        return 0.0
    a, b = (p - float((weight * p).sum()) / total for p in (values, patch))
    weighted = weight * a
    power = float(np.vdot(weighted, a)) * float(np.vdot(weight * b, b))
    return float(np.vdot(weighted, b)) / math.sqrt(power) if power > 1e-6 * total * total else 0.0
