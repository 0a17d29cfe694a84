"""Where fine-tuning stands, in one file: what it changed since the two stages, the optimiser, the history."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.atomic import atomic_write
from features.errors import DataError
from stage2_temporal.evaluation.history import Epoch

Weights = Mapping[int, NDArray[Any]]


@dataclass
class FinetuneState:
    """Fine-tuning after some epoch.

    Attributes:
        key: what decides the result; a state of another key is not gone on from.
        history: one row an epoch, from epoch 0, the two stages.
        best: the epoch whose weights are kept.
        weights: the weights that differ from the two stages', by their place in the model.
        kept: the same for the epoch `best`.
        optimiser: its variables, in order.
        facts: what was measured at epoch 0.
    """

    key: str
    history: list[Epoch] = field(default_factory=list)
    best: int = 0
    weights: Weights = field(default_factory=dict)
    kept: Weights = field(default_factory=dict)
    optimiser: list[NDArray[Any]] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


def changed_weights(weights: list[NDArray[Any]], start: list[NDArray[Any]]) -> Weights:
    """The weights that are no longer what they were at the start."""
    return {i: np.array(w) for i, (w, s) in enumerate(zip(weights, start, strict=True)) if not np.array_equal(w, s)}


def with_changes(weights: Weights, start: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The start's weights with the changes in their places."""
    return [weights.get(i, s) for i, s in enumerate(start)]


def save_checkpoint(path: Path, state: FinetuneState) -> None:
    """Write a state; it stands under `path` whole or not at all."""
    arrays = {f"{part}{i}": w for part in ("weights", "kept") for i, w in getattr(state, part).items()}
    arrays |= {f"optimiser{i}": w for i, w in enumerate(state.optimiser)}
    if state.best == len(state.history) - 1:
        arrays = {k: w for k, w in arrays.items() if not k.startswith("kept")}  # the same once more
    words = {"key": state.key, "best": state.best, "facts": state.facts, "history": list(map(asdict, state.history))}
    arrays["words"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
    with atomic_write(path) as temporary, temporary.open("wb") as f:
        np.savez(f, **arrays)


def read_checkpoint(path: Path) -> FinetuneState | None:
    """The state in a file; None where there is none.

    Raises:
        DataError: a file that is not one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            words = json.loads(file["words"].tobytes())
            arrays = {name: file[name] for name in file.files}
        weights, kept = (
            {int(k[len(p) :]): v for k, v in arrays.items() if k.startswith(p)} for p in ("weights", "kept")
        )
        history = [Epoch(**row) for row in words["history"]]
        optimiser = [arrays[f"optimiser{i}"] for i in range(sum(k.startswith("optimiser") for k in arrays))]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: no state of fine-tuning ({e})", hint=f"rm -r {path.parent}") from None
    newest = words["best"] == len(history) - 1
    return FinetuneState(
        words["key"], history, words["best"], weights, weights if newest else kept, optimiser, words["facts"]
    )
