"""Save and read the state of fine-tuning after an epoch, so that an interrupted one resumes."""

from __future__ import annotations

import math
from pathlib import Path

import keras
from pydantic import BaseModel, ConfigDict, ValidationError

from features._common.atomic import atomic_write, fsync_path
from features._common.bounded_file import read_bounded
from features._common.console import logger
from features._common.plain_text import one_line
from features.errors import DataError
from features.hdf5 import check_weights
from features.limits import JSON_BYTES
from stage2_temporal.evaluation.history import Epoch


class FinetuneState(BaseModel):
    """Fine-tuning after some epoch."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    key: str  # digest of what determines the result; a state with another key is not resumed
    facts: dict[str, float]  # what was measured at epoch 0
    history: list[Epoch]  # from epoch 0, which is the two stages' model

    @property
    def best(self) -> int:
        """The row of the history whose weights are kept: the last, or epoch 0 if its validation loss is not higher."""
        first, last = self.history[0].val_loss, self.history[-1].val_loss
        return len(self.history) - 1 if math.isnan(first) or last < first else 0


def save_state(folder: Path, state: FinetuneState, model: keras.Model) -> None:
    """Write a state, whose last epoch gave the weights of `model`; only those are kept."""
    folder.mkdir(exist_ok=True)
    epoch = len(state.history) - 1
    if epoch > 0:
        model.save_weights(_weights_path(folder, epoch))
        fsync_path(_weights_path(folder, epoch))
    with atomic_write(folder / "state.json") as temporary:  # an epoch counts from here on
        temporary.write_text(state.model_dump_json(indent=2), encoding="utf-8")
    for path in set(folder.glob("*.weights.h5")) - {_weights_path(folder, epoch)}:
        path.unlink()


def read_state(folder: Path, key: str) -> FinetuneState | None:
    """Read a state; None if there is none with this key.

    Raises:
        DataError: the file is damaged.
    """
    try:
        state = FinetuneState.model_validate_json(read_bounded(folder / "state.json", JSON_BYTES))
    except FileNotFoundError:
        state = None
    except ValidationError as e:
        raise _damaged(folder, e.errors()[0]["msg"]) from None
    if state is not None and state.key == key:
        return state
    if folder.exists():
        logger.info(f"{folder}: saved with other settings or by an older version, so fine-tuning starts over")
    return None


def load_weights(folder: Path, epoch: int, model: keras.Model) -> None:
    """Give a model, and its optimiser, the weights that it had after a saved epoch.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        path = _weights_path(folder, epoch)
        check_weights(path, path.stat().st_size)
        model.load_weights(path)
    except MemoryError:
        raise
    except Exception as e:  # Keras and h5py raise what they happen to on a file that is none
        raise _damaged(folder, one_line(" ".join(str(e).split())[:300])) from None


def _weights_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch{epoch}.weights.h5"


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(f"{folder}: damaged state of fine-tuning", got=reason, hint=f"rm -r {folder}")
