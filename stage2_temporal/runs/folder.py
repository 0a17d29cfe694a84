"""The run's folder: its name, whether the work is done already, and appearing only when whole."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features._common.log import logger
from features.config import Config, read_run_config
from features.errors import ConfigError, DataError
from features.recipe import canonical_json

RUNS = Path("runs")
REPORT = "report.html"
FILES = ("config.toml", "metrics.json", "history.csv", "predictions.csv", "model.keras", REPORT)


def run_path(name: str) -> Path:
    """`runs/<name>`; what holds a separator is a path already."""
    return Path(name) if os.sep in name or "/" in name else RUNS / name


def default_name(stem: str, config: Config) -> str:
    """`<config's name>-<target>-<head>`."""
    target = config.data.target if isinstance(config.data.target, str) else "-".join(config.data.target)
    return f"{stem}-{target}-{config.head.name}"


def run_settings(config: Config) -> str:
    """What of a config decides a run, as canonical JSON; where the data lies and how it was decoded is the store's."""
    value = config.model_dump(mode="json", include={"window", "head", "train"})
    del value["train"]["memory_gb"]  # decides how, not what
    return canonical_json({**value, "columns": config.data.columns})


def is_finished(path: Path, config: Config, origin: dict[str, Any], *, report: bool = True) -> bool:
    """Whether a whole, uninterrupted run of the same settings on the same examples lies at `path`.

    Args:
        origin: what metrics.json says of the store under `store`, its path aside.
        report: whether it is whole only with its report.
    """
    if not all((path / name).is_file() for name in FILES if report or name != REPORT):
        return False
    try:
        metrics = read_metrics(path)
        before = read_run_config(path)
    except (ConfigError, DataError):
        return False
    stored = metrics.get("store", {})
    same = all(stored.get(k) == v for k, v in origin.items() if k != "path")
    return same and not metrics.get("interrupted") and run_settings(before) == run_settings(config)


def choose_run_folder(asked: str | None, stem: str, config: Config, origin: dict[str, Any]) -> tuple[Path, bool]:
    """Where this run belongs, and whether it already lies there.

    A name that was asked for is replaced by the new run. The default name gets a number where another run has it.

    Raises:
        ConfigError: the folder asked for holds something that is no run.
    """
    if asked is not None:
        path = run_path(asked)
        if path.exists() and not (path / "metrics.json").is_file() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} is there and is no run: it is not replaced", hint="--run ANOTHER_NAME")
        return path, is_finished(path, config, origin)
    name = default_name(stem, config)
    number = 1
    while True:
        path = RUNS / (name if number == 1 else f"{name}-{number}")
        if is_finished(path, config, origin):
            return path, True
        if not path.exists() or _interrupted(path, config):
            return path, False
        number += 1


def _interrupted(path: Path, config: Config) -> bool:
    """Whether a run with these settings was stopped there: it may be replaced by its whole self."""
    try:
        return bool(read_metrics(path).get("interrupted")) and run_settings(
            read_run_config(path)
        ) == run_settings(config)
    except (ConfigError, DataError):
        return False


def read_metrics(path: Path) -> dict[str, Any]:
    """A run's metrics.json.

    Raises:
        DataError: there is none, or it is not JSON.
    """
    file = path / "metrics.json"
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{path} is no run: no metrics.json in it", hint="--run NAME, one of runs/") from None
    except ValueError as e:
        raise DataError(f"{file}: not JSON: {e}", hint="train anew") from None
    if not isinstance(value, dict) or not {"store", "splits", "verdict"} <= set(value):
        raise DataError(f"{file}: not what training writes", hint="train anew")
    return value


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder of the same name elsewhere in the parent; it takes `path`'s place when the block ends well.

    What came to stand at `path` meanwhile is another's finished work and stays: this one then takes the next free name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = _identity(path)
    outer = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=path.parent))
    try:
        inner = outer / path.name
        inner.mkdir()
        yield inner
        final, number = path, 1
        if _identity(path) != before:
            while final.exists():
                number += 1
                final = path.with_name(f"{path.name}-{number}")
            logger.info(f"{path}: another run took this name meanwhile, this one is {final}")
        elif path.exists():
            path.rename(outer / ".before")
        inner.rename(final)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a folder from one that took its place; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
