"""Save and load Keras models in a run's folder."""

from __future__ import annotations

from pathlib import Path

import keras

from features._common.atomic import atomic_write
from features.errors import DataError


def save_model(path: Path, model: keras.Model) -> None:
    """Save a model in Keras' own format; `path` appears only when the file is complete."""
    with atomic_write(path) as temporary:
        with_ending = temporary.with_suffix(".keras")  # Keras chooses the format by the file's ending
        try:
            model.save(with_ending)
            with_ending.replace(temporary)
        finally:
            with_ending.unlink(missing_ok=True)


def load_model(run: Path, name: str = "model.keras") -> keras.Model:
    """Load a model from a run's folder.

    Raises:
        DataError: the file is missing or cannot be loaded safely.
    """
    path = run / name
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except (ValueError, OSError, TypeError, KeyError) as e:
        reason = " ".join(str(e).split())[:300]
        raise DataError(f"{path}: cannot be loaded ({reason})", hint="train again") from None
