"""Heads that Adam trains, batch by batch."""

from __future__ import annotations

from pathlib import Path

import keras

from features._common.types import Floats
from stage2_temporal.data.examples import HeadInputs
from stage2_temporal.heads.base import Head, ValidationSet
from stage2_temporal.training.loop import fit_model, fix_seeds
from stage2_temporal.training.scaling import vector_scale


# of [train], what `fit_model` reads
GRADIENT_SETTINGS = ("epochs", "learning_rate", "weight_decay", "restore_best", "patience", "seed", "precision")


class GradientHead(Head):
    """A head whose weights are found by gradient descent on the mean squared error."""

    train_settings = (*Head.train_settings, *GRADIENT_SETTINGS)

    def _learn(self, examples: HeadInputs, targets: Floats, held: ValidationSet | None, logs: Path | None) -> None:
        fix_seeds(self._train.seed)
        graph, whole = self._graph(), not (self._ready(examples) and (held is None or self._ready(held[0])))
        if self.standardised:
            self._scale = vector_scale(self._computed(graph, examples, whole=whole))
        model = self._finished(graph)
        self.outcome_ = fit_model(
            model if whole else self._entered(model, examples),
            self._batches(examples, targets, whole=whole, seed=self._train.seed),
            self._batches(*held, whole=whole) if held is not None else None,
            self._train,
            deviation=self._target.deviation if self._target else None,
            logs=logs,
        )
        # without the optimiser and our loss, so that it loads and pickles anywhere
        self.model_ = keras.Model(model.input, model.output, name=model.name)
