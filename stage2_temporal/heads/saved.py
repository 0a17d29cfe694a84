"""A run's head with its saved model, which is checked against the run's settings: someone else may have made both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras

from features._common.plain_text import one_line
from features.config import Config
from features.errors import DataError
from features.streams import GEOMETRY
from stage2_temporal.heads import find_head
from stage2_temporal.heads.base import Head
from stage2_temporal.training.keras_models import load_model
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES

MODEL_FILE = "model.keras"
Shapes = Mapping[str, tuple[int, ...]]  # of one example, by input


def load_head(run: Path, config: Config, shapes: Callable[[Head], Shapes] | None = None) -> Head:
    """Load a run's head.

    Args:
        shapes: returns what the model's inputs must be; by default, only their names and lengths are known.

    Raises:
        DataError: see `load_model`; or the model takes something else than the settings say.
    """
    model = load_model(run, MODEL_FILE, targets=len(config.data.columns))
    head = find_head(config.head.name).from_config(config)
    with named_layers(run / MODEL_FILE):
        head.restore(model, run)
    inputs = {tensor.name: tensor.shape[1:] for tensor in model.inputs}
    streams = {name: shape for name, shape in inputs.items() if name != GEOMETRY}
    length = config.window.length
    fits = (
        streams.keys() == head.input_streams.keys()
        and all(shape[:1] == (length,) and None not in shape for shape in streams.values())
        and inputs.get(GEOMETRY, (len(GEOMETRY_NAMES),)) == (len(GEOMETRY_NAMES),)
        and all(tensor.dtype == "float32" for tensor in model.inputs)
    )
    if not fits:
        expected = f"{', '.join(head.input_streams) or GEOMETRY} of {length} frames, as float32"
        got = ", ".join(f"{one_line(tensor.name)} {tensor.shape[1:]} {tensor.dtype}" for tensor in model.inputs)
        raise _unfit(run, expected, got)
    if shapes is not None:
        check_shapes(run, model, shapes(head))
    return head


def check_shapes(run: Path, model: keras.Model, expected: Shapes) -> None:
    """Raise a DataError unless some of a model's inputs have the expected shapes."""
    shapes = {tensor.name: tensor.shape[1:] for tensor in model.inputs}
    wrong = [name for name, shape in expected.items() if shapes.get(name) != tuple(shape)]
    if wrong:
        raise _unfit(
            run,
            ", ".join(f"{name} {tuple(expected[name])}" for name in wrong),
            ", ".join(f"{name} {shapes.get(name, '(none)')}" for name in wrong),
        )


@contextmanager
def named_layers(file: Path) -> Iterator[None]:
    """Say that a model lacks a layer which its run's head has."""
    try:
        yield
    except ValueError as e:
        if not str(e).startswith("No such layer"):
            raise
        layer = one_line(str(e).partition(". Existing")[0])[:200]
        raise DataError(f"{file}: not the model of this run's head", got=layer, hint="train again") from None


def _unfit(run: Path, expected: str, got: str) -> DataError:
    what = f"{run / MODEL_FILE}: takes something else than the run's settings say"
    return DataError(what, expected=expected, got=got[:500], hint="train again")
