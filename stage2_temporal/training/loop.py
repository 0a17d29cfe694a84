"""Training: Adam on the mean squared error, the best epoch kept, the same numbers each time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from features._common.log import logger
from features._common.types import Floats
from features.config import TrainConfig
from features.errors import FramebankError
from stage2_temporal.data.batches import Batches
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.training.adam import Adam
from stage2_temporal.training.ahead import Ahead
from stage2_temporal.training.fast_layers import with_fast_layers
from stage2_temporal.training.interrupt import DeferredInterrupt


@dataclass(frozen=True)
class TrainingResult:
    """What training came to; the model holds the weights of `best_epoch`.

    Attributes:
        history: one row an epoch, in order.
        best_epoch: the epoch (from 1) whose weights were kept.
        seconds: wall time.
        interrupted: whether the user stopped it.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    seconds: float
    interrupted: bool


def fix_seeds(seed: int) -> None:
    """Seed Python, numpy and TensorFlow and ask for deterministic kernels (a tenth slower on a CPU)."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit_model(
    model: keras.Model,
    train: Batches,
    validation: Batches | None,
    config: TrainConfig,
    *,
    deviation: Floats | None = None,
    logs: Path | None = None,
) -> TrainingResult:
    """Train `model` and leave the kept epoch's weights in it.

    Ctrl-C ends training with the best epoch so far. Without validation examples the last epoch is the best.

    Args:
        model: answers in the target's unit.
        train: shuffled batches.
        validation: batches that choose the epoch, or None.
        config: the `[train]` section.
        deviation: (K,) where given, each target's error counts in units of it.
        logs: folder for TensorBoard.

    Raises:
        FramebankError: the loss is no number any more, or a frame cannot be read.
        KeyboardInterrupt: Ctrl-C before the first epoch ended: there is nothing to keep.
    """
    twin = with_fast_layers(model, config.precision)
    optimiser = Adam(config.learning_rate, weight_decay=config.weight_decay or None)
    optimiser.build(twin.trainable_variables)  # left to the first step, it would be traced twice
    rmse = keras.metrics.RootMeanSquaredError(name="rmse")
    twin.compile(optimiser, loss=loss_function(deviation), metrics=[rmse])
    keeper = _Keeper(config, validation is not None)
    stop = DeferredInterrupt()
    callbacks = [keeper, stop, *([_tensorboard(logs)] if logs else [])]
    started, interrupted = time.monotonic(), False
    try:
        with stop.listening(), ExitStack() as reading:
            ahead, held = (batches and reading.enter_context(Ahead(batches)) for batches in (train, validation))
            twin.fit(ahead, validation_data=held, epochs=config.epochs, shuffle=False, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        if keeper.weights is None:
            raise
        interrupted = True
    except tf.errors.OpError:
        fault = train.fault or (validation and validation.fault)
        if fault is None:
            raise
        raise fault from None
    finally:
        keeper.close()
    model.set_weights(keeper.weights)
    return TrainingResult(tuple(keeper.history), keeper.best, time.monotonic() - started, interrupted)


def predict_batches(model: keras.Model, batches: Batches) -> Floats:
    """(n, K) predictions in the target's unit.

    Raises:
        StoreError: a frame that cannot be read.
    """
    try:
        with Ahead(batches) as ahead:
            predicted: NDArray[np.float32] = with_fast_layers(model).predict(ahead, verbose=0)
    except tf.errors.OpError:
        if batches.fault is None:
            raise
        raise batches.fault from None
    return predicted.astype(np.float64)


def loss_function(deviation: Floats | None) -> str | Callable[[Any, Any], Any]:
    """Mean squared error, each component in units of its deviation where given."""
    if deviation is None:
        return "mean_squared_error"
    weight = (1 / deviation).astype(np.float32)

    def standardised_squared_error(true: Any, predicted: Any) -> Any:
        return keras.ops.mean(keras.ops.square((predicted - true) * weight), axis=-1)

    return standardised_squared_error


def _tensorboard(logs: Path) -> keras.callbacks.Callback:
    if find_spec("tensorboard") is None:
        raise FramebankError(
            "train.tensorboard needs the package tensorboard", hint=".venv/bin/python -m pip install tensorboard"
        )
    return keras.callbacks.TensorBoard(log_dir=str(logs))


class _Keeper(keras.callbacks.Callback):  # type: ignore[misc]
    """History, progress, the weights to keep, and when to stop."""

    def __init__(self, config: TrainConfig, validated: bool) -> None:
        super().__init__()
        self._config, self._validated = config, validated
        self.history: list[Epoch] = []
        self.weights: list[NDArray[np.float32]] | None = None
        self.best, self._lowest, self._lowest_epoch = 0, math.inf, 0
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=config.epochs, desc="train", unit="epoch", file=sys.stderr) if terminal else None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        got = logs or {}
        row = Epoch(
            epoch=epoch + 1,
            **{k: float(got.get(k, math.nan)) for k in ("loss", "rmse", "val_loss", "val_rmse")},
            seconds=time.monotonic() - self._started,
        )
        judged = row.val_loss if self._validated else row.loss
        if not math.isfinite(row.loss) or not math.isfinite(judged):
            raise FramebankError(
                f"the loss is no number any more in epoch {row.epoch}",
                got=f"loss {row.loss}, validation {row.val_loss}",
                hint=f"--train.learning_rate {self._config.learning_rate / 10:g}"
                + ("" if self._config.standardise else ", or --train.standardise True"),
            )
        self.history.append(row)
        if judged < self._lowest:
            self._lowest, self._lowest_epoch = judged, row.epoch
        if self._lowest_epoch == row.epoch or not (self._config.restore_best and self._validated):
            self.weights, self.best = self.model.get_weights(), row.epoch
        patience = self._config.patience
        if patience and row.epoch - self._lowest_epoch >= patience:
            self.model.stop_training = True
        self._show(row)

    def close(self) -> None:
        """Leave the terminal to others."""
        if self._bar is not None:
            self._bar.close()

    def _show(self, row: Epoch) -> None:
        figures = {"loss": row.loss, "rmse": row.rmse}
        if self._validated:
            figures |= {"val_loss": row.val_loss, "val_rmse": row.val_rmse}
        if self._bar is not None:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in figures.items()}, refresh=False)
            self._bar.update()
            return
        text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
        logger.info(f"train: epoch {row.epoch}/{self._config.epochs}, {text} [{row.seconds:.1f} s]")
