"""Heads that scikit-learn solves in one step, converted to Keras layers with the same numbers."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from stage2_temporal.data.examples import HeadInputs
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.heads.base import Graph, Head, ValidationSet
from stage2_temporal.training.loop import Callbacks, TrainingResult
from stage2_temporal.training.scaling import Scale, vector_scale

Vectors = NDArray[np.float32]


class ClosedFormHead(Head):
    """A head that ends in a regressor of scikit-learn; its vectors are (batch, F)."""

    refit_examples = 20_000

    @abstractmethod
    def solve(self, vectors: Vectors, targets: Floats) -> Any:
        """Fit the regressor to vectors (n, F) and targets (n, K), and return what `output` reads as `solution_`."""

    def _train_model(
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, callbacks: Callbacks
    ) -> None:
        started = time.monotonic()
        graph = self._build_graph()
        self.solution_ = self._solve_graph(graph, examples, standardise_targets(targets, self._target))
        self.model_ = self._build_model(graph)
        del self.solution_  # the model contains it now
        loss, rmse = self._errors(examples, targets)
        val_loss, val_rmse = self._errors(*validation) if validation is not None else (math.nan, math.nan)
        seconds = time.monotonic() - started
        epoch = Epoch(1, loss, rmse, val_loss, val_rmse, seconds)
        self.outcome_ = TrainingResult((epoch,), 1, seconds, interrupted=False)

    def _solve_graph(self, graph: Graph, examples: HeadInputs, targets: Floats) -> Any:
        """Set the vectors' scale, and solve for all vectors (n, F) at once; standardised targets (n, K)."""
        vectors = np.concatenate([*self._compute_vectors(graph, examples, stored=self.has_stored_features(examples))])
        if self.standardises_vectors:
            self._scale = vector_scale([vectors])
        return self.solve(standardise_vectors(vectors, self._scale), targets)

    def _predict_examples(self, examples: HeadInputs) -> Floats:
        stored = self.has_stored_features(examples)
        model = self._after_features(self.model_, examples) if stored else self.model_
        predictions = [*self._call_in_batches(model, self._batches(examples, None, stored=stored))]
        return np.concatenate(predictions).astype(np.float64)

    def _errors(self, examples: HeadInputs, targets: Floats) -> tuple[float, float]:
        """Loss and RMSE, defined as for heads that gradient descent trains."""
        error = self._predict_examples(examples) - targets
        scaled = error / self._target.deviation if self._target else error
        return float(np.mean(scaled**2)), float(np.sqrt(np.mean(error**2)))


def linear_layer(
    vectors: Tensor, weights: NDArray[Any], bias: NDArray[Any], name: str = "output", *, trainable: bool = True
) -> Tensor:
    """Compute vectors @ weights (F, K) + bias (K,) by a Dense layer, which may be excluded from training."""
    layer = keras.layers.Dense(weights.shape[1], name=name, trainable=trainable)
    output = layer(vectors)
    layer.set_weights([weights.astype(np.float32), bias.astype(np.float32)])
    return output


def standardise_vectors(vectors: Vectors, scale: Scale | None) -> Vectors:
    """Scale vectors as the model does, if there is a scale."""
    return vectors if scale is None else np.asarray(scale.standardising_layer()(vectors))


def standardise_targets(targets: Floats, scale: Scale | None) -> Floats:
    """Scale targets to mean 0 and standard deviation 1, if there is a scale."""
    return targets if scale is None else (targets - scale.mean) / scale.deviation
