"""The folder of a run: where it is, and whether its work is already done."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

from features._common.plain_text import is_plain_name, one_line
from features.config import Config, read_run_config
from features.errors import ConfigError, DataError
from features.recipe import canonical_json
from stage2_temporal.runs.results import Metrics, read_metrics

RUNS = Path("runs")
REPORT = "report.html"
SEPARATORS = str.maketrans("/\\:", "---")  # a column's name may have them, and must not lead out of the folder
LONGEST_NAME = 100  # characters, so that it stays below what file systems allow
FILES = ("config.toml", "metrics.json", "history.csv", "predictions.csv", "model.keras", REPORT)


def run_path(name: str) -> Path:
    """The folder of a run: `runs/NAME`, or the name itself if it is a path on purpose.

    That is one which is absolute, begins with `runs/` or `./`, or is there. A ConfigError for any other, for `..`,
    which leads out of the folder, and for characters that no name should have.
    """
    path = Path(name)
    if not is_plain_name(name) or ("\\" in name and os.sep != "\\"):
        raise ConfigError(f"--run {one_line(name)[:80]}: not a name", hint="--run NAME, of letters, digits, - and _")
    if ".." in path.parts:
        hint = f"--run {path.absolute().resolve()}, if this folder is meant"
        raise ConfigError(f"--run {name}: .. leads out of {RUNS}/", hint=hint)
    if path.name == name and name:
        return RUNS / name
    if not (path.parts[:1] == RUNS.parts or name.startswith("./") or path.is_absolute() or path.exists()):
        raise ConfigError(f"--run {name}: neither a name nor a run's folder", hint=f"--run {path.name}, or ./{name}")
    return path


def run_settings(config: Config) -> str:
    """The settings that decide a run's result, as canonical JSON, without the store's; see `store_origin`."""
    settings = config.model_dump(mode="json", include={"window", "head", "train"})
    del settings["train"]["memory_gb"]  # changes how the store is read, not what comes out
    return canonical_json({**settings, "columns": config.data.columns})


def is_finished(path: Path, config: Config, origin: dict[str, Any], *, report: bool = True) -> bool:
    """Whether the folder holds a complete, uninterrupted run with these settings on `store_origin`'s examples.

    With `report`, a run is only complete with its report.
    """
    if not all((path / name).is_file() for name in FILES if report or name != REPORT):
        return False
    metrics = _metrics_with_settings(path, config)
    if metrics is None or metrics.interrupted:
        return False
    stored = metrics.store.model_dump()
    same_store = all(stored[key] == value for key, value in origin.items() if key not in ("path", "streams"))
    return same_store and stored["streams"].items() >= origin["streams"].items()  # older runs list more than they read


def choose_run_folder(name: str | None, stem: str, config: Config, origin: dict[str, Any]) -> tuple[Path, bool]:
    """Choose the folder of a run, and tell whether it already holds this very run, finished.

    A name given by the user is used again: the new run replaces the old one, but a ConfigError is raised if the folder
    is not a run. The default name, `<stem of the config file>-<target>-<head>`, gets a number if another run has it.
    """
    if name is not None:
        path = run_path(name)
        if path.exists() and not (path / "metrics.json").is_file() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} exists and is not a run, so it is not replaced", hint="--run ANOTHER_NAME")
        return path, is_finished(path, config, origin)
    target = config.data.target if isinstance(config.data.target, str) else "-".join(config.data.target)
    first = one_line(f"{stem}-{target}-{config.head.name}").translate(SEPARATORS)[:LONGEST_NAME]
    for number in count(1):
        path = RUNS / (first if number == 1 else f"{first}-{number}")
        if is_finished(path, config, origin):
            return path, True
        metrics = _metrics_with_settings(path, config)
        if not path.exists() or (metrics and metrics.interrupted):  # the complete run may replace it
            return path, False
    raise AssertionError("unreachable")


def _metrics_with_settings(path: Path, config: Config) -> Metrics | None:
    """The metrics of the run in a folder; None if there is no run with these settings."""
    try:
        return read_metrics(path) if run_settings(read_run_config(path)) == run_settings(config) else None
    except (ConfigError, DataError):
        return None
