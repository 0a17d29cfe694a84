"""What every head is: a scikit-learn estimator whose answer is a Keras model.

A head's graph has four steps, each overridable:

    _base(X)            the arrays that `model_` takes, by input name: the store's streams
    _summarise(base)    Keras: these → what is trained on, frozen, so that it can be computed once into the store
    _vectors(arrays)    Keras: → (batch, T, features) or (batch, features); then standardised where wanted
    _answer(vectors)    Keras: → (batch, K) targets of mean 0 and deviation 1 where standardised, then in their unit

Where `_ready(X)` says that the store has what `_summarise` gives, `_arrays(X)` gives it from there, and only what
follows is trained. `_prepare(X, y)` may learn from the training examples before any of this.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data

from features._common.types import Floats, Tensor
from features.config import Config, TrainConfig
from features.errors import ConfigError
from features.head_config import HeadConfig
from features.store import TopRecord
from features.streams import APPEARANCE
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.derived_streams import DerivedStream
from stage2_temporal.data.examples import HeadInputs, StoreExamples, as_head_inputs
from stage2_temporal.data.splits import split_at
from stage2_temporal.data.time_augmentation import augments_time
from stage2_temporal.heads.graph import ExampleReader, Graph, NamedTensors, concatenate, model_inputs, submodel_from
from stage2_temporal.heads.settings import constructor, parameter_fields, validated
from stage2_temporal.training.keras_models import rebuild_top
from stage2_temporal.training.loop import predict_batches
from stage2_temporal.training.scaling import Scale, target_scale

ValidationSet = tuple[HeadInputs, Floats]


class Head(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A regressor over windows of frames.

    Attributes:
        settings: its settings class; each field is a parameter of the constructor.
        train_settings: the fields of the config's section [train] that it reads, which are parameters as well.
        standardised: whether its vectors are standardised.
        gaps: whether plain arrays may have NaN in them.
        needs_timestamps: whether it is told how much time lies between the frames.
        model_: keras.Model from the store's streams to (batch, K) in the target's unit. One stream: one input named
            `features`; several: a dictionary by stream.
        outcome_: history, kept epoch and seconds of training.
    """

    settings: ClassVar[type[HeadConfig]] = HeadConfig
    train_settings: ClassVar[tuple[str, ...]] = (
        "batch", "validation_split", "standardise", "reverse", "shift", "strides",
    )  # fmt: skip
    standardised: ClassVar[bool] = True
    gaps: ClassVar[bool] = False
    needs_timestamps: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.__init__ = constructor(parameter_fields(cls.settings, cls.train_settings))  # type: ignore[method-assign]

    @classmethod
    def of(cls, config: Config) -> Self:
        """The head with a config's settings."""
        names = parameter_fields(cls.settings, cls.train_settings)
        return cls(**{n: v for section in (config.head, config.train) for n, v in section if n in names})

    def fit(self, X: Any, y: Any, validation: tuple[Any, Any] | None = None, *, logs: Path | None = None) -> Self:
        """Train.

        Args:
            X: Inputs, or an array (n, F), (n, T, F) or (n, T, h, w, c).
            y: (n, K) or (n,) targets, all known.
            validation: (X, y) that choose the epoch. None: the last part of X where `validation_split` says so, else
                nothing does and the last epoch is kept.
            logs: folder for TensorBoard.

        Raises:
            ConfigError: settings out of range or at odds with X.
            ValueError: X or y that scikit-learn refuses, unknown targets among them.
            FramebankError: see `stage2_temporal.training.loop.fit_model`.
        """
        self._begin()
        examples, targets = self._accepted(X, y, fitting=True)
        self._flat = targets.ndim == 1
        targets = targets.reshape(len(examples), -1)
        held: ValidationSet | None = None
        if validation is not None:
            held = as_head_inputs(validation[0]), _known(validation[1]).reshape(-1, targets.shape[1])
        elif self._train.validation_split:
            at = split_at(examples.groups, self._train.validation_split)
            held = examples[at:], targets[at:]
            examples, targets = examples[:at], targets[:at]
        if augments_time(self._train):
            examples, targets = self._retimed(examples, targets)
        self._prepare(examples, targets)
        self._plan(
            self._entries(examples),
            targets.shape[1],
            top=examples.top() if APPEARANCE in self._head.input_streams else None,
            target=target_scale(targets) if self._train.standardise else None,
        )
        self._learn(examples, targets, held, logs)
        return self

    def predict(self, X: Any) -> Floats:
        """(n, K) in the target's unit, or (n,) where y was."""
        check_is_fitted(self, "model_")
        examples = self._accepted(X, None, fitting=False)[0]
        predicted = self._predicted(examples)
        return predicted[:, 0] if self._flat else predicted

    def keep(self, folder: Path) -> None:
        """Write what `_prepare` learnt and the graph doesn't hold into a run's folder. Nothing by default."""

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        """Take a saved `model_` instead of training.

        Args:
            folder: of the run, see `keep`.
        """
        self._begin()
        self._flat, self.model_ = False, model
        return self

    def taken(self, examples: StoreExamples) -> NamedTensors:
        """What `model_` takes of examples, by input name, as stored."""
        return self._base(examples)

    def derived(self, examples: StoreExamples) -> list[DerivedStream]:
        """The derived streams that training would put into the store, were they lacking."""
        return []

    # what heads override

    def _prepare(self, examples: HeadInputs, targets: Floats) -> None:
        """Learn from the training examples (targets (n, K)) what `_base` or `_arrays` need. Nothing by default."""

    def _entries(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        """Shape of one example in each array of `_base`, without reading any."""
        return {name: examples.window(stream) for name, stream in self._inputs.items()}

    def _base(self, examples: HeadInputs) -> NamedTensors:
        """The arrays that `model_` takes: the streams of these examples, as stored."""
        return {name: examples.stream(stream) for name, stream in self._inputs.items()}

    def _ready(self, examples: HeadInputs) -> bool:
        """Whether the store has what `_summarise` gives; never by default."""
        return False

    def _arrays(self, examples: HeadInputs) -> NamedTensors:
        """What `_summarise` gives, from the store."""
        raise NotImplementedError

    def _summarise(self, base: NamedTensors) -> NamedTensors:
        """Tensors by the names of `_base` → tensors that do not depend on what is trained, but for the top."""
        return base

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        """What `_summarise` gives → (batch, T, features) or (batch, features)."""
        return concatenate(list(arrays.values()))

    @abstractmethod
    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        """Vectors → (batch, targets)."""

    @abstractmethod
    def _learn(self, examples: HeadInputs, targets: Floats, held: ValidationSet | None, logs: Path | None) -> None:
        """Set `model_` and `outcome_`."""

    # what they share

    @property
    def _inputs(self) -> dict[str, str]:
        """Input name → stream."""
        streams = self._head.streams
        return {"features": streams[0]} if len(streams) == 1 else {s: s for s in streams}

    def _begin(self) -> None:
        """Read the settings, and forget what was trained before."""
        self._head: Any = validated(self, self.settings)
        self._train: TrainConfig = validated(self, TrainConfig)

    def _plan(
        self,
        shapes: dict[str, tuple[int, ...]],
        targets: int,
        *,
        top: TopRecord | None = None,
        target: Scale | None = None,
    ) -> None:
        """What the graph is built from."""
        self._shapes, self._targets, self._top, self._target = shapes, targets, top, target
        self._scale: Scale | None = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.input_tags.three_d_array = True
        tags.regressor_tags.poor_score = True  # on the dozens of rows of scikit-learn's checks
        return tags

    def _accepted(self, X: Any, y: Any, *, fitting: bool) -> tuple[HeadInputs, Floats]:
        """X and y, checked; y alone matters in fitting."""
        if isinstance(X, StoreExamples):
            if len(X) == 0:
                raise ValueError("found 0 examples, at least 1 is needed")
            targets = _known(y) if fitting else np.empty(0)
            if fitting:
                check_consistent_length(X, targets)
            return X, targets
        rules = {"allow_nd": True, "dtype": "numeric", "reset": fitting}
        rules["ensure_all_finite"] = "allow-nan" if self.gaps else True
        if not fitting:
            return as_head_inputs(validate_data(self, X, **rules)), np.empty(0)
        X, y = validate_data(self, X, y, **rules, multi_output=True, y_numeric=True)
        return as_head_inputs(X), _known(y)

    def _retimed(self, examples: HeadInputs, targets: Floats) -> ValidationSet:
        """The examples with what `reverse`, `shift` and `strides` make of them.

        Raises:
            ConfigError: a plain array, whose targets have no names, or a head that is told the time.
        """
        if not isinstance(examples, StoreExamples) or self.needs_timestamps:
            raise ConfigError(
                "train.reverse, shift and strides need windows of a store and a head that is not told the time",
                got=type(self).__name__ if self.needs_timestamps else "a plain array",
                hint="leave them out",
            )
        more, of, factor = examples.retimed(self._train)
        return more, targets[of] * factor

    def _graph(self) -> Graph:
        """The graph up to the vectors."""
        inputs = {n: keras.Input(shape, name=n, dtype="float32") for n, shape in self._shapes.items()}
        arrays = self._summarise(inputs)
        if arrays is not inputs:  # marked by name, so that a saved model can be entered there
            arrays = {n: keras.layers.Identity(name=n)(tensor) for n, tensor in arrays.items()}
            for name, tensor in arrays.items():
                tensor.name = name
        vectors = self._vectors(arrays)
        if any(vectors is tensor for tensor in arrays.values()):
            vectors = keras.layers.Identity(name="vectors")(vectors)  # Keras makes no model of no step
        return Graph(inputs, arrays, vectors)

    def _finished(self, graph: Graph) -> keras.Model:
        """The model from `_base` to the answer in the target's unit."""
        x = graph.vectors
        if self._scale is not None:
            # a Rescaling: Keras' Normalization makes its constants inputs of the exported ONNX graph (3.15)
            factor = 1 / self._scale.deviation
            x = keras.layers.Rescaling(factor.tolist(), (-self._scale.mean * factor).tolist(), name="standardise")(x)
        x = self._answer(x, self._targets)
        if self._target is not None:
            x = keras.layers.Rescaling(self._target.deviation.tolist(), self._target.mean.tolist(), name="unit")(x)
        return keras.Model(model_inputs(graph.inputs), x, name="framebank")

    def _computed(self, graph: Graph, examples: HeadInputs, *, whole: bool) -> Iterator[NDArray[Any]]:
        """The examples' vectors, batch by batch, from `_base` (whole) or from `_arrays`."""
        model = keras.Model(model_inputs(graph.inputs if whole else graph.arrays), graph.vectors)
        return self._called(model, self._batches(examples, None, whole=whole))

    def _called(self, model: keras.Model, batches: Batches) -> Iterator[NDArray[Any]]:
        """A model's answers, batch by batch, without the graph that `predict_batches` would trace first."""
        return (np.asarray(model(batches[i][0], training=False)) for i in range(len(batches)))

    def _batches(
        self, examples: HeadInputs, targets: Floats | None, *, whole: bool, seed: int | None = None
    ) -> Batches:
        """Batches of `_base` (whole) or of `_arrays`."""
        reader = ExampleReader(examples, self._base if whole else self._arrays)
        return Batches(reader, np.arange(len(examples)), targets, self._train.batch, seed)

    def _entered(self, model: keras.Model, examples: HeadInputs) -> keras.Model:
        """The part of a whole model that follows `_arrays`; the same layers and weights."""
        return submodel_from({n: model.get_layer(n).output for n in self._arrays(examples[:1])}, model)

    def _predicted(self, examples: HeadInputs) -> Floats:
        """(n, K), from the store's own summaries where it has them."""
        whole = not self._ready(examples)
        model = self.model_ if whole else self._entered(self.model_, examples)
        return predict_batches(model, self._batches(examples, None, whole=whole))

    def _with_top(self, maps: Tensor, name: str) -> Tensor:
        """Maps (batch, T, h, w, c) with the store's top applied where the input `name` has one; trainable.

        Time is folded into the batch: one call, one batch-norm update a step, the same numbers at inference as a
        TimeDistributed top.
        """
        if self._top is None or self._inputs[name] != APPEARANCE:
            return maps
        _, time, *entry = maps.shape
        x = rebuild_top(self._top)(keras.ops.reshape(maps, (-1, *entry)))
        return keras.ops.reshape(x, (-1, time, *x.shape[1:]))


def _known(y: Any) -> Floats:
    """Targets as float64.

    Raises:
        ValueError: unknown ones among them.
    """
    found: Floats = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
    return found
