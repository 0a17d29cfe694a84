"""The files of a run: its metrics and predictions, written by training and read by everything after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from features._common.atomic import atomic_write
from features._common.bounded_file import read_bounded
from features._common.csv_table import format_number, parse_number, read_csv_table, write_csv_table
from features._common.plain_text import one_line
from features._common.strict_json import read_json_file
from features.errors import DataError
from features.limits import TEXT_BYTES, VIDEO_FRAMES, WINDOW_FRAMES
from features.sequences import FrameSequence
from features.strict_model import did_you_mean
from features.windows import Examples
from stage2_temporal.data.splits import STORED_VALIDATION
from stage2_temporal.evaluation.history import Epoch, read_history
from stage2_temporal.evaluation.intervals import IntervalScores
from stage2_temporal.evaluation.metrics import Scores, have_one_unit
from stage2_temporal.evaluation.tusimple import first_fault
from stage2_temporal.evaluation.uncertainty import UNLIKE_TRAINING, UncertainPredictions

VERDICT_SPLITS = ("test", "validation", STORED_VALIDATION, "train")  # the verdict is about the first that has labels
# columns of predictions.csv, with their least and largest values; a label's frame may lie outside its sequence
WINDOW_COLUMNS = {
    "label": (0, VIDEO_FRAMES), "frame": (-(1 << 31), 1 << 31), "first": (0, VIDEO_FRAMES), "stride": (1, VIDEO_FRAMES),
    "length": (1, WINDOW_FRAMES),
}  # fmt: skip
OCCLUSION = "occlusion.json"
RETRAIN = "train again with framebank train"
JsonModel = TypeVar("JsonModel", bound=BaseModel)


class Part(BaseModel):
    """A part of a run's JSON; unknown keys are ignored, so that files of older and newer versions open."""

    model_config = ConfigDict(frozen=True)


class SplitMetrics(Part):
    """One split: the scores of the model and of the constant predictor."""

    examples: int
    model: Scores
    constant: Scores
    skill_interval: tuple[float, float] | None = None  # see `metrics.skill_interval`; older runs have none
    intervals: dict[str, IntervalScores] | None = None  # by target column; None if the run has no intervals
    unlike_training: float | None = None  # share of its examples that are flagged


class Parameters(Part):
    """Numbers of weights."""

    total: int
    trainable: int
    frozen: int


class StoreOrigin(Part):
    """The store that a run was trained from."""

    path: str
    fingerprint: str
    frames: int
    sequences: int
    examples: str = ""  # see `Task.digest`
    precision: str = ""  # that the maps were computed in, if the config leaves it open
    quantised: str = ""  # digest of the quantised network, see `Recipe`
    streams: dict[str, str] = {}  # fingerprint of each that the head reads, and `tracks` for a vehicle's target


class DroppedExamples(Part):
    """Labels that gave no example: those whose window does not fit, and those whose target is unknown."""

    window: int = 0
    unknown: int = 0


class DataSource(Part):
    """The data set that a run was trained on."""

    name: str = "unknown"  # of its file or folder
    layout: str = "unknown"


class Metrics(Part):
    """metrics.json."""

    target: tuple[str, ...]
    unit: str | None
    units: tuple[str | None, ...] = ()
    head: str
    backbone: str
    weights: str
    trained_backbone: bool
    parameters: Parameters
    epochs: int
    best_epoch: int
    seconds: float
    interrupted: bool = False
    store: StoreOrigin
    labels: str = ""
    splits: dict[str, SplitMetrics]
    verdict: str
    no_better_than_constant: bool
    dropped: DroppedExamples = DroppedExamples()
    # seconds, medians over the training examples; older runs have none
    interval: float | None = None  # between a window's frames
    frame_interval: float | None = None  # between neighbouring frames of a sequence
    interval_level: float | None = None  # the probability that a prediction's interval is to contain the truth
    # for the card; older runs have none of these
    data: DataSource = DataSource()
    recipe: dict[str, Any] = {}  # the store's, and the `cut` in words
    window: int | None = None  # frames in a window

    def unit_of(self, column: int) -> str | None:
        """The unit of one target column; `unit` is the one that all columns share."""
        return self.units[column] if self.units else self.unit

    @property
    def mixed_units(self) -> bool:
        """Whether the target columns differ in unit, so that their errors have no sum."""
        return not have_one_unit(self.target)


class FinetunedSplit(Part):
    """One split's scores after fine-tuning."""

    finetuned: Scores = Field(alias="fine-tuned")


class FinetuneMetrics(Part):
    """What the report shows of finetune.json."""

    best_epoch: int
    epochs: int
    unfrozen: tuple[str, ...]
    verdict: str
    splits: dict[str, FinetunedSplit]


class Occlusion(Part):
    """occlusion.json: how much each cell of the maps counts, see `heads.occlusion`."""

    examples: int  # how many the mean is over
    mean: list[list[float]]  # rows of cells, from the top
    clips: dict[str, list[list[float]]]  # the same for single examples, by `occlusion_key`

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        for rows in (self.mean, *self.clips.values()):
            if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
                raise ValueError("a map whose rows are not equally long, or empty")
        return self


def occlusion_key(example: PredictedExample) -> str:
    """What identifies an example in occlusion.json."""
    return f"{example.sequence}/{example.label}"


@dataclass(frozen=True)
class PredictedExample:
    """A row of predictions.csv; NaN is unknown."""

    split: str
    sequence: str
    label: int
    frame: int
    first: int
    stride: int
    length: int
    true: tuple[float, ...]
    predicted: tuple[float, ...]
    distance: float
    low: tuple[float, ...] = ()  # ends of the intervals; NaN in older runs
    high: tuple[float, ...] = ()
    unlike_training: bool = False

    @property
    def known(self) -> bool:
        """Whether every component has a label and a finite prediction."""
        return all(map(math.isfinite, (*self.true, *self.predicted)))

    @property
    def error(self) -> float:
        """Euclidean norm of predicted − true over the components."""
        return math.dist(self.predicted, self.true)

    @property
    def frames(self) -> range:
        """The frames of its window, counted from 0 in its sequence."""
        return range(self.first, self.first + self.length * self.stride, self.stride)


@dataclass(frozen=True)
class Results:
    """Everything that a report needs from a run."""

    name: str
    config: str
    metrics: Metrics
    history: tuple[Epoch, ...]
    examples: tuple[PredictedExample, ...]
    finetune_metrics: FinetuneMetrics | None = None
    finetune_history: tuple[Epoch, ...] = ()
    occlusion: Occlusion | None = None

    @property
    def splits(self) -> list[str]:
        """The splits, the one that the verdict is about first."""
        scored = {name for name, split in self.metrics.splits.items() if math.isfinite(split.model.rmse)}
        known = [name for name in VERDICT_SPLITS if name in scored]
        return known + sorted(set(self.metrics.splits) - set(known))

    @property
    def verdict_examples(self) -> tuple[PredictedExample, ...]:
        """The examples of the verdict's split whose truth and prediction are known."""
        verdict_split = next(iter(self.splits), None)
        return tuple(e for e in self.examples if e.split == verdict_split and e.known)

    @property
    def constant(self) -> tuple[float, ...]:
        """The constant predictor's answer, which is the mean of the training labels; NaN if there are none."""
        true = [e.true for e in self.examples if e.split == "train" and all(map(math.isfinite, e.true))]
        return tuple(map(fmean, zip(*true, strict=True))) or (math.nan,) * len(self.metrics.target)


def read_metrics(run: Path) -> Metrics:
    """Read a run's metrics.json; DataError if the folder is not a run or the file is not as training writes it."""
    if not (run / "metrics.json").is_file():
        nearest = did_you_mean(run.name, [file.parent.name for file in run.parent.glob("*/metrics.json")])
        raise DataError(f"{run} is not a run{nearest}: it has no metrics.json", hint="--run NAME, a folder in runs/")
    return _read_json(run / "metrics.json", Metrics)


def write_metrics(run: Path, metrics: Metrics) -> None:
    """Write a run's metrics.json."""
    with atomic_write(run / "metrics.json") as temporary:
        temporary.write_text(metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_results(run: Path) -> Results:
    """Read what a report needs from a run's folder; DataError if a file is missing or not as training writes it."""
    metrics, config = read_metrics(run), run / "config.toml"
    if not config.is_file():
        raise DataError(f"{config}: no such file", hint=RETRAIN)
    finetuned = (run / "finetune.json").is_file() and (run / "finetune.csv").is_file()
    return Results(
        name=run.resolve().name,
        config=read_bounded(config, TEXT_BYTES).decode("utf-8", errors="replace"),
        metrics=metrics,
        history=read_history(run / "history.csv", RETRAIN),
        examples=read_predictions(run / "predictions.csv", metrics.target),
        finetune_metrics=_read_json(run / "finetune.json", FinetuneMetrics) if finetuned else None,
        finetune_history=read_history(run / "finetune.csv", RETRAIN) if finetuned else (),
        occlusion=_read_json(run / OCCLUSION, Occlusion) if (run / OCCLUSION).is_file() else None,
    )


def write_predictions(
    path: Path,
    examples: Examples,
    splits: NDArray[np.str_],
    predictions: UncertainPredictions,
    sequences: Sequence[FrameSequence],
) -> None:
    """Write n predictions for K target columns as a CSV file, with one row per example; distances are in metres.

    `splits` (n,) has each example's split; `sequences` are all of the data set. In a window whose frames are unevenly
    spaced, the stride is rounded down.
    """
    length = examples.rows.shape[1]
    strides = np.maximum((examples.rows[:, -1] - examples.rows[:, 0]) // max(length - 1, 1), 1)
    pairs = np.stack([examples.targets, predictions.values], axis=-1).reshape(len(examples), -1)
    rows = (
        [
            *(splits[i], sequences[examples.sequence[i]].id),
            *(examples.label[i], examples.frame[i], examples.start[i], strides[i], length),
            *map(format_number, [*pairs[i].tolist(), float(examples.position[i, 0])]),
            *cells,
        ]
        for i, cells in enumerate(predictions.cells())
    )
    columns = examples.columns
    write_csv_table(path, [*_prediction_columns(columns), "distance", *predictions.header(columns)], rows)


def read_predictions(path: Path, target: tuple[str, ...]) -> tuple[PredictedExample, ...]:
    """Read what `write_predictions` wrote, else raise DataError; missing distances and intervals are unknown."""
    examples = []
    for row in read_csv_table(path, required=_prediction_columns(target), hint=RETRAIN).rows:
        cells = row.cells
        try:
            numbers = {name: _whole_number(cells, name) for name in WINDOW_COLUMNS}
            true, predicted = (
                tuple(parse_number(cells[f"{column}_{kind}"]) for column in target) for kind in ("true", "pred")
            )
            low, high = (
                tuple(parse_number(cells.get(f"{column}_{end}", "")) for column in target) for end in ("low", "high")
            )
            examples.append(
                PredictedExample(
                    cells["split"],
                    cells["sequence"],
                    **numbers,
                    true=true,
                    predicted=predicted,
                    distance=parse_number(cells.get("distance", "")),
                    low=low,
                    high=high,
                    unlike_training=cells.get(UNLIKE_TRAINING) == "1",
                )
            )
        except ValueError as e:
            raise DataError(f"{row.where}: {one_line(str(e))[:200]}", hint=RETRAIN) from None
    return tuple(examples)


def _whole_number(cells: dict[str, str], name: str) -> int:
    """The number in one of the `WINDOW_COLUMNS`; a ValueError if it is out of range."""
    low, high = WINDOW_COLUMNS[name]
    number = int(cells[name])
    if not low <= number <= high:
        raise ValueError(f"{name} is {number}, expected {low} to {high}")
    return number


def _prediction_columns(target: tuple[str, ...]) -> list[str]:
    values = [f"{column}_{kind}" for column in target for kind in ("true", "pred")]
    return ["split", "sequence", *WINDOW_COLUMNS, *values]


def _read_json(path: Path, model: type[JsonModel]) -> JsonModel:
    try:
        return model.model_validate(read_json_file(path, RETRAIN))
    except ValidationError as e:
        raise DataError(f"{path}: {first_fault(e)}", hint=RETRAIN) from None
