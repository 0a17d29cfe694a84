"""Heads that Adam trains, batch by batch."""

from __future__ import annotations

import keras
import numpy as np

from features._common.types import Floats, Tensor
from stage2_temporal.data.examples import HeadInputs
from stage2_temporal.heads.base import Graph, Head, ValidationSet
from stage2_temporal.heads.closed_form import Vectors
from stage2_temporal.training.loop import Callbacks, fit_model, fix_seeds
from stage2_temporal.training.scaling import vector_scale

# fields of [train] that `fit_model` reads
GRADIENT_SETTINGS = (
    "epochs", "learning_rate", "schedule", "weight_decay", "restore_best", "patience", "seed", "precision",
)  # fmt: skip


class GradientHead(Head):
    """A head that gradient descent trains on the mean squared error. Its settings include those of `DenseConfig`."""

    train_settings = (*Head.train_settings, *GRADIENT_SETTINGS)

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        return self.dense_output(vectors, targets)

    def dense_output(
        self, x: Tensor, targets: int, name: str = "output", initializer: str = "glorot_uniform"
    ) -> Tensor:
        """(batch, F) → (batch, targets), through dense relu (unless `dense` is 0), dropout and a linear layer."""
        if self.settings_.dense:
            x = keras.layers.Dense(self.settings_.dense, activation="relu", name="dense")(x)
        x = keras.layers.Dropout(self.settings_.dropout, name="dropout")(x)
        return keras.layers.Dense(targets, kernel_initializer=initializer, name=name)(x)

    def _all_vectors(self, graph: Graph, examples: HeadInputs) -> Vectors:
        """The vectors of all examples at once, for heads in which nothing before them trains."""
        return np.concatenate([*self._compute_vectors(graph, examples, stored=self.has_stored_features(examples))])

    def _train_model(
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, callbacks: Callbacks
    ) -> None:
        fix_seeds(self.train_.seed)
        graph = self._build_graph()
        stored = self.has_stored_features(examples) and (validation is None or self.has_stored_features(validation[0]))
        if self.standardises_vectors:
            self._scale = vector_scale(self._compute_vectors(graph, examples, stored=stored))
        model = self._build_model(graph)
        self.outcome_ = fit_model(
            self._after_features(model, examples) if stored else model,
            self._batches(examples, targets, stored=stored, seed=self.train_.seed),
            self._batches(*validation, stored=stored) if validation is not None else None,
            self.train_,
            deviation=self._target.deviation if self._target else None,
            callbacks=callbacks,
        )
        # without the optimiser and our loss, so that it loads and pickles anywhere
        self.model_ = keras.Model(model.input, model.output, name=model.name)
