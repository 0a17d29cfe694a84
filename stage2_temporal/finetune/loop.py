"""Run the epochs of fine-tuning: epoch 0 is the two stages' own result; the state is saved after every epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from features._common.log import logger
from features._common.types import Floats
from features.config import Config, FinetuneConfig
from features.errors import FramebankError, StoreError
from features.layer_names import STAGE_TWO, TRUNK
from stage2_temporal.data.task import Task
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.finetune.augmentation import Augmentation, mirror_signs
from stage2_temporal.finetune.checkpoint import (
    FinetuneState,
    changed_weights,
    read_checkpoint,
    save_checkpoint,
    with_changes,
)
from stage2_temporal.finetune.image_batches import ImageWindowBatches
from stage2_temporal.finetune.unfreeze import backbone_layers, count_unfrozen, unfreeze_layers
from stage2_temporal.fused.fuse import TOLERANCE, ReadWindow, compare
from stage2_temporal.runs.results import read_predictions
from stage2_temporal.training.loop import fix_seeds, loss_function
from stage2_temporal.training.scaling import target_scale

STATE_FOLDER, STATE_FILE = "finetune.parts", "state.npz"
WARMUP_SHARE = 0.1  # share of all steps over which the learning rate rises
FAST_HALF_PRECISION = (7, 0)  # CUDA compute capability from which half precision is faster than single


@dataclass(frozen=True)
class Devices:
    """How to compute."""

    policy: str  # the backbone's dtype policy
    replicas: int  # number of GPUs; 0: the CPU


def choose_devices(gpus: list[tuple[int, int]]) -> Devices:
    """Choose how to compute on GPUs of these compute capabilities; the CPU in single precision if there are none."""
    mixed = bool(gpus) and min(gpus) >= FAST_HALF_PRECISION
    return Devices("mixed_float16" if mixed else "float32", len(gpus))


class FinetuneJob:
    """Fine-tunes `model`, a trainable copy of a run's fused model, whose weights at the start are `start`.

    `unfrozen` are names of the backbone layers that train. Without validation examples, the last epoch is kept.
    """

    def __init__(
        self, run: Path, dtype: str, task: Task, config: Config, fused: keras.Model, read: ReadWindow, key: str
    ) -> None:
        """Build the trainable copy; raises what `count_unfrozen` does.

        `dtype` is of the store's maps, `key` a digest of what determines the result.
        """
        fix_seeds(config.train.seed)
        gpus = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
        self.devices = choose_devices([gpu.get("compute_capability", (0, 0)) for gpu in gpus])
        self.fused, self.start = fused, fused.get_weights()
        self._state_path, self._key = run / STATE_FOLDER / STATE_FILE, key
        self._dtype, self._seed, self._options, self._read = dtype, config.train.seed, config.finetune, read
        self._threads, self._targets = config.extract.threads, task.examples.targets
        train, validation = task.known("train"), task.known("validation")
        self.has_validation = len(validation) > 0
        if not self.has_validation:
            logger.info("finetune: no validation examples, so the last epoch is kept")
        self._scored = validation if self.has_validation else train
        self._expected = np.array([e.predicted for e in read_predictions(run / "predictions.csv", config.data.columns)])

        names = [layer.name for layer in backbone_layers(fused)]
        count = count_unfrozen(names, self._options.unfreeze)
        self.unfrozen = names[len(names) - count :]
        replicas = max(1, self.devices.replicas)
        self._batch = -(-self._options.batch // replicas) * replicas
        self._windows = ImageWindowBatches(
            read,
            train,
            self._targets,
            self._batch,
            threads=self._threads,
            seed=self._seed,
            augmentation=choose_augmentation(self._options, task.examples.columns),
            only_full=replicas > 1,  # a partial batch may leave a replica without windows
        )
        self._deviation = target_scale(self._targets[train]).deviation if config.train.standardise else None
        with tf.distribute.MirroredStrategy().scope() if self.devices.replicas > 1 else nullcontext():
            batch_norm, policy = self._options.batch_norm, self.devices.policy
            self.model = unfreeze_layers(fused, count, batch_norm=batch_norm, policy=policy)
            schedule = learning_rate_schedule(self._options, len(self._windows) * self._options.epochs)
            optimiser = keras.optimizers.Adam(schedule)
            if policy == "mixed_float16":
                optimiser = keras.optimizers.LossScaleOptimizer(optimiser)
            rmse = keras.metrics.RootMeanSquaredError(name="rmse")
            self.model.compile(optimiser, loss_function(self._deviation), metrics=[rmse], auto_scale_loss=False)
            optimiser.build(self.model.trainable_variables)

    def train(self) -> FinetuneState:
        """Run all epochs that are left, from epoch 0 or from a saved state."""
        state = read_checkpoint(self._state_path)
        if state is not None and state.key != self._key:
            logger.info(f"{self._state_path.parent}: saved with other settings, so fine-tuning starts over")
            state = None
        if state is None:
            state = self._epoch0()
            save_checkpoint(self._state_path, state)
        else:
            logger.info(f"finetune: resuming after epoch {len(state.history) - 1}")
            self.model.set_weights(with_changes(state.weights, self.start))
            for variable, value in zip(self.model.optimizer.variables, state.optimiser, strict=True):
                variable.assign(value)
        for epoch in range(len(state.history), self._options.epochs + 1):
            self._train_epoch(epoch, state)
            save_checkpoint(self._state_path, state)
        return state

    def predict(self, model: keras.Model, indices: NDArray[np.int64]) -> Floats:
        """Predict examples from their images: (n, K) in the target's unit."""
        windows = ImageWindowBatches(self._read, indices, None, self._batch, threads=self._threads)
        with decoding_errors(windows):
            predicted: Floats = np.asarray(model.predict(windows, verbose=0), np.float64)
        return predicted

    def _epoch0(self) -> FinetuneState:
        """Check that the fused model predicts what the two stages did."""
        started = time.monotonic()
        windows = ImageWindowBatches(self._read, self._scored, None, self._batch)
        predicted, facts = check_epoch0(self.fused, windows, self._expected[self._scored], self._dtype)
        if self.devices.policy != "float32":
            predicted = self.predict(self.model, self._scored)  # in the same precision as later epochs
        remark = f", differs from the two stages by {facts['difference']:.1g} of the largest value"
        row = self._history_row(0, math.nan, math.nan, predicted, started, remark)
        return FinetuneState(self._key, [row], optimiser=self._optimiser_variables(), facts=facts)

    def _train_epoch(self, epoch: int, state: FinetuneState) -> None:
        started = time.monotonic()
        self._windows.begin(epoch)
        seed_dropout(self.model, self._seed, epoch)
        with (
            tqdm(total=len(self._windows), desc=f"epoch {epoch}", leave=False, disable=not sys.stderr.isatty()) as bar,
            decoding_errors(self._windows),
        ):
            callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
            fitted = self.model.fit(self._windows, epochs=1, shuffle=False, verbose=0, callbacks=[callback]).history
        predicted = self.predict(self.model, self._scored)
        row = self._history_row(epoch, fitted["loss"][0], fitted["rmse"][0], predicted, started)
        lowest = min(earlier.val_loss for earlier in state.history)
        state.history.append(row)
        state.weights = changed_weights(self.model.get_weights(), self.start)
        state.optimiser = self._optimiser_variables()
        if not self.has_validation or row.val_loss < lowest:
            state.best, state.kept = epoch, state.weights

    def _history_row(
        self, epoch: int, loss: float, rmse: float, predicted: Floats, started: float, remark: str = ""
    ) -> Epoch:
        """Score the predictions of the judged examples, and log the epoch."""
        val_loss = val_rmse = math.nan
        if self.has_validation:
            error = predicted - self._targets[self._scored]
            val_rmse = float(np.sqrt(np.mean(error**2)))
            val_loss = float(np.mean((error if self._deviation is None else error / self._deviation) ** 2))
        if epoch > 0 and not (math.isfinite(loss) and (math.isfinite(val_loss) or not self.has_validation)):
            raise FramebankError(
                f"Loss became NaN or infinite in epoch {epoch}",
                got=f"training loss {loss}, validation loss {val_loss}",
                hint=f"--finetune.learning_rate {self._options.learning_rate / 10:g}",
            )
        row = Epoch(epoch, loss, rmse, val_loss, val_rmse, time.monotonic() - started)
        figures = {name: getattr(row, name) for name in ("loss", "rmse", "val_loss", "val_rmse")}
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if math.isfinite(value))
        logger.info(f"finetune: epoch {epoch}/{self._options.epochs}, {text}{remark} [{row.seconds:.1f} s]")
        return row

    def _optimiser_variables(self) -> list[NDArray[Any]]:
        return [keras.ops.convert_to_numpy(v.value) for v in self.model.optimizer.variables]


def check_epoch0(
    fused: keras.Model, windows: ImageWindowBatches, expected: Floats, dtype: str
) -> tuple[Floats, dict[str, float]]:
    """Predict (n, K) with the fused model, and compare with what the two stages predicted, `expected` (n, K).

    The effect of rounding the windows' maps to the store's `dtype` is tolerated; both are in the returned figures.

    Raises:
        StoreError: they differ by more than rounding.
    """
    trunk, stage_two = fused.get_layer(TRUNK), fused.get_layer(STAGE_TWO)
    exact, rounded = [], []
    for i in range(len(windows)):
        (frames,) = windows[i]
        maps = trunk.predict_on_batch(frames.reshape(-1, *frames.shape[2:]))
        maps = maps.reshape(*frames.shape[:2], *maps.shape[1:])
        exact.append(stage_two.predict_on_batch(maps))
        rounded.append(stage_two.predict_on_batch(maps.astype(dtype).astype(np.float32)))
    predicted = np.concatenate(exact).astype(np.float64)
    difference = compare(predicted, expected).relative
    rounding = compare(predicted, np.concatenate(rounded), expected).relative
    facts = {"difference": difference, "rounding": rounding, "tolerated": TOLERANCE + rounding}
    if not difference <= facts["tolerated"]:
        raise StoreError(
            "the fused model's predictions differ from the run's predictions.csv",
            expected=f"at most {facts['tolerated']:.2g} of the largest value",
            got=f"{difference:.2g}",
            hint="framebank evaluate --run NAME, then the same command",
        )
    return predicted, facts


def learning_rate_schedule(options: FinetuneConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rise linearly to the learning rate, then fall to 0 along a cosine over the remaining steps."""
    warmup = round(WARMUP_SHARE * steps)
    if warmup == 0:
        return keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        options.learning_rate / (warmup + 1),  # a first step of size 0 would be wasted
        max(1, steps - warmup),
        warmup_target=options.learning_rate,
        warmup_steps=warmup,
    )


def seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Seed every dropout layer by seed and epoch, so that a resumed epoch draws the same noise."""
    states = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for i, state in enumerate(states):
        values = np.random.default_rng((seed, epoch, i)).integers(2**31, size=state.shape)
        state.assign(values.astype(state.dtype))


@contextmanager
def decoding_errors(windows: ImageWindowBatches) -> Iterator[None]:
    """Raise the error of a decoding thread in place of TensorFlow's."""
    try:
        yield
    except tf.errors.OpError:
        if windows.fault is None:
            raise
        raise windows.fault from None


def choose_augmentation(options: FinetuneConfig, columns: tuple[str, ...]) -> Augmentation:
    """The augmentation of training windows; without mirroring if its effect on a target is unknown."""
    signs = mirror_signs(columns)
    if options.flip and signs is None:
        logger.info(f"finetune: windows are not mirrored, since the effect on {', '.join(columns)} is unknown")
    return Augmentation(options.flip and signs is not None, options.brightness, options.contrast, signs or ())
