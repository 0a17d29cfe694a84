"""How sure a run's predictions are: their intervals, and whether footage is like the training's.

It is learned once, from the training and validation examples, and saved in the run's folder: `uncertainty.json` holds
the scores behind the intervals, `novelty.npz` the training examples' distributions. Runs of older versions have
neither; their predictions have blank cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features._common.csv_table import format_number
from features._common.plain_text import one_line
from features._common.strict_json import read_json_file
from features._common.types import Floats
from features._common.zip_limits import check_archive
from features.errors import ConfigError, DataError
from features.sequences import FrameSequence
from stage2_temporal.evaluation.intervals import ConformalScores, ErrorScale
from stage2_temporal.evaluation.known_cameras import CAMERA_TOLERANCE, KnownCameras
from stage2_temporal.evaluation.novelty import NoveltyModel, flag_majority

INTERVALS_FILE, NOVELTY_FILE = "uncertainty.json", "novelty.npz"
UNLIKE_TRAINING = "unlike_training"
INPUTS, PROFILE = "inputs", "profile"  # what is compared with the training's


@dataclass(frozen=True)
class UncertainPredictions:
    """Predictions of m windows for K targets with their uncertainty; NaN and None where it is unknown."""

    values: Floats  # (m, K)
    low: Floats  # (m, K) ends of the intervals
    high: Floats
    level: float  # of the intervals
    unlike: NDArray[np.bool_] | None = None  # (m,) whether a window is unlike the training's
    above: Floats | None = None  # (m, K) the probability that the truth is above the threshold
    threshold: float | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: NDArray[np.generic]) -> UncertainPredictions:
        """Select windows by a mask or an array of indices."""
        unlike = None if self.unlike is None else self.unlike[index]
        above = None if self.above is None else self.above[index]
        parts = self.values[index], self.low[index], self.high[index]
        return UncertainPredictions(*parts, self.level, unlike, above, self.threshold)

    @property
    def warning(self) -> str | None:
        """One line about windows that are unlike the training's, if there are any."""
        if self.unlike is None or not self.unlike.any():
            return None
        return (
            f"{int(self.unlike.sum()):,} of {len(self):,} windows are unlike the training's footage (another camera or "
            f"scene): the {100 * self.level:g} % intervals do not hold there, see the column {UNLIKE_TRAINING}"
        )

    def header(self, columns: Sequence[str]) -> list[str]:
        """The names of the cells that `cells` returns, for the names of the targets."""
        above = [] if self.threshold is None else [f"above_{self.threshold:g}"]
        return [*(f"{column}_{part}" for column in columns for part in ("low", "high", *above)), UNLIKE_TRAINING]

    def cells(self) -> Iterator[list[str]]:
        """The cells of each window: each target's interval and probability, then 1 or 0; blank where unknown."""
        parts = [self.low, self.high, *([] if self.above is None else [self.above])]
        for i in range(len(self)):
            row = [format_number(float(part[i, k])) for k in range(self.values.shape[1]) for part in parts]
            yield [*row, "" if self.unlike is None else str(int(self.unlike[i]))]

    def note(self, i: int, k: int) -> str:
        """What to write beside target k of window i: half the width of its interval, and the probability."""
        half = (self.high[i, k] - self.low[i, k]) / 2
        interval = f"+/-{half:.1f}" if math.isfinite(half) else ""
        above = "" if self.above is None else f"P(>{self.threshold:g}) {100 * self.above[i, k]:.0f} %"
        return "  ".join(filter(None, (interval, above)))

    def is_unlike(self, i: int) -> bool:
        """Whether window i is flagged."""
        return self.unlike is not None and bool(self.unlike[i])


@dataclass(frozen=True)
class IntervalOptions:
    """What a user asks for beyond a run's own settings.

    Raises:
        ConfigError: a value is out of range.
    """

    level: float | None = None  # of the intervals
    threshold: float | None = None  # also compute the probability of being above it

    def __post_init__(self) -> None:
        if self.level is not None and not 0 < self.level < 1:
            raise ConfigError("--level must be between 0 and 1", got=self.level, hint="--level 0.9")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError("--threshold must be a number", got=self.threshold, hint="--threshold 13.9")


@dataclass(frozen=True)
class WindowOrigin:
    """Which sequences m windows are of."""

    sequences: Sequence[FrameSequence]
    of: NDArray[np.int64]  # (m,) index of each window's sequence
    parts: NDArray[np.generic] | None = None  # (m,) what one camera filmed, such as a split; None: all of it


def one_sequence(sequence: FrameSequence, windows: int) -> WindowOrigin:
    """The footage of windows that are all of one sequence."""
    return WindowOrigin([sequence], np.zeros(windows, np.int64))


@dataclass(frozen=True)
class Uncertainty:
    """What a run knows about its own errors and its training footage."""

    columns: tuple[str, ...]
    level: float  # of intervals, unless another one is asked for
    scores: ConformalScores
    novelty: dict[str, NoveltyModel]  # of the head's `inputs` and of the frames' `profile`, as far as known
    cameras: KnownCameras | None = None  # None for runs of older versions

    def predictions(
        self, outputs: Floats, profiles: Floats | None, origin: WindowOrigin, options: IntervalOptions | None = None
    ) -> UncertainPredictions:
        """Read the outputs (m, K + S + 1) of `heads.uncertainty.uncertain_model`.

        Args:
            profiles: (m, F) the windows' mean profiles, if known.
            origin: which footage each window is of.
            options: another level, and a threshold.
        """
        count, threshold = len(self.columns), options.threshold if options else None
        level = options.level if options and options.level is not None else self.level
        values, inputs, distance = outputs[:, :count], outputs[:, count:-1], outputs[:, -1]
        half = self.scores.half_widths(inputs, level)
        half[~np.isfinite(half)] = math.nan
        unlike = self._unlike(distance, profiles, origin)
        above = None if threshold is None else self.scores.probability_above(values, inputs, threshold)
        return UncertainPredictions(values, values - half, values + half, level, unlike, above, threshold)

    def _unlike(self, distance: Floats, profiles: Floats | None, origin: WindowOrigin) -> NDArray[np.bool_] | None:
        """Which windows (m,) are unlike the training's: by themselves, by most of their footage, or by its camera."""
        if not self.novelty and self.cameras is None:
            return None
        unlike = np.zeros(len(distance), bool)
        if INPUTS in self.novelty:
            unlike |= ~(distance <= self.novelty[INPUTS].limit)
        if PROFILE in self.novelty and profiles is not None:
            unlike |= self.novelty[PROFILE].distances(profiles) > self.novelty[PROFILE].limit
        for part in [None] if origin.parts is None else np.unique(origin.parts):
            rows = slice(None) if origin.parts is None else origin.parts == part
            unlike[rows] = flag_majority(unlike[rows])
        if self.cameras is not None:
            other = np.array([self.cameras.excludes(sequence) for sequence in origin.sequences], bool)
            unlike |= other[origin.of]
        return unlike


def read_outputs(
    uncertainty: Uncertainty | None,
    outputs: NDArray[Any],
    profiles: Floats | None,
    origin: WindowOrigin,
    options: IntervalOptions,
) -> UncertainPredictions:
    """Like `Uncertainty.predictions`, also for runs without uncertainty, whose outputs are values alone."""
    values = np.asarray(outputs, np.float64)
    if uncertainty is not None:
        return uncertainty.predictions(values, profiles, origin, options)
    unknown = np.full(values.shape, math.nan)
    return UncertainPredictions(values, unknown, unknown, math.nan)


def check_options(run: Path, uncertainty: Uncertainty | None, options: IntervalOptions) -> None:
    """Raise a ConfigError if the options ask for intervals and the run has none."""
    option = "--threshold" if options.threshold is not None else "--level" if options.level is not None else None
    if option and uncertainty is None:
        raise ConfigError(
            f"{option}: {run} has no intervals, since an older version wrote it",
            hint=f"framebank evaluate --run {run}, then the same command",
        )


def write_uncertainty(run: Path, uncertainty: Uncertainty) -> None:
    """Write a run's `uncertainty.json` and `novelty.npz`."""
    conformal = uncertainty.scores
    content = {
        "level": uncertainty.level,
        "columns": uncertainty.columns,
        "scale": conformal.scale.coefficients.tolist(),
        "largest": _json(conformal.scale.largest),
        "weights": conformal.weights.tolist(),
        "scores": conformal.scores.tolist(),
        "cameras": None if uncertainty.cameras is None else {k: _json(v) for k, v in vars(uncertainty.cameras).items()},
    }
    arrays: dict[str, Any] = {
        f"{name}_{key}": np.asarray(value, np.float32)
        for name, model in uncertainty.novelty.items()
        for key, value in vars(model).items()
    }
    with atomic_write(run / NOVELTY_FILE) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    with atomic_write(run / INTERVALS_FILE) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def _json(values: Floats) -> list[float | None]:
    """Numbers for JSON, which has no NaN."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def read_uncertainty(run: Path) -> Uncertainty | None:
    """Read a run's uncertainty; None if it is of an older version, DataError if a file is damaged."""
    if not (run / INTERVALS_FILE).is_file():
        return None
    hint = f"framebank evaluate --run {run}"
    try:
        content = read_json_file(run / INTERVALS_FILE, hint)
        columns = tuple(content["columns"])
        scale = np.array(content["scale"], np.float64).reshape(len(columns), -1)
        sizes = content.get("largest", [None] * len(columns))  # which runs of older versions lack
        largest = [math.inf if size is None else size for size in sizes]
        conformal = ConformalScores(
            ErrorScale(scale, np.array(largest, np.float64)),
            np.array(content["scores"], np.float64).reshape(-1, len(columns)),
            np.array(content["weights"], np.float64),
        )
        check_archive(run / NOVELTY_FILE)
        with np.load(run / NOVELTY_FILE, allow_pickle=False) as arrays:
            novelty = {
                name: NoveltyModel(
                    *(arrays[f"{name}_{key}"].astype(np.float64) for key in ("mean", "components", "variances")),
                    *(float(arrays[f"{name}_{key}"]) for key in ("residual_precision", "limit")),
                )
                for name in (INPUTS, PROFILE)
                if f"{name}_mean" in arrays
            }
        limits = content.get("cameras")
        cameras = limits and KnownCameras(*(np.array(limits[key], np.float64) for key in ("low", "high")))
        result = Uncertainty(columns, float(content["level"]), conformal, novelty, cameras)
        _check(result)
        return result
    except DataError:
        raise
    except Exception as e:  # NumPy and zipfile raise a dozen types of exceptions on damaged files
        got = one_line(f"{type(e).__name__}: {e}")[:200]
        raise DataError(f"{run / INTERVALS_FILE} or {NOVELTY_FILE}: cannot be read", got=got, hint=hint) from None


def _check(uncertainty: Uncertainty) -> None:
    """Raise a ValueError unless all numbers are in range and all arrays have the shapes that belong together."""
    conformal, count = uncertainty.scores, len(uncertainty.columns)
    if not (0 < uncertainty.level < 1 and all(isinstance(c, str) for c in uncertainty.columns)):
        raise ValueError("level or columns out of range")
    shapes = conformal.scale.largest.shape == (count,) and conformal.weights.shape == conformal.scores.shape[:1]
    if not (count and shapes and (conformal.weights >= 0).all() and np.isfinite(conformal.scale.coefficients).all()):
        raise ValueError("scores or their scale out of shape or range")
    cameras = uncertainty.cameras
    if cameras is not None and not cameras.low.shape == cameras.high.shape == (len(CAMERA_TOLERANCE),):
        raise ValueError("cameras out of shape")
    for name, model in uncertainty.novelty.items():
        rows, columns = model.components.shape
        if model.mean.shape != (columns,) or model.variances.shape != (rows,) or not (model.variances > 0).all():
            raise ValueError(f"{name} out of shape or range")
