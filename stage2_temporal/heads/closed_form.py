"""Heads that a solver of scikit-learn finds at once, turned into Keras layers of the same numbers."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from stage2_temporal.data.examples import HeadInputs
from stage2_temporal.evaluation.history import Epoch
from stage2_temporal.heads.base import Head, ValidationSet
from stage2_temporal.training.loop import TrainingResult
from stage2_temporal.training.scaling import Scale, vector_scale

Vectors = NDArray[np.float32]


class ClosedFormHead(Head):
    """A head with a regressor of scikit-learn at its end; its `vectors` are (batch, F)."""

    @abstractmethod
    def solve(self, vectors: Vectors, targets: Floats) -> Any:
        """The fitted regressor, or what of it `output` needs, of vectors (n, F) and targets (n, K)."""

    def _train_model(self, examples: HeadInputs, targets: Floats, held: ValidationSet | None, logs: Path | None) -> None:
        started = time.monotonic()
        graph = self._build_graph()
        vectors = np.concatenate([*self._compute_vectors(graph, examples, whole=not self.has_stored_summaries(examples))])
        if self.standardises_vectors:
            self._scale = vector_scale([vectors])
        self.solution_ = self.solve(
            standardise_vectors(vectors, self._scale), standardise_targets(targets, self._target)
        )
        self.model_ = self._build_model(graph)
        del self.solution_  # the model has it now
        loss, rmse = self._errors(examples, targets)
        val_loss, val_rmse = self._errors(*held) if held is not None else (math.nan, math.nan)
        seconds = time.monotonic() - started
        epoch = Epoch(1, loss, rmse, val_loss, val_rmse, seconds)
        self.outcome_ = TrainingResult((epoch,), 1, seconds, interrupted=False)

    def _predict_examples(self, examples: HeadInputs) -> Floats:
        whole = not self.has_stored_summaries(examples)
        model = self.model_ if whole else self._after_summaries(self.model_, examples)
        parts = [*self._call_in_batches(model, self._batches(examples, None, whole=whole))]
        return np.concatenate(parts).astype(np.float64)

    def _errors(self, examples: HeadInputs, targets: Floats) -> tuple[float, float]:
        """Loss and RMSE, as training by gradient tells them of an epoch."""
        error = self._predict_examples(examples) - targets
        weighed = error / self._target.deviation if self._target else error
        return float(np.mean(weighed**2)), float(np.sqrt(np.mean(error**2)))


def linear_layer(vectors: Tensor, weights: NDArray[Any], bias: NDArray[Any], name: str = "output") -> Tensor:
    """vectors @ weights (F, K) + bias (K,), as a Dense layer."""
    layer = keras.layers.Dense(weights.shape[1], name=name)
    answer = layer(vectors)
    layer.set_weights([weights.astype(np.float32), bias.astype(np.float32)])
    return answer


def standardise_vectors(vectors: Vectors, scale: Scale | None) -> Vectors:
    """What the model's layer `standardise` makes of vectors, in its precision."""
    if scale is None:
        return vectors
    factor = 1 / scale.deviation
    result: Vectors = vectors * factor.astype(np.float32) + (-scale.mean * factor).astype(np.float32)
    return result


def standardise_targets(targets: Floats, scale: Scale | None) -> Floats:
    """Targets in units of their deviation from the mean."""
    return targets if scale is None else (targets - scale.mean) / scale.deviation
