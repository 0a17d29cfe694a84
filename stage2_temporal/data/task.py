"""The task: which examples a run trains on and is judged by. No TensorFlow here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.config import Config
from features.errors import StoreError
from features.recipe import json_digest
from features.store import Store
from features.streams import VEHICLE_COLUMNS
from features.windows import Examples, make_examples
from stage2_temporal.data.splits import fold_splits, name_splits


@dataclass(frozen=True)
class Task:
    """What a run trains on and is judged by.

    Attributes:
        examples: all examples, also those without a known target, which are only predicted.
        splits: (n,) each example's split in this run.
        constant: (K,) mean of the training targets.
    """

    examples: Examples
    splits: NDArray[np.str_]
    constant: Floats

    def known(self, split: str) -> NDArray[np.int64]:
        """Indices of a split's examples with known targets."""
        return np.flatnonzero((self.splits == split) & self.examples.known)

    @property
    def labels(self) -> str:
        """SHA-256 over what is to be predicted: runs with the same one are comparable, whatever they saw of it."""
        e = self.examples[self.examples.known]
        digest = hashlib.sha256("\n".join([*e.columns, *e.split.tolist()]).encode())
        for part in (e.targets, e.sequence, e.frame):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 over the examples: two runs with the same one saw the same windows, targets and splits."""
        e = self.examples
        digest = hashlib.sha256("\n".join([*e.columns, *self.splits.tolist()]).encode())
        for part in (e.rows, e.targets, e.position):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


def read_task(config: Config, store: Store) -> Task:
    """The examples a config makes of a store.

    Raises:
        StoreError: the store is not complete.
        ConfigError: no label has the target, no window fits, or nothing is left to train on.
    """
    if not store.complete:
        missing = f"{len(store.missing)} sequences are missing" if store.missing else "sequences are missing"
        raise StoreError(f"{store.path}: not complete, {missing}", hint="make features")
    window = config.window
    found = make_examples(
        store.sequences,
        store.first,
        config.data.columns,
        length=window.length,
        stride=window.stride,
        end=window.end,
    )
    chosen = config.train
    if chosen.folds:
        splits = fold_splits(found, chosen.folds, chosen.fold)
    else:
        splits = name_splits(found, chosen.validation_split)
    train = found.targets[(splits == "train") & found.known]
    return Task(found, splits, train.mean(axis=0))


def check_recipe(config: Config, store: Store) -> None:
    """Refuse a config that speaks of other features than the store holds: the run would lie about itself.

    Raises:
        StoreError: names each setting with both values.
    """
    recipe, cut = store.recipe, store.header.trunk.get("asked", {})
    stored = {
        "frames": {
            "width": recipe.size[0],
            "height": recipe.size[1],
            "interpolation": recipe.interpolation,
            "colour": recipe.colour,
        },
        "backbone": {"name": recipe.backbone, "preprocess": recipe.preprocess != "none", **cut},
        "extract": {"dtype": recipe.dtype},
    }
    asked = config.model_dump()
    differ = [
        f"{section}.{key} {value!r} in the store, {asked[section][key]!r} asked for"
        for section, values in stored.items()
        for key, value in values.items()
        if asked[section][key] != value
    ]
    if differ:
        raise StoreError(
            f"{store.path}: holds other features than the config asks for",
            got="; ".join(differ),
            hint="make features with a STORE of its own, or leave these settings as they are in the store",
        )


def store_origin(store: Store, wanted: Task, config: Config) -> dict[str, Any]:
    """What metrics.json says of the store, and what two runs are compared by.

    Flow or tracks made anew by another version are another origin, for a run that looks at them.
    """
    looks = {name: info.fingerprint for name, info in store.streams.items() if name in config.head.input_streams}
    if VEHICLE_COLUMNS.intersection(config.data.columns):
        looks["tracks"] = json_digest(sorted(store.track_keys))
    return {
        "path": str(store.path),
        "fingerprint": store.fingerprint,
        "frames": store.frames,
        "sequences": len(store.sequences),
        "examples": wanted.digest,
        "streams": looks,
    }
