"""The training loop: Adam on the mean squared error; keeps the best epoch; the same seed gives the same numbers."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from features._common.console import is_quiet, logger
from features._common.types import Floats
from features.config import TrainConfig
from features.errors import FramebankError
from stage2_temporal.data.batches import Batches
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.training.fast_layers import with_fast_layers

Callbacks = Sequence[keras.callbacks.Callback]


@dataclass(frozen=True)
class TrainingResult:
    """The course of a training, after which the model has the weights of `best_epoch`."""

    history: tuple[Epoch, ...]
    best_epoch: int  # counted from 1
    seconds: float  # wall time
    interrupted: bool  # by the user


def fix_seeds(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and use deterministic kernels, which are 10 % slower on a CPU."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit_model(
    model: keras.Model,
    train: Batches,
    validation: Batches | None,
    config: TrainConfig,
    *,
    deviation: Floats | None = None,
    callbacks: Callbacks = (),
) -> TrainingResult:
    """Train a model, which then has the weights of the epoch that was kept.

    Ctrl-C ends training with the best epoch so far. Without validation examples, the last epoch is the best.

    Args:
        model: predicts in the target's unit.
        train, validation: shuffled batches, and those that select the epoch, if any; closed at the end.
        config: the section [train].
        deviation: (K,) units in which the targets' errors are counted in the loss; None: as they are.
        callbacks: called after those of this loop; what they raise ends the training.

    Raises:
        FramebankError: the loss became NaN or infinite, or a frame cannot be read.
        KeyboardInterrupt: Ctrl-C before the first epoch ended.
    """
    fast_model = with_fast_layers(model, config.precision)
    optimiser = Adam(config.learning_rate, weight_decay=config.weight_decay or None)
    optimiser.build(fast_model.trainable_variables)  # otherwise the first step would be traced twice
    rmse = keras.metrics.RootMeanSquaredError(name="rmse")
    fast_model.compile(optimiser, loss=loss_function(deviation), metrics=[rmse])
    keeper = _Keeper(config, validation is not None)
    started, interrupted = time.monotonic(), False
    try:
        with deferred_interrupt() as interrupt, reading_errors(train, validation):
            all_callbacks = [keeper, interrupt, *callbacks]
            if config.schedule == "cosine":
                decay = keras.optimizers.schedules.CosineDecay(config.learning_rate, config.epochs)
                all_callbacks.append(keras.callbacks.LearningRateScheduler(lambda epoch: float(decay(epoch))))
            fast_model.fit(
                train,
                validation_data=validation,
                epochs=config.epochs,
                shuffle=False,
                verbose=0,
                callbacks=all_callbacks,
            )
    except KeyboardInterrupt:
        if keeper.weights is None:
            raise
        interrupted = True
    finally:
        keeper.bar.close()
        train.close()
        if validation is not None:
            validation.close()
    model.set_weights(keeper.weights)
    return TrainingResult(tuple(keeper.history), keeper.best_epoch, time.monotonic() - started, interrupted)


def predict_batches(model: keras.Model, batches: Batches) -> Floats:
    """Predict (n, K) targets in their unit, and close the batches; a StoreError if a frame cannot be read."""
    try:
        with reading_errors(batches):
            return np.asarray(with_fast_layers(model).predict(batches, verbose=0), np.float64)
    finally:
        batches.close()


@contextmanager
def reading_errors(*batches: Batches | None) -> Iterator[None]:
    """Raise the user's error that reading batches raised, in place of TensorFlow's, which hides it."""
    try:
        yield
    except tf.errors.OpError as e:
        raise next((b.fault for b in batches if b is not None and b.fault is not None), e) from None


def loss_function(deviation: Floats | None) -> str | Callable[[Any, Any], Any]:
    """Return the mean squared error, each target counted in units of its deviation (K,) if given."""
    if deviation is None:
        return "mean_squared_error"
    weight = (1 / deviation).astype(np.float32)

    def standardised_squared_error(true: Any, predicted: Any) -> Any:
        return keras.ops.mean(keras.ops.square((predicted - true) * weight), axis=-1)

    return standardised_squared_error


@contextmanager
def deferred_interrupt() -> Iterator[keras.callbacks.Callback]:
    """Yield a callback that raises KeyboardInterrupt at the end of the batch in which Ctrl-C was pressed.

    Python's own handler raises wherever the interpreter happens to be, and the exception is lost in a destructor or a
    callback from C. A second Ctrl-C raises at once.
    """
    interrupted = threading.Event()

    def check(batch: int, logs: object = None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    def handle(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, previous)

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=check, on_test_batch_end=check)
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):  # or SIGINT is ignored
        yield callback
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield callback
    finally:
        signal.signal(signal.SIGINT, previous)


class Adam(keras.optimizers.Adam):  # type: ignore[misc]
    """Keras' Adam (D. Kingma, J. Ba, 2015), which updates each parameter by TensorFlow's fused kernel.

    An epoch of the published model or of `pooled_lstm` takes 13 % longer with Keras' elementwise operations.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable and its two moments in place."""
        step = tf.cast(self.iterations + 1, variable.dtype)
        i = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[i].value.handle,
            v=self._velocities[i].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class _Keeper(keras.callbacks.Callback):  # type: ignore[misc]
    """Records the history, shows progress, keeps the best weights, and stops training when patience runs out."""

    def __init__(self, config: TrainConfig, validated: bool) -> None:
        super().__init__()
        self._config, self._validated = config, validated
        self.history: list[Epoch] = []
        self.weights: list[NDArray[np.float32]] | None = None
        self.best_epoch, self._lowest, self._lowest_epoch = 0, math.inf, 0
        self.bar = tqdm(
            total=config.epochs,
            desc="train",
            unit="epoch",
            file=sys.stderr,
            disable=is_quiet() or None,  # `None` disables the bar where standard error is no terminal
            dynamic_ncols=True,
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        values = logs or {}
        row = Epoch(
            epoch=epoch + 1,
            **{k: float(values.get(k, math.nan)) for k in ("loss", "rmse", "val_loss", "val_rmse")},
            seconds=time.monotonic() - self._started,
        )
        deciding = row.val_loss if self._validated else row.loss
        if not math.isfinite(row.loss) or not math.isfinite(deciding):
            raise FramebankError(
                f"the loss became NaN or infinite in epoch {row.epoch}",
                got=f"loss {row.loss}, validation {row.val_loss}",
                hint=f"--train.learning_rate {self._config.learning_rate / 10:g}"
                + ("" if self._config.standardise else ", or --train.standardise true"),
            )
        self.history.append(row)
        if deciding < self._lowest:
            self._lowest, self._lowest_epoch = deciding, row.epoch
        if self._lowest_epoch == row.epoch or not (self._config.restore_best and self._validated):
            self.weights, self.best_epoch = self.model.get_weights(), row.epoch
        patience = self._config.patience
        if patience and row.epoch - self._lowest_epoch >= patience:
            self.model.stop_training = True
        shown = ("loss", "rmse", *(("val_loss", "val_rmse") if self._validated else ()))
        figures = {name: f"{getattr(row, name):.4g}" for name in shown}
        if self.bar.disable:
            text = ", ".join(f"{name} {figure}" for name, figure in figures.items())
            logger.info(f"train: epoch {row.epoch}/{self._config.epochs}, {text} [{row.seconds:.1f} s]")
        else:
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update()
