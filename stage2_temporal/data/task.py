"""The task of a run: the examples that it trains on and is evaluated on. Does not load TensorFlow."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.backbone_names import is_imported, recipe_name
from features.config import Config
from features.errors import StoreError
from features.recipe import json_digest
from features.store import Store
from features.streams import VEHICLE_COLUMNS
from features.windows import Examples, make_examples
from stage2_temporal.data.splits import fold_splits, name_splits


@dataclass(frozen=True)
class Task:
    """The examples that a run trains on and is evaluated on."""

    examples: Examples  # those without a known target are only predicted
    splits: NDArray[np.str_]  # (n,) each example's split in this run
    constant: Floats  # (K,) mean of the training targets
    # medians over the training examples, in seconds
    interval: float | None  # between a window's frames; None for windows of one frame
    frame_interval: float  # between neighbouring frames of the sequences

    def known(self, split: str) -> NDArray[np.int64]:
        """Return the indices of a split's examples with known targets."""
        return np.flatnonzero((self.splits == split) & self.examples.known)

    @property
    def labels(self) -> str:
        """SHA-256 over the labels: runs with equal ones predict the same values, whatever features they use."""
        e = self.examples[self.examples.known]
        return _digest([*e.columns, *e.split.tolist()], e.targets, e.sequence, e.frame)

    @property
    def digest(self) -> str:
        """SHA-256 over the examples: runs with equal ones have the same windows, targets and splits."""
        e = self.examples
        return _digest([*e.columns, *self.splits.tolist()], e.rows, e.targets, e.position)


def _digest(names: list[str], *arrays: NDArray[Any]) -> str:
    return hashlib.sha256("\n".join(names).encode() + b"".join(array.tobytes() for array in arrays)).hexdigest()


def read_task(config: Config, store: Store) -> Task:
    """List the examples that a config selects from a store.

    Raises:
        StoreError: the store is incomplete.
        ConfigError: no label has the target, no window fits into a sequence, no example is left to train on, or a
            sequence has no frames `window.interval` seconds apart.
    """
    if not store.complete:
        count = f"{len(store.missing)} " if store.missing else ""
        raise StoreError(
            f"{store.path}: incomplete, {count}sequences are missing",
            hint=f"framebank extract --config FILE --store {store.path}",
        )
    window = config.window
    examples = make_examples(
        store.sequences,
        store.first,
        config.data.columns,
        **window.model_dump(),
        slowest=math.inf if config.any_frame_rate else None,
    )
    if config.train.folds:
        splits = fold_splits(examples, config.train.folds, config.train.fold)
    else:
        splits = name_splits(examples, config.train.validation_split)
    training = examples[(splits == "train") & examples.known]
    interval = float(np.median(window_intervals(training.rows, store))) if window.length > 1 else None
    frame_interval = float(np.median(store.frame_intervals[training.rows[:, -1]]))
    return Task(examples, splits, training.targets.mean(axis=0), interval, frame_interval)


def window_intervals(rows: NDArray[np.int64], store: Store) -> Floats:
    """The mean time between neighbouring frames of windows `rows` (n, T > 1): (n,), in seconds."""
    times = store.frame_times[rows[:, [0, -1]]]
    return np.asarray((times[:, 1] - times[:, 0]) / (rows.shape[1] - 1))


def check_recipe(config: Config, store: Store) -> None:
    """Raise a StoreError, with both values of each setting, if a config asks for other features than the store's."""
    recipe, cut = store.recipe, store.header.trunk.get("asked", {})
    stored = {
        "frames": dict(zip(("width", "height"), recipe.size, strict=True))
        | {"interpolation": recipe.interpolation, "colour": recipe.colour},
        "backbone": {"name": recipe.backbone, "preprocess": recipe.preprocess != "none", **cut},
        "extract": {"dtype": recipe.dtype},
    }
    if is_imported(recipe.backbone):  # all else is the other tool's business
        stored = {"backbone": {"name": recipe.backbone}}
    settings = config.model_dump()
    settings["backbone"]["name"] = recipe_name(config.backbone.name)
    differences = [
        f"{section}.{key} {value!r} in the store, {settings[section][key]!r} in the config"
        for section, values in stored.items()
        for key, value in values.items()
        if settings[section][key] != value
    ]
    if differences:
        raise StoreError(
            f"{store.path}: its features differ from those the config asks for",
            got="; ".join(differences),
            hint="framebank extract into another --store, or give these settings the values in the store",
        )


def store_origin(store: Store, task: Task, config: Config) -> dict[str, Any]:
    """Describe a run's store for metrics.json, where equal descriptions mean equal inputs.

    Includes the versions of the streams and tracks that the head reads, which may be computed again.
    """
    versions = {name: info.fingerprint for name, info in store.streams.items() if name in config.head.input_streams}
    if VEHICLE_COLUMNS.intersection(config.data.columns):
        versions["tracks"] = json_digest(sorted(store.track_keys))
    recipe = store.recipe
    decided = {"precision": recipe.precision, "quantised": recipe.quantised}
    return {
        "path": str(store.path),
        "fingerprint": store.fingerprint,
        "frames": store.frames,
        "sequences": len(store.sequences),
        "examples": task.digest,
        "streams": versions,
        **(decided if recipe.quantised or config.extract.precision == "fastest" else {}),
    }
