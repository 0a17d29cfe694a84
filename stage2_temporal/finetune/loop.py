"""Run the epochs of fine-tuning: epoch 0 is the two stages' own result; the state is saved after every epoch."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from features._common.console import is_quiet, logger
from features._common.types import Floats
from features.config import Config, FinetuneConfig
from features.errors import ConfigError, DataError, FramebankError, StoreError
from features.streams import MIRROR_SIGNS, RIDGE, STAGE_TWO, TRUNK, VECTORS
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.task import Task
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.finetune.augmentation import ImageWindowBatches, make_augmentation
from stage2_temporal.finetune.checkpoint import FinetuneState, load_weights, read_state, save_state
from stage2_temporal.finetune.frozen_part import divide_model
from stage2_temporal.finetune.normal_equations import NormalEquations
from stage2_temporal.finetune.unfreeze import InferenceMode, backbone_layers, count_unfrozen, unfreeze_layers
from stage2_temporal.finetune.views import Mirror, StoredView, compile_frozen, keep_windows, store_view, view_batches
from stage2_temporal.finetune.workers import Workers, train_together
from stage2_temporal.fused.fuse import TOLERANCE, ReadWindow, compare, map_inputs
from stage2_temporal.heads import find_head
from stage2_temporal.heads.closed_form import standardise_targets
from stage2_temporal.runs.results import read_predictions
from stage2_temporal.training.fast_layers import with_fast_layers
from stage2_temporal.training.keras_models import model_inputs
from stage2_temporal.training.loop import fix_seeds, reading_errors
from stage2_temporal.training.scaling import target_scale

STATE_FOLDER = "finetune.parts"
FITTED_PENALTIES = np.logspace(2.5, 4, 4)  # validation examples choose one
MAX_IMAGE_WINDOWS = 8  # decoded at once where no step is taken
WARMUP_SHARE = 0.1  # share of all steps over which the learning rate rises
AVERAGED_SHARE = 0.3  # of all steps, over which weights are averaged
FAST_HALF_PRECISION = (7, 0)  # CUDA compute capability from which half precision is faster than single


def choose_policy(gpus: list[tuple[int, int]]) -> str:
    """Choose the backbone's dtype policy for GPUs of these compute capabilities, or for the CPU if there are none."""
    return "mixed_float16" if gpus and min(gpus) >= FAST_HALF_PRECISION else "float32"


class FinetuneJob:
    """Fine-tunes `model`, a trainable copy of a run's fused model, with a dtype `policy` on `replicas` GPUs.

    `unfrozen` are names of the backbone layers that train. Without validation examples, their result is kept.
    """

    def __init__(
        self,
        run: Path,
        dtype: str,
        task: Task,
        config: Config,
        fused: keras.Model,
        read: ReadWindow,
        key: str,
        workers: Workers | None = None,
    ) -> None:
        """Build the trainable copy; raises what `count_unfrozen` does.

        `dtype` is of the store's maps, `key` a digest of what determines the result; `workers` train together.
        """
        fix_seeds(config.train.seed)
        gpus = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
        capabilities = [gpu.get("compute_capability", (0, 0)) for gpu in gpus]
        self.policy, self.replicas = choose_policy(capabilities), workers.count if workers else len(capabilities)
        self._workers = workers
        if workers and config.finetune.batch_norm:
            what = "batch normalisation's statistics are not shared by several machines"
            raise ConfigError(what, hint="--finetune.batch_norm false")
        self.fused, self._run, self._key, self._dtype, self._read = fused, run, key, dtype, read
        self._folder, self._config, self._options, self._task = run / STATE_FOLDER, config, config.finetune, task
        self._validation = task.known("validation")
        if not len(self._validation):
            logger.info("finetune: no validation examples, so its result is kept")

        names = [layer.name for layer in backbone_layers(fused)]
        count = count_unfrozen(names, self._options.unfreeze)
        self.unfrozen = names[len(names) - count :]
        replicas = 1 if workers else max(1, self.replicas)  # machines may have parts of different sizes
        self._batch = -(-self._options.batch // replicas) * replicas
        train = task.known("train")
        self._augment = make_augmentation(self._options, task.examples.columns)
        self._train_windows = self._windows(
            train,
            seed=config.train.seed,
            augment=self._augment,
            only_full=replicas > 1,  # a partial batch may leave a replica without windows
        )
        self._target = target_scale(task.examples.targets[train]) if config.train.standardise else None
        self._views: dict[str, StoredView] = {}  # by name, once they are computed
        with tf.distribute.MirroredStrategy().scope() if self.replicas > 1 and not workers else nullcontext():
            self.model = unfreeze_layers(fused, count, batch_norm=self._options.batch_norm, policy=self.policy)
            self._parts = divide_model(self.model, from_frames=not self._options.views)
            if not self._options.views:  # new views in each epoch: the model trains as the whole that it is
                self._parts = self._parts._replace(learner=self._parts.predictor, ridge_vectors=None, members=1)
            elif not any(isinstance(layer, InferenceMode) for layer in self._parts.learner._flatten_layers()):
                # with layers of the backbone, which cannot be copied, the head takes little of the time anyway
                self._parts = self._parts._replace(learner=with_fast_layers(self._parts.learner))
            self._mirror = self._find_mirror()
            windows = len(train) * self._options.views * (1 if self._mirror is None else 2)
            steps = -(-windows // self._batch) if windows else len(self._train_windows)
            schedule = learning_rate_schedule(self._options, steps * self._options.epochs)
            learner, members = self._parts.learner, self._parts.members
            slow = {id(v) for layer in backbone_layers(self.model) for v in layer.trainable_variables}
            rates = [self._options.backbone_rate if id(v) in slow else 1.0 for v in learner.trainable_variables]
            optimiser = AveragingAdam(schedule, rates, AVERAGED_SHARE * steps * self._options.epochs)
            if self.policy == "mixed_float16":
                optimiser = keras.optimizers.LossScaleOptimizer(optimiser)
            self._loss = squared_error(members, None if self._target is None else self._target.deviation)
            self._metric = squared_error(members)
            metric = keras.metrics.MeanMetricWrapper(self._metric, name="squared_error")
            learner.compile(optimiser, self._loss, metrics=[metric], auto_scale_loss=False)
            optimiser.build(learner.trainable_variables)
            self._optimiser = optimiser.inner_optimizer if self.policy == "mixed_float16" else optimiser

    def train(self) -> FinetuneState:
        """Run all epochs that are left, from epoch 0 or from a saved state.

        `model` then has the average of the weights after the steps, or its first weights if their validation loss is
        lower. It is not that of one epoch: with few validation examples, the lowest of many losses is so by chance.
        """
        state = read_state(self._folder, self._key)
        self._wait()
        if state is None:
            if self.writes:
                shutil.rmtree(self._folder, ignore_errors=True)
            state = self._epoch0()
            self._save(state)
        else:
            logger.info(f"finetune: resuming after epoch {len(state.history) - 1}")
            if len(state.history) > 1:
                load_weights(self._folder, len(state.history) - 1, self._parts.learner)
            self._store_views()
        for epoch in range(len(state.history), self._options.epochs + 1):
            state.history.append(self._train_epoch(epoch))
            self._save(state)
        if not self.writes:
            return state
        state.history.append(self._average_weights())
        if state.best == 0:
            self.model.set_weights(self.fused.get_weights())
        return state

    @property
    def writes(self) -> bool:
        """Whether this process writes the files, and has the result."""
        return self._workers is None or self._workers.writes

    def _save(self, state: FinetuneState) -> None:
        if self.writes:
            save_state(self._folder, state, self._parts.learner)
        self._wait()

    def _wait(self) -> None:
        """Wait for the other machines, if there are any."""
        if self._workers is not None:
            self._workers.wait()

    def predict(self, model: keras.Model, indices: NDArray[np.int64]) -> Floats:
        """Predict examples from their images: (n, K) in the target's unit."""
        windows = self._windows(indices)
        with reading_errors(windows):
            predicted: Floats = np.asarray(model.predict(windows, verbose=0), np.float64)
        return predicted

    def _windows(
        self, indices: NDArray[np.int64], read: ReadWindow | None = None, **options: Any
    ) -> ImageWindowBatches:
        threads, targets = self._config.extract.threads, self._task.examples.targets
        # steps on stored views may be larger than memory allows for images
        batch = min(self._batch, MAX_IMAGE_WINDOWS) if self._options.views else self._batch
        return ImageWindowBatches(read or self._read, indices, targets, batch, threads=threads, **options)

    def _epoch0(self) -> FinetuneState:
        """Check that the fused model predicts what the two stages did."""
        started = time.monotonic()
        predictions = read_predictions(self._run / "predictions.csv", self._config.data.columns)
        indices = self._validation if len(self._validation) else self._task.known("train")
        if len(predictions) != len(self._task.examples):
            expected, hint = len(self._task.examples), f"framebank evaluate --run {self._run}"
            what = f"{self._run}: predictions of other examples"
            raise DataError(what, expected=expected, got=len(predictions), hint=hint)
        predicted = np.array([e.predicted for e in predictions])[indices]
        facts = check_epoch0(self.fused, self._windows(indices), predicted, self._dtype)
        self._store_views()
        remark = f", differs from the two stages by {facts['difference']:.1g} of the largest value"
        row = self._history_row(0, math.nan, math.nan, started, remark)
        return FinetuneState(key=self._key, facts=facts, history=[row])

    def _store_views(self) -> None:
        """Compute what the frozen layers make of all views, if they are to be stored."""
        if not self._options.views:
            return
        started, folder = time.monotonic(), self._folder / "views"
        train = self._task.known("train")
        if self.writes:
            self._compute_views(folder, train)
        self._wait()  # until one machine has computed them
        columns = self._task.examples.targets.shape[1]
        counts = {f"train{k}": len(train) for k in range(self._options.views)} | {"validation": len(self._validation)}
        shapes = {name: (count, columns) for name, count in counts.items() if count}
        self._views = {name: StoredView(folder / name, self._parts.frozen, shape) for name, shape in shapes.items()}
        logger.info(f"finetune: {self._options.views} views [{time.monotonic() - started:.1f} s]")

    def _compute_views(self, folder: Path, train: NDArray[np.int64]) -> None:
        """Compute those that are not there yet; the first is not augmented."""
        folder.mkdir(parents=True, exist_ok=True)
        compute = compile_frozen(self._parts.frozen, self._config.extract.engine)
        decoded = self._folder / "windows.npy"
        read = keep_windows(self._read, decoded, np.concatenate([train, self._validation]))
        plain = {"train0": train, "validation": self._validation}
        augmented = {f"train{k}": train for k in range(1, self._options.views)}
        for k, (name, indices) in enumerate((plain | augmented).items()):
            if len(indices):
                augment = self._augment if name in augmented else None
                windows = self._windows(indices, read, seed=self._config.train.seed, augment=augment)
                windows.begin(k, shuffle=False)
                with reading_errors(windows):
                    store_view(folder / name, compute, windows, self._dtype)
        decoded.unlink()

    def _train_batches(self, epoch: int) -> Batches:
        """An epoch's windows, or what the frozen layers computed from all views of them, in random order."""
        if not self._options.views:
            self._train_windows.begin(epoch)
            return self._train_windows
        order = np.random.default_rng((self._config.train.seed, epoch))
        views = [self._views[f"train{k}"] for k in range(self._options.views)]
        return view_batches(views, self._batch, order, self._mirror)

    def _find_mirror(self) -> Mirror | None:
        """How stored views change in mirrored scenes, if they are vectors whose head knows it, and targets do, too."""
        columns = self._task.examples.columns
        known = self._options.flip and set(columns) <= set(MIRROR_SIGNS)
        if not known or set(self._parts.frozen.output) != {VECTORS}:
            return None
        head = find_head(self._config.head.name).from_config(self._config).restore(self.fused.get_layer(STAGE_TWO))
        if not head.knows_mirrored_vectors:
            return None
        return Mirror(head.mirrored_vectors, np.array([MIRROR_SIGNS[column] for column in columns]))

    def _train_epoch(self, epoch: int) -> Epoch:
        started, batches = time.monotonic(), self._train_batches(epoch)
        seed_dropout(self.model, self._config.train.seed, epoch)
        with (
            tqdm(total=len(batches), desc=f"epoch {epoch}", leave=False, disable=is_quiet() or None) as bar,
            reading_errors(batches),
        ):
            if self._workers is None:
                callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
                fitted = self._parts.learner.fit(batches, shuffle=False, verbose=0, callbacks=[callback]).history
                loss, error = fitted["loss"][0], fitted["squared_error"][0]
            else:
                functions = self._loss, self._metric
                loss, error = train_together(self._workers, self._parts.learner, batches, *functions, bar.update)
        return self._history_row(epoch, loss, math.sqrt(error), started)

    def _average_weights(self) -> Epoch:
        """Give the model the average of its weights, and solve the head's ridge regression again, if it has one."""
        started = time.monotonic()
        self._optimiser.average_weights(self._parts.learner.trainable_variables)
        if self._parts.ridge_vectors is not None:
            self._solve_ridge(self._parts.ridge_vectors)
        return self._history_row(self._options.epochs + 1, math.nan, math.nan, started)

    def _solve_ridge(self, vectors: keras.Model) -> None:
        """Solve the head's ridge regression again, on what the fine-tuned layers make of every frame of the views."""
        layer = self.model.get_layer(STAGE_TWO).get_layer(RIDGE)
        equations = NormalEquations(layer.input.shape[-1], layer.output.shape[-1])
        batches = self._train_batches(0)
        with reading_errors(batches):
            for i in range(len(batches)):
                inputs, targets = batches[i]
                x = np.asarray(vectors.predict_on_batch(inputs))  # of each frame
                equations.add(x, np.repeat(standardise_targets(targets, self._target)[:, None], x.shape[1], axis=1))
        solutions = []
        for penalty in FITTED_PENALTIES if len(self._validation) else FITTED_PENALTIES[1:2]:
            layer.set_weights(equations.solve(penalty))
            solutions.append((self._validation_errors()[0], layer.get_weights()))
        layer.set_weights(min(solutions, key=lambda solution: solution[0])[1])

    def _validation_errors(self) -> tuple[float, float]:
        """Loss and RMSE of the prediction for the validation examples; NaN without any."""
        if not len(self._validation):
            return math.nan, math.nan
        # not by Keras' evaluate, whose loss is NaN if the last batch leaves a replica without windows
        views = self._views.get("validation")
        batches = self._windows(self._validation) if views is None else view_batches([views], self._batch)
        with reading_errors(batches):
            predicted = np.asarray(self._parts.predictor.predict(batches, verbose=0), np.float64)
        error = predicted - self._task.examples.targets[self._validation]
        scaled = error if self._target is None else error / self._target.deviation
        return float(np.mean(scaled**2)), float(np.sqrt(np.mean(error**2)))

    def _history_row(self, epoch: int, loss: float, rmse: float, started: float, remark: str = "") -> Epoch:
        """Score the model on the validation examples, and log the epoch."""
        val_loss, val_rmse = self._validation_errors()
        trained = 0 < epoch <= self._options.epochs
        if trained and not (math.isfinite(loss) and (math.isfinite(val_loss) or not len(self._validation))):
            raise FramebankError(
                f"Loss became NaN or infinite in epoch {epoch}",
                got=f"training loss {loss}, validation loss {val_loss}",
                hint=f"--finetune.learning_rate {self._options.learning_rate / 10:g}",
            )
        row = Epoch(epoch, loss, rmse, val_loss, val_rmse, time.monotonic() - started)
        figures = {name: getattr(row, name) for name in ("loss", "rmse", "val_loss", "val_rmse")}
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if math.isfinite(value))
        step = "averaged weights" if epoch > self._options.epochs else f"epoch {epoch}/{self._options.epochs}"
        logger.info(f"finetune: {step}, {text}{remark} [{row.seconds:.1f} s]")
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


class AveragingAdam(keras.optimizers.Adam):  # type: ignore[misc]
    """Adam that averages weights, with a lower learning rate for some of them (J. Howard, S. Ruder, ULMFiT, 2018).

    Of the weights after each step, it keeps an exponential moving average (B. Polyak, A. Juditsky, 1992).
    """

    def __init__(self, learning_rate: Any, rates: list[float], averaged_steps: float) -> None:
        """Multiply the learning rate of each variable by its entry of `rates`; average over about so many steps."""
        super().__init__(learning_rate, use_ema=True, ema_momentum=1 - 1 / max(1.0, averaged_steps))
        self._rates = rates

    def finalize_variable_values(self, var_list: Any) -> None:
        """Keep the weights; Keras' `fit`, of which each epoch is a call, would average them at its end."""

    def average_weights(self, variables: list[keras.Variable]) -> None:
        """Give the variables, which are those that train, their averages."""
        super().finalize_variable_values(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable and its two moments in place."""
        super().update_step(gradient, variable, learning_rate * self._rates[self._get_variable_index(variable)])


def squared_error(members: int, deviation: Floats | None = None) -> Callable[[Any, Any], Any]:
    """Return the mean squared error of members' predictions (batch, members · K) of targets (batch, K).

    Errors are counted in units of each target's deviation (K,), if given.
    """
    weight = np.float32(1.0) if deviation is None else (1 / deviation).astype(np.float32)

    def error(true: Any, predicted: Any) -> Any:
        predicted = keras.ops.reshape(predicted, (-1, members, true.shape[-1]))
        return keras.ops.mean(keras.ops.square((predicted - true[:, None]) * weight), axis=(1, 2))

    return error


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
