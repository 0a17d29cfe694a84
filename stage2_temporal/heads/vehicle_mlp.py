"""Small networks on a vehicle's track: several for each range of distance, whose outputs are averaged.

After Kampelmühler, Müller and Feichtenhofer, "Camera-based vehicle velocity estimation from monocular video" (2018),
who fed smoothed box tracks to small networks, one set each for near, medium and far vehicles, and averaged each set's
outputs. Here the ranges overlap, all networks are trained together, and they learn only the residual of `box_ridge`'s
robust linear model, so that they are as good as that model before the first step.
"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from features._common.types import Floats, Tensor
from features.head_config import BoxMLPConfig
from features.layer_names import STAGE_TWO
from features.streams import GEOMETRY
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import ArrayExamples, HeadInputs
from stage2_temporal.heads.base import ValidationSet
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.heads.graph import NamedTensors, concatenate, model_inputs
from stage2_temporal.heads.vehicle import VehicleHead
from stage2_temporal.training.loop import fit_model, fix_seeds
from stage2_temporal.training.scaling import Scale, vector_scale
from stage2_temporal.vehicle.velocity_estimates import select_columns

MEMBERS = 5  # networks whose outputs are averaged
RANGES = 3  # ranges of distance, each with its own networks


class BoxMLP(VehicleHead, GradientHead):
    """MEMBERS networks for each of RANGES ranges of distance, with `layers` hidden layers of `units`."""

    settings = BoxMLPConfig
    standardises_vectors = False

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        super().prepare(examples, targets)
        normaliser = self._linear_model.normaliser
        clean = np.asarray(normaliser.clean(self._geometry(examples)))
        self._state_scale: Scale = vector_scale([np.asarray(normaliser.states(clean))[:, None]])
        shares = (np.arange(RANGES) + 0.5) / RANGES
        self._centres: Floats = np.quantile(np.log(select_columns(clean, "x_foot")), shares)

    def vectors(self, features: NamedTensors) -> Tensor:
        """The track's states, the linear model's prediction, and each range's weight."""
        normaliser = self._linear_model.normaliser
        clean = normaliser.clean(features[GEOMETRY])
        states = self._state_scale.standardising_layer()(normaliser.states(clean))
        return concatenate([states, self._linear_model(clean), self._range_weights(clean)])

    def _range_weights(self, clean: Tensor) -> Tensor:
        """(batch, RANGES) weights that sum to 1 and change linearly with log distance between the ranges' centres."""
        centres = self._centres
        x = keras.ops.log(select_columns(clean, "x_foot"))
        steps = np.maximum(np.diff(centres), 1e-6)
        # how far the vehicle is past each centre but the last, from 0 to 1 at the next centre
        past = keras.ops.relu((x - centres[:-1].astype(np.float32)) / steps.astype(np.float32))
        past = keras.ops.minimum(past, np.ones(len(steps), np.float32))
        ones = keras.ops.ones_like(x)
        return keras.ops.concatenate([ones, past], axis=-1) - keras.ops.concatenate([past, 0 * ones], axis=-1)

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        return keras.ops.mean(self._member_outputs(vectors, targets), axis=1)

    def _member_outputs(self, vectors: Tensor, targets: int) -> Tensor:
        """(batch, MEMBERS, K) the outputs that are averaged."""
        states, linear = vectors[:, : -targets - RANGES], vectors[:, -targets - RANGES : -RANGES]
        x = keras.ops.repeat(keras.ops.expand_dims(states, 1), MEMBERS * RANGES, axis=1)
        for i in range(self.settings_.layers):
            x = self._dense(self.settings_.units, f"hidden_{i + 1}", activation="tanh")(x)
            x = keras.layers.Dropout(self.settings_.dropout, name=f"dropout_{i + 1}")(x)
        x = self._dense(targets, "rest", kernel_initializer="zeros")(x)
        x = keras.ops.reshape(x, (-1, MEMBERS, RANGES, targets))
        weights = keras.ops.reshape(vectors[:, -RANGES:], (-1, 1, RANGES, 1))
        return keras.ops.sum(x * weights, axis=2) + keras.ops.expand_dims(linear, 1)

    def _dense(self, units: int, name: str, **arguments: str) -> keras.layers.Layer:
        """One dense layer per network: (batch, networks, F) → (batch, networks, units)."""
        shape = (MEMBERS * RANGES, units)
        return keras.layers.EinsumDense("bnf,nfu->bnu", shape, bias_axes="nu", name=name, **arguments)

    def _train_model(
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, logs: Path | None
    ) -> None:
        """Train each member on its own error: trained on the error of their mean, they would depend on one another."""
        fix_seeds(self.train_.seed)
        graph = self._build_graph()
        outputs = self._in_target_unit(self._member_outputs(graph.vectors, self._targets))

        def batches(x: HeadInputs, y: Floats, seed: int | None = None) -> Batches:
            geometry = ArrayExamples(self._geometry(x))  # computed once, not in each epoch
            return self._batches(geometry, np.tile(y, MEMBERS), stored=False, seed=seed)

        self.outcome_ = fit_model(
            keras.Model(model_inputs(graph.inputs), keras.layers.Flatten(name="members")(outputs)),
            batches(examples, targets, self.train_.seed),
            None if validation is None else batches(*validation),
            self.train_,
            deviation=np.tile(self._target.deviation, MEMBERS) if self._target else None,
            logs=logs,
        )
        self.model_ = keras.Model(model_inputs(graph.inputs), keras.ops.mean(outputs, axis=1), name=STAGE_TWO)
