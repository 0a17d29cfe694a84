"""Runs that a search stopped early: a folder with the config and `pruned.json`, but neither model nor metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from features._common.bounded_file import read_bounded
from features._common.folders import atomic_folder
from features.config import Config, read_run_config
from features.errors import DataError
from features.limits import JSON_BYTES
from stage2_temporal.evaluation.tusimple import first_fault

PRUNED_FILE = "pruned.json"


class PrunedMetrics(BaseModel):
    """pruned.json."""

    model_config = ConfigDict(frozen=True)

    epoch: int  # the last one that was trained, from 1
    epochs: int  # that it would have had
    skill: float  # the best so far on the validation split
    seconds: float  # wall time


@dataclass(frozen=True)
class PrunedRun:
    """The folder of a run that was stopped early."""

    path: Path
    config: Config
    metrics: PrunedMetrics


def write_pruned(path: Path, config: Config, metrics: PrunedMetrics) -> None:
    """Write the folder of a run that was stopped early."""
    with atomic_folder(path) as folder:
        (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        (folder / PRUNED_FILE).write_text(metrics.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_pruned(path: Path) -> PrunedRun:
    """Read what `write_pruned` wrote; DataError or ConfigError if a file is missing or wrong."""
    file = path / PRUNED_FILE
    hint = f"delete {path} and run the sweep again"
    try:
        metrics = PrunedMetrics.model_validate_json(read_bounded(file, JSON_BYTES))
    except OSError as e:
        raise DataError(f"{file}: {e.strerror}", hint=hint) from None
    except ValidationError as e:
        raise DataError(f"{file}: {first_fault(e)}", hint=hint) from None
    return PrunedRun(path, read_run_config(path), metrics)
