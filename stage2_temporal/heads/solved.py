"""Heads that a solver of scikit-learn finds at once, turned into Keras layers of the same numbers."""

from __future__ import annotations

import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from stage2_temporal.heads.base import Examples, Floats, Head, Tensor
from stage2_temporal.inputs import Windows
from stage2_temporal.model import Scale, vector_scale
from stage2_temporal.tables import Epoch
from stage2_temporal.training import Outcome, predict

Vectors = NDArray[np.float32]


class Solved(Head):
    """A head with a regressor of scikit-learn at its end; its `_vectors` are (batch, F)."""

    @abstractmethod
    def _solve(self, vectors: Vectors, targets: Floats) -> Any:
        """The fitted regressor, or what of it `_answer` needs, of vectors (n, F) and targets (n, K)."""

    def _learn(self, examples: Windows, targets: Floats, held: Examples | None, logs: Path | None) -> None:
        started = time.monotonic()
        inputs, whole = self._begun(examples)
        vectors = np.concatenate([*self._computed(examples, inputs, whole=whole)])
        if self.standardised and self._train.standardise_inputs:
            self._scale = vector_scale([vectors])
        self._solution = self._solve(scaled(vectors, self._scale), within(targets, self._target))
        self._kept(self._model(inputs, whole=whole), whole=whole)
        del self._solution  # the model has it now
        self.outcome_ = self._judged(examples, targets, held, started, whole)

    def _judged(
        self, examples: Windows, targets: Floats, held: Examples | None, started: float, whole: bool
    ) -> Outcome:
        """One pass over the examples, told as one epoch."""

        def errors(x: Windows, y: Floats) -> tuple[float, float]:
            model = self.model_ if whole or self._tail is None else self._tail
            error = predict(model, self._batches(x, None, whole=whole)) - y
            weighed = error / self._target.deviation if self._target else error
            return float(np.mean(weighed**2)), float(np.sqrt(np.mean(error**2)))

        unknown = (float("nan"), float("nan"))
        loss, rmse = errors(examples, targets)
        val_loss, val_rmse = errors(*held) if held is not None and len(held[0]) else unknown
        seconds = time.monotonic() - started
        return Outcome((Epoch(1, loss, rmse, val_loss, val_rmse, seconds),), 1, seconds, interrupted=False)


def linear(vectors: Tensor, weights: NDArray[Any], bias: NDArray[Any], name: str = "output") -> Tensor:
    """vectors @ weights (F, K) + bias (K,), as a Dense layer."""
    layer = keras.layers.Dense(weights.shape[1], name=name)
    answer = layer(vectors)
    layer.set_weights([weights.astype(np.float32), bias.astype(np.float32)])
    return answer


def scaled(vectors: Vectors, scale: Scale | None) -> Vectors:
    """What the model's layer `standardise` makes of vectors, in its precision."""
    if scale is None:
        return vectors
    factor = 1 / scale.deviation
    result: Vectors = vectors * factor.astype(np.float32) + (-scale.mean * factor).astype(np.float32)
    return result


def within(targets: Floats, scale: Scale | None) -> Floats:
    """Targets in units of their deviation from the mean."""
    return targets if scale is None else (targets - scale.mean) / scale.deviation
