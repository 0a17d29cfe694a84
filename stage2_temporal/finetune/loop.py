"""Run the epochs of fine-tuning: epoch 0 is the two stages' own result; the state is saved after every epoch."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from features._common.console import logger
from features._common.types import Floats
from features.config import Config, FinetuneConfig
from features.errors import FramebankError, StoreError
from features.streams import STAGE_TWO, TRUNK
from stage2_temporal.data.task import Task
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.finetune.augmentation import ImageWindowBatches, make_augmentation
from stage2_temporal.finetune.checkpoint import FinetuneState, load_weights, read_state, save_state
from stage2_temporal.finetune.unfreeze import backbone_layers, count_unfrozen, unfreeze_layers
from stage2_temporal.fused.fuse import TOLERANCE, ReadWindow, compare, map_inputs
from stage2_temporal.runs.results import read_predictions
from stage2_temporal.training.keras_models import model_inputs
from stage2_temporal.training.loop import fix_seeds, loss_function, reading_errors
from stage2_temporal.training.scaling import target_scale

STATE_FOLDER = "finetune.parts"
WARMUP_SHARE = 0.1  # share of all steps over which the learning rate rises
FAST_HALF_PRECISION = (7, 0)  # CUDA compute capability from which half precision is faster than single


def choose_policy(gpus: list[tuple[int, int]]) -> str:
    """Choose the backbone's dtype policy for GPUs of these compute capabilities, or for the CPU if there are none."""
    return "mixed_float16" if gpus and min(gpus) >= FAST_HALF_PRECISION else "float32"


class FinetuneJob:
    """Fine-tunes `model`, a trainable copy of a run's fused model, with a dtype `policy` on `replicas` GPUs.

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
        capabilities = [gpu.get("compute_capability", (0, 0)) for gpu in gpus]
        self.policy, self.replicas = choose_policy(capabilities), len(capabilities)
        self.fused, self._run, self._key, self._dtype, self._read = fused, run, key, dtype, read
        self._folder, self._config, self._options, self._task = run / STATE_FOLDER, config, config.finetune, task
        self._validation = task.known("validation")
        if not len(self._validation):
            logger.info("finetune: no validation examples, so the last epoch is kept")

        names = [layer.name for layer in backbone_layers(fused)]
        count = count_unfrozen(names, self._options.unfreeze)
        self.unfrozen = names[len(names) - count :]
        replicas = max(1, self.replicas)
        self._batch = -(-self._options.batch // replicas) * replicas
        train = task.known("train")
        self._train_windows = self._windows(
            train,
            seed=config.train.seed,
            augment=make_augmentation(self._options, task.examples.columns),
            only_full=replicas > 1,  # a partial batch may leave a replica without windows
        )
        targets = task.examples.targets[train]
        self._deviation = target_scale(targets).deviation if config.train.standardise else None
        with tf.distribute.MirroredStrategy().scope() if self.replicas > 1 else nullcontext():
            self.model = unfreeze_layers(fused, count, batch_norm=self._options.batch_norm, policy=self.policy)
            schedule = learning_rate_schedule(self._options, len(self._train_windows) * self._options.epochs)
            optimiser = keras.optimizers.Adam(schedule)
            if self.policy == "mixed_float16":
                optimiser = keras.optimizers.LossScaleOptimizer(optimiser)
            rmse = keras.metrics.RootMeanSquaredError(name="rmse")
            self.model.compile(optimiser, loss_function(self._deviation), metrics=[rmse], auto_scale_loss=False)
            optimiser.build(self.model.trainable_variables)

    def train(self) -> FinetuneState:
        """Run all epochs that are left, from epoch 0 or from a saved state; `model` then has the best weights."""
        state = read_state(self._folder, self._key)
        if state is None:
            state = self._epoch0()
            save_state(self._folder, state, self.model)
        else:
            logger.info(f"finetune: resuming after epoch {len(state.history) - 1}")
            if len(state.history) > 1:
                load_weights(self._folder, len(state.history) - 1, self.model)
        for epoch in range(len(state.history), self._options.epochs + 1):
            state.history.append(self._train_epoch(epoch))
            save_state(self._folder, state, self.model)
        if state.best > 0:
            load_weights(self._folder, state.best, self.model)
        else:
            self.model.set_weights(self.fused.get_weights())
        return state

    def predict(self, model: keras.Model, indices: NDArray[np.int64]) -> Floats:
        """Predict examples from their images: (n, K) in the target's unit."""
        windows = self._windows(indices)
        with reading_errors(windows):
            predicted: Floats = np.asarray(model.predict(windows, verbose=0), np.float64)
        return predicted

    def _windows(self, indices: NDArray[np.int64], **options: Any) -> ImageWindowBatches:
        threads, targets = self._config.extract.threads, self._task.examples.targets
        return ImageWindowBatches(self._read, indices, targets, self._batch, threads=threads, **options)

    def _epoch0(self) -> FinetuneState:
        """Check that the fused model predicts what the two stages did."""
        started = time.monotonic()
        predictions = read_predictions(self._run / "predictions.csv", self._config.data.columns)
        indices = self._validation if len(self._validation) else self._task.known("train")
        expected = np.array([e.predicted for e in predictions])[indices]
        facts = check_epoch0(self.fused, self._windows(indices), expected, self._dtype)
        remark = f", differs from the two stages by {facts['difference']:.1g} of the largest value"
        row = self._history_row(0, math.nan, math.nan, started, remark)
        return FinetuneState(key=self._key, facts=facts, history=[row])

    def _train_epoch(self, epoch: int) -> Epoch:
        started = time.monotonic()
        self._train_windows.begin(epoch)
        seed_dropout(self.model, self._config.train.seed, epoch)
        with (
            tqdm(total=len(self._train_windows), desc=f"epoch {epoch}", leave=False, disable=None) as bar,
            reading_errors(self._train_windows),
        ):
            callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
            fitted = self.model.fit(self._train_windows, shuffle=False, verbose=0, callbacks=[callback]).history
        return self._history_row(epoch, fitted["loss"][0], fitted["rmse"][0], started)

    def _history_row(self, epoch: int, loss: float, rmse: float, started: float, remark: str = "") -> Epoch:
        """Score the model on the validation examples, and log the epoch."""
        val_loss = val_rmse = math.nan
        if len(self._validation):
            # not by Keras' evaluate, whose loss is NaN if the last batch leaves a replica without windows
            error = self.predict(self.model, self._validation) - self._task.examples.targets[self._validation]
            val_rmse = float(np.sqrt(np.mean(error**2)))
            val_loss = float(np.mean((error if self._deviation is None else error / self._deviation) ** 2))
        if epoch > 0 and not (math.isfinite(loss) and (math.isfinite(val_loss) or not len(self._validation))):
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


def check_epoch0(fused: keras.Model, windows: ImageWindowBatches, expected: Floats, dtype: str) -> dict[str, float]:
    """Compare the fused model's predictions of windows with the two stages', `expected` (n, K).

    The effect of rounding the windows' maps to the store's `dtype` is tolerated; both are in the returned figures.

    Raises:
        StoreError: they differ by more than rounding.
    """
    trunk, stage_two = fused.get_layer(TRUNK), fused.get_layer(STAGE_TWO)
    inputs = map_inputs(trunk, stage_two)
    exact, rounded = [], []
    for i in range(len(windows)):
        frames, _ = windows[i]
        maps = trunk.predict_on_batch(frames.reshape(-1, *frames.shape[2:]))
        stored = {name: maps[s].reshape(*frames.shape[:2], *maps[s].shape[1:]) for name, s in inputs.items()}
        exact.append(stage_two.predict_on_batch(model_inputs(stored)))
        half = {name: values.astype(dtype).astype(np.float32) for name, values in stored.items()}
        rounded.append(stage_two.predict_on_batch(model_inputs(half)))
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
    return facts


def learning_rate_schedule(options: FinetuneConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rise linearly to the learning rate, then fall to 0 along a cosine over the remaining steps."""
    warmup, rate = round(WARMUP_SHARE * steps), options.learning_rate
    return keras.optimizers.schedules.CosineDecay(
        rate / (warmup + 1),  # a first step of size 0 would be wasted
        max(1, steps - warmup),
        warmup_target=rate if warmup else None,
        warmup_steps=warmup,
    )


def seed_dropout(model: keras.Model, seed: int, epoch: int) -> None:
    """Seed every dropout layer by seed and epoch, so that a resumed epoch draws the same noise."""
    states = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for i, state in enumerate(states):
        values = np.random.default_rng((seed, epoch, i)).integers(2**31, size=state.shape)
        state.assign(values.astype(state.dtype))
