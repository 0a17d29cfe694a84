"""The epochs of fine-tuning: epoch 0 is the two stages' own result, each later one is kept on disk when it ends."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
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
from features.store import Store
from stage2_temporal.data.task import Task
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.finetune import checkpoint
from stage2_temporal.finetune.augmentation import Augmentation, mirror_signs
from stage2_temporal.finetune.checkpoint import FinetuneState, changed_weights, with_changes
from stage2_temporal.finetune.image_batches import ImageWindowBatches, ReadWindow
from stage2_temporal.finetune.unfreeze import unfreeze_layers
from stage2_temporal.fused.fuse import TOLERANCE
from stage2_temporal.runs.results import read_results
from stage2_temporal.training.loop import fix_seeds, loss_function
from stage2_temporal.training.scaling import target_scale

PARTS, STATE = "finetune.parts", "state.npz"
TENSOR_CORES = (7, 0)  # compute capability from which half precision is the faster one


@dataclass(frozen=True)
class Devices:
    """How to compute: the backbone's precision, and on how many GPUs (0: the CPU)."""

    policy: str
    replicas: int


def choose_devices(gpus: list[tuple[int, int]]) -> Devices:
    """How to compute on local GPUs of these compute capabilities; without one, in single precision on the CPU."""
    mixed = bool(gpus) and min(gpus) >= TENSOR_CORES
    return Devices("mixed_float16" if mixed else "float32", len(gpus))


def local_gpus() -> list[tuple[int, int]]:
    """Compute capability of each GPU that TensorFlow sees; (0, 0) where it doesn't say."""
    details = (tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU"))
    return [d.get("compute_capability", (0, 0)) for d in details]


class FinetuneJob:
    """One fine-tuning: its model, its data, and the epochs."""

    def __init__(
        self,
        run: Path,
        store: Store,
        wanted: Task,
        config: Config,
        fused: keras.Model,
        count: int,
        on: Devices,
        key: str,
        read: ReadWindow,
    ) -> None:
        fix_seeds(config.train.seed)
        self.run, self.store, self.task, self.config = run, store, wanted, config
        self.options, self.fused, self.devices, self.key = config.finetune, fused, on, key
        self.start = fused.get_weights()
        self.read = read
        chosen, held_out = wanted.known("train"), wanted.known("validation")
        self.validated = len(held_out) > 0
        self.judged = held_out if self.validated else chosen
        if not self.validated:
            logger.info("no validation examples: the last epoch is kept")
        replicas = max(1, on.replicas)
        self.batch = -(-self.options.batch // replicas) * replicas
        self.windows = ImageWindowBatches(
            self.read,
            chosen,
            wanted.examples.targets,
            self.batch,
            threads=self.options.threads,
            seed=config.train.seed,
            augmentation=augmentation(self.options, wanted.examples.columns),
            whole=replicas > 1,  # a part of a batch may leave a replica with nothing
        )
        scale = target_scale(wanted.examples.targets[chosen]) if config.train.standardise else None
        self.deviation = scale.deviation if scale else None
        with tf.distribute.MirroredStrategy().scope() if on.replicas > 1 else nullcontext():
            self.model = unfreeze_layers(fused, count, batch_norm=self.options.batch_norm, policy=on.policy)
            rate = schedule(self.options, len(self.windows) * self.options.epochs)
            optimiser = keras.optimizers.Adam(rate)
            if on.policy == "mixed_float16":
                optimiser = keras.optimizers.LossScaleOptimizer(optimiser)
            rmse = keras.metrics.RootMeanSquaredError(name="rmse")
            self.model.compile(optimiser, loss=loss_function(self.deviation), metrics=[rmse], auto_scale_loss=False)
            optimiser.build(self.model.trainable_variables)

    def train(self) -> FinetuneState:
        """All epochs, from epoch 0 or from where an interrupted one stood."""
        path, total = self.run / PARTS / STATE, self.options.epochs
        state = checkpoint.read_checkpoint(path)
        if state is not None and state.key != self.key:
            logger.info(f"{path.parent} is of other settings: begun anew")
            state = None
        if state is None:
            state = self._epoch0()
            checkpoint.save_checkpoint(path, state)
        else:
            logger.info(f"finetune: goes on after epoch {len(state.history) - 1}")
            self.model.set_weights(with_changes(state.weights, self.start))
            for variable, value in zip(self.model.optimizer.variables, state.optimiser, strict=True):
                variable.assign(value)
        for epoch in range(len(state.history), total + 1):
            self._epoch(epoch, state)
            checkpoint.save_checkpoint(path, state)
        return state

    def predict(self, model: keras.Model, chosen: NDArray[np.int64]) -> Floats:
        """(n, K) of the chosen examples, in the target's unit."""
        windows = ImageWindowBatches(self.read, chosen, None, self.batch, threads=self.options.threads)
        predicted: Floats = guarded(windows, lambda: np.asarray(model.predict(windows, verbose=0), np.float64))
        return predicted

    def _epoch0(self) -> FinetuneState:
        started = time.monotonic()
        expected = np.array([e.predicted for e in read_results(self.run).examples])[self.judged]
        windows = ImageWindowBatches(self.read, self.judged, None, self.batch)
        predicted, facts = agree(self.fused, windows, expected, self.store.recipe.dtype)
        if self.devices.policy != "float32":
            predicted = self.predict(self.model, self.judged)  # later epochs are compared in the same precision
        row = self._row(0, math.nan, math.nan, predicted, started)
        self._show(row, f"the two stages' own to {facts['difference']:.1g} of the largest value")
        return FinetuneState(self.key, [row], optimiser=self._optimiser(), facts=facts)

    def _epoch(self, epoch: int, state: FinetuneState) -> None:
        started = time.monotonic()
        self.windows.begin(epoch)
        seed_noise(self.model, self.config.train.seed, epoch)
        with tqdm(total=len(self.windows), desc=f"epoch {epoch}", leave=False, disable=not sys.stderr.isatty()) as bar:
            after = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
            got = guarded(
                self.windows,
                lambda: self.model.fit(self.windows, epochs=1, shuffle=False, verbose=0, callbacks=[after]).history,
            )
        row = self._row(epoch, got["loss"][0], got["rmse"][0], self.predict(self.model, self.judged), started)
        if not math.isfinite(row.loss) or not math.isfinite(row.val_loss if self.validated else 0.0):
            raise FramebankError(
                f"the loss is no number any more in epoch {epoch}",
                got=f"loss {row.loss}, validation {row.val_loss}",
                hint=f"--finetune.learning_rate {self.options.learning_rate / 10:g}",
            )
        state.history.append(row)
        state.weights = changed_weights(self.model.get_weights(), self.start)
        state.optimiser = self._optimiser()
        lowest = min(r.val_loss for r in state.history[:-1])
        if not self.validated or row.val_loss < lowest:
            state.best, state.kept = epoch, state.weights
        self._show(row)

    def _row(self, epoch: int, loss: float, rmse: float, predicted: Floats, started: float) -> Epoch:
        error = predicted - self.task.examples.targets[self.judged]
        weighted = error / self.deviation if self.deviation is not None else error
        val_loss, val_rmse = float(np.mean(weighted**2)), float(np.sqrt(np.mean(error**2)))
        if not self.validated:
            val_loss = val_rmse = math.nan
        return Epoch(epoch, loss, rmse, val_loss, val_rmse, time.monotonic() - started)

    def _optimiser(self) -> list[NDArray[Any]]:
        return [keras.ops.convert_to_numpy(v.value) for v in self.model.optimizer.variables]

    def _show(self, row: Epoch, remark: str = "") -> None:
        figures = {k: getattr(row, k) for k in ("loss", "rmse", "val_loss", "val_rmse")}
        text = ", ".join(f"{k} {v:.4g}" for k, v in figures.items() if math.isfinite(v))
        parts = ", ".join(part for part in (text, remark) if part)
        logger.info(f"finetune: epoch {row.epoch}/{self.options.epochs}, {parts} [{row.seconds:.1f} s]")


def agree(
    fused: keras.Model, windows: ImageWindowBatches, expected: Floats, dtype: str
) -> tuple[Floats, dict[str, float]]:
    """The fused model's predictions, and how far they are from the two stages' stored ones.

    Args:
        expected: (n, K) the run's predictions of the same examples.
        dtype: the store's type; in half precision, what rounding the maps does to these very windows is tolerated.

    Raises:
        StoreError: they differ by more than rounding.
    """
    trunk, stage_two = fused.get_layer("trunk"), fused.get_layer("framebank")
    seen, rounded = [], []
    for i in range(len(windows)):
        (frames,) = windows[i]
        maps = trunk.predict_on_batch(frames.reshape(-1, *frames.shape[2:]))
        maps = maps.reshape(*frames.shape[:2], *maps.shape[1:])
        seen.append(stage_two.predict_on_batch(maps))
        rounded.append(stage_two.predict_on_batch(maps.astype(dtype).astype(np.float32)))
    predicted = np.concatenate(seen).astype(np.float64)
    largest = max(float(np.abs(expected).max()), 1e-30)
    difference = float(np.abs(predicted - expected).max()) / largest
    rounding = float(np.abs(predicted - np.concatenate(rounded)).max()) / largest
    facts = {"difference": difference, "rounding": rounding, "tolerated": TOLERANCE + rounding}
    if not difference <= facts["tolerated"]:
        raise StoreError(
            "epoch 0 is not the two stages' result",
            expected=f"at most {facts['tolerated']:.2g} of the largest value",
            got=f"{difference:.2g}",
            hint="python -m stage2_temporal evaluate, then again",
        )
    return predicted, facts


def schedule(options: FinetuneConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to the learning rate, then a cosine down to 0 over the rest of the steps."""
    warmup = round(options.warmup * steps)
    if warmup == 0:
        return keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        options.learning_rate / (warmup + 1),  # from 0 the first step would be none
        max(1, steps - warmup),
        warmup_target=options.learning_rate,
        warmup_steps=warmup,
    )


def seed_noise(model: keras.Model, seed: int, epoch: int) -> None:
    """Set every dropout's generator by seed and epoch, so that a resumed epoch draws what it would have drawn."""
    states = [v for v in model.variables if v.path.endswith("seed_generator_state")]
    for i, state in enumerate(states):
        drawn = np.random.default_rng((seed, epoch, i)).integers(2**31, size=state.shape)
        state.assign(drawn.astype(state.dtype))


def guarded(windows: ImageWindowBatches, work: Callable[[], Any]) -> Any:
    """`work()`; where decoding failed, its own fault instead of TensorFlow's."""
    try:
        return work()
    except tf.errors.OpError:
        if windows.fault is None:
            raise
        raise windows.fault from None


def augmentation(options: FinetuneConfig, columns: tuple[str, ...]) -> Augmentation:
    """What is drawn for each training window; no mirroring where a target's answer to it is not known."""
    known = mirror_signs(columns)
    if options.flip and known is None:
        logger.info(f"finetune: no flip, what it does to {', '.join(columns)} is not known")
    return Augmentation(options.flip and known is not None, options.brightness, options.contrast, known or ())
