"""What a run left in its folder, read into types."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from features.errors import DataError
from stage2_temporal.data.splits import STORED_VALIDATION

HINT = "python -m stage2_temporal train"
Row = TypeVar("Row")
Read = TypeVar("Read", bound=BaseModel)
COUNTING = ("test", "validation", STORED_VALIDATION, "train")  # the first of these with labels is the split that counts


class Part(BaseModel):
    """A part of metrics.json; keys this version doesn't know are passed over, so older runs and newer ones open."""

    model_config = ConfigDict(frozen=True)


class Figures(Part):
    """One component's figures; None is unknown."""

    rmse: float | None = None
    mae: float | None = None
    skill: float | None = None
    spread_ratio: float | None = None


class SplitScores(Figures):
    """A predictor's figures on a split, over all components and for each."""

    components: dict[str, Figures] = {}
    ev: dict[str, float | None] | None = None  # TuSimple's, of the velocity, by distance
    ep: dict[str, float | None] | None = None  # and of the position


class SplitResult(Part):
    """A split: the model beside the constant predictor."""

    examples: int
    model: SplitScores
    constant: SplitScores


class Parameters(Part):
    """Counts of weights."""

    total: int
    trainable: int
    frozen: int


class Origin(Part):
    """The store a run was trained from."""

    path: str
    fingerprint: str
    frames: int
    sequences: int


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
    store: Origin
    splits: dict[str, SplitResult]
    verdict: str
    no_better_than_constant: bool

    def unit_of(self, column: int) -> str | None:
        """A target column's own unit, which `unit` is where all have the same."""
        return self.units[column] if self.units else self.unit


class TunedSplit(Part):
    """A split's figures after fine-tuning."""

    tuned: SplitScores = Field(alias="fine-tuned")


class Tuned(Part):
    """finetune.json, what of it the report shows."""

    best_epoch: int
    epochs: int
    unfrozen: tuple[str, ...]
    verdict: str
    splits: dict[str, TunedSplit]


@dataclass(frozen=True)
class HistoryRow:
    """A row of history.csv; None is unknown. Losses are the training's own, RMSE is in the target's unit."""

    epoch: int
    loss: float | None
    rmse: float | None
    val_loss: float | None
    val_rmse: float | None


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
        """The frames its window shows, 0-based in its sequence."""
        return range(self.first, self.first + self.length * self.stride, self.stride)


@dataclass(frozen=True)
class Results:
    """A run as its report needs it."""

    name: str
    config: str
    metrics: Metrics
    history: tuple[HistoryRow, ...]
    examples: tuple[PredictedExample, ...]
    tuned: Tuned | None = None
    tuning: tuple[HistoryRow, ...] = ()

    @property
    def splits(self) -> list[str]:
        """The splits with labels, the one that counts first: test, else validation, else training."""
        scored = {name for name, split in self.metrics.splits.items() if split.model.rmse is not None}
        known = [name for name in COUNTING if name in scored]
        return known + sorted(set(self.metrics.splits) - set(known))

    @property
    def counted(self) -> tuple[PredictedExample, ...]:
        """The examples of the split that counts whose truth and prediction are known."""
        return tuple(e for e in self.examples if self.splits and e.split == self.splits[0] and e.known)

    @property
    def constant(self) -> tuple[float, ...] | None:
        """What the constant predictor answers: the mean of the training labels; None where there are none."""
        true = [e.true for e in self.examples if e.split == "train" and all(map(math.isfinite, e.true))]
        return tuple(math.fsum(column) / len(true) for column in zip(*true, strict=True)) if true else None


def read_results(run: Path) -> Results:
    """A run's folder.

    Raises:
        DataError: a file is missing or is not as training writes it.
    """
    metrics = _parsed(run / "metrics.json", Metrics)
    fine = (run / "finetune.json").is_file() and (run / "finetune.csv").is_file()
    columns = ("epoch", "loss", "rmse", "val_loss", "val_rmse")
    return Results(
        run.resolve().name,
        _text(run / "config.toml"),
        metrics,
        tuple(_rows(run / "history.csv", columns, _epoch)),
        tuple(_examples(run / "predictions.csv", metrics.target)),
        _parsed(run / "finetune.json", Tuned) if fine else None,
        tuple(_rows(run / "finetune.csv", columns, _epoch)) if fine else (),
    )


def _parsed(path: Path, model: type[Read]) -> Read:
    try:
        return model.model_validate_json(_text(path))
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{path}: {key}: {first['msg']}", hint=HINT) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint=HINT) from None


def _rows(path: Path, columns: tuple[str, ...], parse: Callable[[dict[str, str]], Row]) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    found = tuple(reader.fieldnames or ())
    if missing := [c for c in columns if c not in found]:
        raise DataError(f"{path}: no column {', '.join(missing)}", got=", ".join(found) or "nothing", hint=HINT)
    for row in reader:
        try:
            yield parse(row)
        except (ValueError, TypeError) as e:
            raise DataError(f"{path}: line {reader.line_num}: {e}", hint=HINT) from None


def _number(text: str | None) -> float:
    return float(text) if text else math.nan


def _maybe(text: str | None) -> float | None:
    value = _number(text)
    return value if math.isfinite(value) else None


def _epoch(row: dict[str, str]) -> HistoryRow:
    return HistoryRow(
        int(row["epoch"]), _maybe(row["loss"]), _maybe(row["rmse"]), _maybe(row["val_loss"]), _maybe(row["val_rmse"])
    )


def _examples(path: Path, target: tuple[str, ...]) -> Iterator[PredictedExample]:
    def example(row: dict[str, str]) -> PredictedExample:
        return PredictedExample(
            split=row["split"],
            sequence=row["sequence"],
            label=int(row["label"]),
            frame=int(row["frame"]),
            first=int(row["first"]),
            stride=int(row["stride"]),
            length=int(row["length"]),
            true=tuple(_number(row[f"{c}_true"]) for c in target),
            predicted=tuple(_number(row[f"{c}_pred"]) for c in target),
            distance=_number(row.get("distance")),
        )

    values = [f"{c}_{kind}" for c in target for kind in ("true", "pred")]
    return _rows(path, ("split", "sequence", "label", "frame", "first", "stride", "length", *values), example)
