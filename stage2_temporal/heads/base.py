"""The base of every head: a scikit-learn estimator that trains a Keras model.

Data flows through a head's graph in four steps. A head overrides those that it needs to:

    input_arrays(examples)       NumPy: the arrays that the model takes, by input name; by default the store's streams
    features(inputs)             Keras: inputs → features; nothing here is trained but the store's top
    vectors(features)            Keras: features → (batch, T, F) or (batch, F), which are then standardised
    output(vectors, targets)     Keras: vectors → (batch, targets), which is then scaled to the target's unit

Features that are in the store already (`has_stored_features`) are read from there (`stored_features`), and only the
steps after them run in training. `prepare(examples, targets)` runs first and may learn from the training examples.

Most new heads extend `pooled.PooledFrames` (one vector per frame) or `pooled.PooledStatistics` (one per window), and
`gradient.GradientHead` (Adam) or `closed_form.ClosedFormHead` (scikit-learn); CONTRIBUTING.md has a whole one. Models
must consist of Keras' own layers and operations, so that they load anywhere.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from features._common.blas import blas_threads
from features._common.types import Floats, Tensor
from features.config import Config, TrainConfig
from features.errors import ConfigError
from features.head_config import HeadConfig
from features.streams import APPEARANCE, FEATURES, MOTION, STAGE_TWO, STANDARDISE, UNIT, VECTORS
from features.strict_model import StrictModel, describe_validation_error, did_you_mean
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.derived_streams import DerivedStream
from stage2_temporal.data.examples import HeadInputs, StoreExamples, as_head_inputs
from stage2_temporal.data.pooling import as_maps
from stage2_temporal.data.splits import split_at
from stage2_temporal.training.keras_models import (
    NamedTensors,
    apply_operations,
    concatenate,
    model_inputs,
    rebuild_top,
    submodel_from,
)
from stage2_temporal.training.loop import Callbacks, predict_batches
from stage2_temporal.training.scaling import Scale, target_scale

ValidationSet = tuple[HeadInputs, Floats]


class Graph(NamedTuple):
    """A head's graph up to its vectors: the inputs, the features computed from them, and the vectors."""

    inputs: NamedTensors
    features: NamedTensors
    vectors: Tensor


class Head(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor over windows of frames.

    Attributes:
        settings: the head's settings class; its fields are parameters of the constructor.
        train_settings: the fields of the config's section [train] that the head reads, which are parameters too.
        standardises_vectors: whether vectors are standardised over the training examples.
        allows_nan: whether plain arrays may contain NaN.
        needs_timestamps: whether the result depends on the time between frames.
        refit_examples: the most examples to which it is fitted several times more, unasked, to learn its intervals
            (`heads.cross_fitting`); with more, that takes minutes.
        settings_ (HeadConfig): the validated [head] settings, an instance of `settings`; set by `fit` and `restore`.
        train_ (TrainConfig): the validated [train] settings; set by `fit` and `restore`.
        model_ (keras.Model): from the streams (one input `features`, or several by stream) to (batch, K) in the
            target's unit.
        outcome_ (TrainingResult): the training's history, kept epoch and duration.
    """

    settings: ClassVar[type[HeadConfig]] = HeadConfig
    train_settings: ClassVar[tuple[str, ...]] = (
        "batch", "validation_split", "standardise", "reverse", "shift", "strides",
    )  # fmt: skip
    standardises_vectors: ClassVar[bool] = True
    allows_nan: ClassVar[bool] = False
    needs_timestamps: ClassVar[bool] = False
    refit_examples: ClassVar[int] = 0

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.__init__ = constructor(cls.settings, cls.train_settings)  # type: ignore[method-assign]

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Make the head with a config's settings."""
        names = inspect.signature(cls).parameters
        return cls(**{n: v for section in (config.head, config.train) for n, v in section if n in names})

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None, *, callbacks: Callbacks = ()) -> Self:
        """Train the head.

        Args:
            X: `StoreExamples`, or an array (n, F), (n, T, F) or (n, T, h, w, c).
            y: (n, K) or (n,) targets without NaN.
            validation: X and y that choose the epoch; else the last part of X if `validation_split`, or no choice.
            callbacks: Keras callbacks, for heads that gradient descent trains.

        Raises:
            ConfigError: a setting is out of range or does not fit X.
            ValueError: scikit-learn refuses X or y.
            FramebankError: see `stage2_temporal.training.loop.fit_model`.
        """
        self._read_settings()
        if getattr(self.settings_, "motion", "raw") != "raw" and MOTION not in self.settings_.input_streams:
            raise ConfigError(
                f"head.motion is for the stream {MOTION}, which the head does not read",
                got=", ".join(self.settings_.input_streams),
                hint=f"--head.streams {MOTION}, or --head.motion raw",
            )
        examples, targets = self._check_inputs(X, y, fitting=True)
        self._flat = targets.ndim == 1
        targets = targets.reshape(len(examples), -1)
        validation_set: ValidationSet | None = None
        if validation is not None:
            validation_set = as_head_inputs(validation[0]), _as_targets(validation[1]).reshape(-1, targets.shape[1])
        elif self.train_.validation_split:
            at = split_at(examples.groups, self.train_.validation_split)
            validation_set = examples[at:], targets[at:]
            examples, targets = examples[:at], targets[:at]
        if self.train_.reverse or self.train_.shift or self.train_.strides:
            examples, targets = self._augment(examples, targets)
        with blas_threads(len(examples)):
            self.prepare(examples, targets)
            self._shapes, self._targets = self.input_shapes(examples), targets.shape[1]
            self._top = examples.top() if APPEARANCE in self.settings_.input_streams else None
            self._target = target_scale(targets) if self.train_.standardise else None
            self._scale: Scale | None = None
            self._train_model(examples, targets, validation_set, callbacks)
        return self

    def predict(self, X: Any) -> Floats:
        """Predict (n, K) in the target's unit, or (n,) if y was one-dimensional."""
        check_is_fitted(self, "model_")
        examples = self._check_inputs(X, None, fitting=False)[0]
        predicted = self._predict_examples(examples)
        return predicted[:, 0] if self._flat else predicted

    def save_extras(self, folder: Path) -> None:
        """Save what `prepare` learned and the model does not contain in a run's folder. By default, do nothing."""

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        """Use a saved `model_` of a head with the same settings, and what `save_extras` wrote to the run's folder."""
        self._read_settings()
        self._flat, self.model_ = False, model
        return self

    def derived_streams(self, examples: StoreExamples) -> list[DerivedStream]:
        """List the derived streams that training adds where missing; a ConfigError if settings do not fit the store."""
        return []

    # what heads override

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        """Learn what the other steps need from training examples and targets (n, K). By default, do nothing."""

    def input_shapes(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        """The shape of one example in each of the `input_arrays`, without reading any."""
        return {name: examples.window(stream) for name, stream in self.input_streams.items()}

    def input_arrays(self, examples: HeadInputs) -> NamedTensors:
        """The arrays that `model_` takes for these examples; by default the streams, as stored."""
        return {name: examples.stream(stream) for name, stream in self.input_streams.items()}

    def has_stored_features(self, examples: HeadInputs) -> bool:
        """Whether the store holds what `features` computes; by default it does not."""
        return False

    def stored_features(self, examples: HeadInputs) -> NamedTensors:
        """What `features` computes, read from the store."""
        raise NotImplementedError

    def features(self, inputs: NamedTensors) -> NamedTensors:
        """Inputs → features by name, with no trained layer but the store's top. By default the inputs themselves."""
        return inputs

    def vectors(self, features: NamedTensors) -> Tensor:
        """Features → (batch, T, F) or (batch, F). By default all features, concatenated."""
        return concatenate(list(features.values()))

    @property
    def knows_mirrored_vectors(self) -> bool:
        """Whether the vectors of a mirrored scene follow from those of the scene; by default they do not."""
        return False

    def mirrored_vectors(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors (…, F) of mirrored scenes; both are standardised, or neither is."""
        raise NotImplementedError

    @abstractmethod
    def output(self, vectors: Tensor, targets: int) -> Tensor:
        """Vectors → (batch, targets)."""

    def error_scale(self, model: keras.Model) -> Tensor | None:
        """(batch, S) quantities ≥ 0 in a model's graph with which its errors grow; None if none does.

        By default the predictions' absolute values: what moves faster is measured less exactly. The model may have been
        loaded, so use `apply_operations`.
        """
        return apply_operations("error_scale", keras.ops.abs, model.output)

    def scene(self, model: keras.Model) -> Tensor | None:
        """(batch, F) what a model's output is computed from, to compare footage with the training examples.

        By default the vectors, averaged over the window; None for models of older runs that cannot tell.
        """
        names = {layer.name for layer in model.layers}
        name = next((name for name in (STANDARDISE, VECTORS) if name in names), None)
        if name is None:
            return None
        vectors = model.get_layer(name).output
        axes = tuple(range(1, len(vectors.shape) - 1))
        return apply_operations("scene", lambda v: keras.ops.mean(v, axis=axes), vectors) if axes else vectors

    @abstractmethod
    def _train_model(
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, callbacks: Callbacks
    ) -> None:
        """Set `model_` and `outcome_`."""

    # what heads may use

    @property
    def input_streams(self) -> dict[str, str]:
        """The stream that each input of the model reads, by the input's name."""
        streams = self.settings_.input_streams
        return {FEATURES: streams[0]} if len(streams) == 1 else {stream: stream for stream in streams}

    def with_top(self, maps: Tensor, name: str) -> Tensor:
        """Return an input as maps (batch, T, h, w, c), after the store's trainable top if they are those at the cut."""
        maps = as_maps(maps)
        if self._top is None or self.input_streams[name] != APPEARANCE:
            return maps
        # time is folded into the batch: as a TimeDistributed top at inference, with one batch-norm update per step
        _, time, *entry = maps.shape
        x = rebuild_top(self._top)(keras.ops.reshape(maps, (-1, *entry)))
        return keras.ops.reshape(x, (-1, time, *x.shape[1:]))

    # what they share

    def _read_settings(self) -> None:
        self.settings_: Any = validated(self, self.settings)
        self.train_: TrainConfig = validated(self, TrainConfig)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        tags.regressor_tags.poor_score = True  # on the dozens of rows of scikit-learn's checks
        return tags

    def _check_inputs(self, X: Any, y: Any, *, fitting: bool) -> tuple[HeadInputs, Floats]:
        if isinstance(X, StoreExamples):
            if len(X) == 0:
                raise ValueError("found 0 examples, at least 1 is needed")
            if not fitting:
                return X, np.empty(0)
            check_consistent_length(X, y)
            return X, _as_targets(y)
        finite = "allow-nan" if self.allows_nan else True
        rules = {"allow_nd": True, "dtype": "numeric", "reset": fitting, "ensure_all_finite": finite}
        if not fitting:
            return as_head_inputs(validate_data(self, X, **rules)), np.empty(0)
        X, y = validate_data(self, X, y, **rules, multi_output=True, y_numeric=True)
        return as_head_inputs(X), _as_targets(y)

    def _augment(self, examples: HeadInputs, targets: Floats) -> ValidationSet:
        """Add the windows that `reverse`, `shift` and `strides` ask for."""
        if not isinstance(examples, StoreExamples) or self.needs_timestamps:
            raise ConfigError(
                "train.reverse, train.shift and train.strides do not work with this head or data",
                expected="windows of a store, and a head that does not use the time between frames",
                got=type(self).__name__ if self.needs_timestamps else "a plain array",
                hint="remove these three settings",
            )
        augmented, origin, factor = examples.augmented(self.train_)
        return augmented, targets[origin] * factor

    def _build_graph(self) -> Graph:
        inputs = {n: keras.Input(shape, name=n, dtype="float32") for n, shape in self._shapes.items()}
        features = self.features(inputs)
        if features is not inputs:  # named, so that a saved model can be split there
            features = {n: keras.layers.Identity(name=n)(tensor) for n, tensor in features.items()}
            for name, tensor in features.items():
                tensor.name = name
        vectors = self.vectors(features)
        if any(vectors is tensor for tensor in features.values()):
            vectors = keras.layers.Identity(name=VECTORS)(vectors)  # Keras cannot build a model without any layer
        return Graph(inputs, features, vectors)

    def _build_model(self, graph: Graph) -> keras.Model:
        """Build the model from `input_arrays` to the output in the target's unit."""
        x = graph.vectors
        if self._scale is not None:
            x = self._scale.standardising_layer()(x)
        x = self._in_target_unit(self.output(x, self._targets))
        return keras.Model(model_inputs(graph.inputs), x, name=STAGE_TWO)

    def _in_target_unit(self, output: Tensor) -> Tensor:
        if self._target is None:
            return output
        return keras.layers.Rescaling(self._target.deviation.tolist(), self._target.mean.tolist(), name=UNIT)(output)

    def _compute_vectors(self, graph: Graph, examples: HeadInputs, *, stored: bool) -> Iterator[NDArray[Any]]:
        """Compute the examples' vectors, batch by batch, from `input_arrays` or, if `stored`, `stored_features`."""
        model = keras.Model(model_inputs(graph.features if stored else graph.inputs), graph.vectors)
        return self._call_in_batches(model, self._batches(examples, None, stored=stored))

    def _call_in_batches(self, model: keras.Model, batches: Batches) -> Iterator[NDArray[Any]]:
        """Call a model on each batch, eagerly: for one pass that is faster than tracing a `tf.function` first."""
        return (np.asarray(model(inputs, training=False)) for inputs in batches.inputs())

    def _batches(
        self, examples: HeadInputs, targets: Floats | None, *, stored: bool, seed: int | None = None
    ) -> Batches:
        read = self.stored_features if stored else self.input_arrays
        return Batches(lambda some: model_inputs(read(some)), examples, targets, self.train_.batch, seed)

    def _after_features(self, model: keras.Model, examples: HeadInputs) -> keras.Model:
        """The part of a model that follows `stored_features`, with the same layers and weights."""
        return submodel_from({n: model.get_layer(n).output for n in self.stored_features(examples[:1])}, model)

    def _predict_examples(self, examples: HeadInputs) -> Floats:
        """Predict (n, K), from stored features if the store has them."""
        stored = self.has_stored_features(examples)
        model = self._after_features(self.model_, examples) if stored else self.model_
        return predict_batches(model, self._batches(examples, None, stored=stored))


def _as_targets(y: Any) -> Floats:
    targets: Floats = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    return targets


def constructor(settings: type[HeadConfig], train: Iterable[str]) -> Callable[..., None]:
    """Make an `__init__` whose signature scikit-learn reads: a head's settings, and the fields `train` of [train]."""
    fields = {name: field for name, field in settings.model_fields.items() if name != "name"}
    fields |= {name: field for name, field in TrainConfig.model_fields.items() if name in train}

    def __init__(self: Any, **parameters: Any) -> None:
        unknown = [name for name in parameters if name not in fields]
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} has no setting {', '.join(unknown)}{did_you_mean(unknown[0], fields)}, "
                f"it has {', '.join(fields)}"
            )
        for name, field in fields.items():
            setattr(self, name, parameters.get(name, field.default))

    kind = inspect.Parameter
    parameters = [kind(name, kind.KEYWORD_ONLY, default=field.default) for name, field in fields.items()]
    signature = inspect.Signature([kind("self", kind.POSITIONAL_OR_KEYWORD), *parameters])
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def validated(estimator: Any, section: type[StrictModel]) -> Any:
    """Validate an estimator's parameters as a `section`, other fields by default; a ConfigError if one is invalid."""
    # NumPy numbers become Python's, because grids of parameters are often arrays
    values = {
        name: value.item() if isinstance(value := getattr(estimator, name), np.generic) else value
        for name in section.model_fields
        if name != "name" and hasattr(estimator, name)
    }
    try:
        return section.model_validate(values)
    except ValidationError as e:
        kind = type(estimator).__name__
        raise ConfigError(f"{kind}: {describe_validation_error(e)}", hint="set_params") from None
