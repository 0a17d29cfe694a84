"""Save and read the state of fine-tuning after an epoch, so that an interrupted one resumes."""

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

ChangedWeights = Mapping[int, NDArray[Any]]  # by position among the model's weights


@dataclass
class FinetuneState:
    """Fine-tuning after some epoch."""

    key: str  # digest of what determines the result; a state with another key is not resumed
    history: list[Epoch]  # from epoch 0, which is the two stages' model
    best: int = 0  # the epoch whose weights are kept
    weights: ChangedWeights = field(default_factory=dict)  # that differ from those of epoch 0
    kept: ChangedWeights = field(default_factory=dict)  # the same for the epoch `best`
    optimiser: list[NDArray[Any]] = field(default_factory=list)  # its variables, in order
    facts: dict[str, float] = field(default_factory=dict)  # what was measured at epoch 0


def changed_weights(weights: list[NDArray[Any]], start: list[NDArray[Any]]) -> ChangedWeights:
    """The weights that differ from those at the start."""
    return {i: np.array(w) for i, (w, s) in enumerate(zip(weights, start, strict=True)) if not np.array_equal(w, s)}


def with_changes(changes: ChangedWeights, start: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The weights at the start with changes applied."""
    return [changes.get(i, w) for i, w in enumerate(start)]


def save_checkpoint(path: Path, state: FinetuneState) -> None:
    """Write a state to a file, which appears only when it is complete."""
    parts = {"weights": state.weights, "kept": state.kept, "optimiser": dict(enumerate(state.optimiser))}
    if state.best == len(state.history) - 1:
        del parts["kept"]  # equal to "weights"
    arrays: dict[str, Any] = {f"{part}{i}": array for part, values in parts.items() for i, array in values.items()}
    words = {"key": state.key, "best": state.best, "facts": state.facts, "history": list(map(asdict, state.history))}
    arrays["words"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
    with atomic_write(path) as temporary, temporary.open("wb") as f:
        np.savez(f, **arrays)


def read_checkpoint(path: Path) -> FinetuneState | None:
    """Read a state; None if there is no file.

    Raises:
        DataError: the file is damaged.
    """

    def part(name: str) -> dict[int, NDArray[Any]]:
        return {int(k.removeprefix(name)): v for k, v in arrays.items() if k.startswith(name)}

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        words = json.loads(arrays.pop("words").tobytes())
        history = [Epoch(**row) for row in words["history"]]
        weights, optimiser = part("weights"), part("optimiser")
        kept = weights if words["best"] == len(history) - 1 else part("kept")
        optimiser_variables = [optimiser[i] for i in range(len(optimiser))]
        return FinetuneState(words["key"], history, words["best"], weights, kept, optimiser_variables, words["facts"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: damaged state of fine-tuning", got=e, hint=f"rm -r {path.parent}") from None
