"""A small network on what the track says: several a range of distance, their answers averaged.

After Kampelmühler, Müller and Feichtenhofer (2018), who fed smoothed box tracks to small networks, one set each for
near, medium and far vehicles, and averaged the networks of a set. Here the ranges overlap, all networks train at once,
and they learn only what the robust line of `box_ridge` leaves over, so that they start as good as it is.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from features._common.types import Floats, Tensor
from features.head_config import BoxMLPConfig
from features.streams import GEOMETRY
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import HeadInputs
from stage2_temporal.heads.base import ValidationSet
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.graph import NamedTensors, model_inputs
from stage2_temporal.heads.vehicle import ExamplesWithGeometry, VehicleHead
from stage2_temporal.training.loop import fit_model, fix_seeds
from stage2_temporal.training.scaling import Scale, vector_scale
from stage2_temporal.vehicle.velocity_estimates import select_columns


MEMBERS = 5  # networks whose outputs are averaged
RANGES = 3  # of distance, each with its own networks


class BoxMLP(VehicleHead, GradientHead):
    """MEMBERS networks for each of RANGES of distance; `layers` layers of `units`."""

    settings = BoxMLPConfig
    standardised = False

    def _prepare(self, examples: HeadInputs, targets: Floats) -> None:
        super()._prepare(examples, targets)
        clean = np.asarray(self._line.reading.clean(self._geometry(examples)))
        self._states: Scale = vector_scale([np.asarray(self._line.reading.states(clean))[:, None]])
        share = (np.arange(RANGES) + 0.5) / RANGES
        self._centres: Floats = np.quantile(np.log(select_columns(clean, "x_foot")), share)

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        """States, the line's answer, and each range's weight, side by side."""
        clean = self._line.reading.clean(arrays[GEOMETRY])
        factor = 1 / self._states.deviation
        states = keras.layers.Rescaling(factor.tolist(), (-self._states.mean * factor).tolist(), name="standardise")
        found = [states(self._line.reading.states(clean)), self._line(clean), self._weights(clean)]
        return keras.ops.concatenate(found, axis=-1)

    def _weights(self, clean: Tensor) -> Tensor:
        """(batch, ranges): how much of a vehicle is in each range; they sum to 1, one into the next by log distance."""
        centres = self._centres
        if len(centres) == 1:
            return keras.ops.ones_like(select_columns(clean, "x_foot"))
        x = keras.ops.log(select_columns(clean, "x_foot"))
        steps = np.maximum(np.diff(centres), 1e-6)
        # how far past each centre but the last, 0 to 1
        past = keras.ops.relu((x - centres[:-1].astype(np.float32)) / steps.astype(np.float32))
        past = keras.ops.minimum(past, np.ones(len(steps), np.float32))
        ones = keras.ops.ones_like(x)
        return keras.ops.concatenate([ones, past], axis=-1) - keras.ops.concatenate([past, 0 * ones], axis=-1)

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        return keras.ops.mean(self._members(vectors, targets), axis=1)

    def _members(self, vectors: Tensor, targets: int) -> Tensor:
        """(batch, members, K): each network's answer."""
        ranges, members = RANGES, MEMBERS
        states, line = vectors[:, : -targets - ranges], vectors[:, -targets - ranges : -ranges]
        x = keras.ops.repeat(keras.ops.expand_dims(states, 1), members * ranges, axis=1)
        for i in range(self._head.layers):
            x = self._dense(self._head.units, f"hidden_{i + 1}", activation="tanh")(x)
            x = keras.layers.Dropout(self._head.dropout, name=f"dropout_{i + 1}")(x)
        x = self._dense(targets, "rest", kernel_initializer="zeros")(x)
        x = keras.ops.reshape(x, (-1, members, ranges, targets))
        weights = keras.ops.reshape(vectors[:, -ranges:], (-1, 1, ranges, 1))
        return keras.ops.sum(x * weights, axis=2) + keras.ops.expand_dims(line, 1)

    def _dense(self, units: int, name: str, **arguments: str) -> keras.layers.Layer:
        """A dense layer a network: (batch, networks, F) → (batch, networks, units)."""
        shape = (MEMBERS * RANGES, units)
        return keras.layers.EinsumDense("bnf,nfu->bnu", shape, bias_axes="nu", name=name, **arguments)

    def _learn(self, examples: HeadInputs, targets: Floats, held: ValidationSet | None, logs: Path | None) -> None:
        """Each network is judged by its own error: judged by their mean they would lean on one another."""
        fix_seeds(self._train.seed)
        members, seen, graph = MEMBERS, self._seen(examples), self._graph()
        answers = self._in_unit(self._members(graph.vectors, self._targets))

        def batches(x: ExamplesWithGeometry, y: Floats, seed: int | None = None) -> Batches:
            return self._batches(x, np.tile(y, members), whole=True, seed=seed)

        self.outcome_ = fit_model(
            keras.Model(model_inputs(graph.inputs), keras.layers.Flatten(name="members")(answers)),
            batches(seen, targets, self._train.seed),
            None if held is None else batches(self._seen(held[0]), held[1]),
            self._train,
            deviation=np.tile(self._target.deviation, members) if self._target else None,
            logs=logs,
        )
        self.model_ = keras.Model(model_inputs(graph.inputs), keras.ops.mean(answers, axis=1), name="framebank")

    def _in_unit(self, answer: Tensor) -> Tensor:
        if self._target is None:
            return answer
        return keras.layers.Rescaling(self._target.deviation.tolist(), self._target.mean.tolist())(answer)
