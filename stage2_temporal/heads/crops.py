"""A vehicle's velocity from the CNN's maps of its crop, in which the vehicle grows as it comes nearer.

    maps ──► growth and shift of each frame relative to the last (`data.alignment`) ──► times distance ──► linear + LSTM

Growth per second times the distance is the velocity (time to contact, see `vehicle.geometry`). The distance is that of
the box, whose lower edge is on the road; the motion is measured in the maps alone, unless `box` adds the track's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from features.errors import ConfigError
from features.head_config import CropLSTMConfig
from features.streams import GEOMETRY
from stage2_temporal.data.alignment import align_to_last
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.heads.closed_form import Vectors
from stage2_temporal.heads.fusion import Fusion
from stage2_temporal.heads.vehicle import VehicleHead
from stage2_temporal.training.keras_models import NamedTensors, concatenate
from stage2_temporal.training.scaling import Scale
from stage2_temporal.vehicle.lines import huber_regression
from stage2_temporal.vehicle.velocity_estimates import select_columns

SLOPE_PENALTY = 1e-3  # of the linear model, per example, on features of deviation 1
LIMIT = 4.0  # deviations: standardised features are clipped there, since the growth of a lost vehicle is arbitrary


class CropLSTM(Fusion):
    """A robust linear model plus an LSTM on how a vehicle grows and shifts in its crop."""

    settings = CropLSTMConfig
    recurrent = keras.layers.LSTM
    refit_examples = 0  # its correlations take longer

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        if not isinstance(examples, StoreExamples):
            raise ValueError("crop_lstm expects StoreExamples; got an array, which tells nothing of crops")
        sequence = examples.source.store.sequences[int(examples.groups[0])]
        if sequence.region is None:
            raise ConfigError(
                f"{examples.source.path}: crop_lstm needs the vehicles' crops",
                expected="a store that was extracted with data.crops",
                got="whole frames",
                hint="--data.crops 1.25 --frames.width 128 --frames.height 128, with another --store",
            )
        VehicleHead.prepare(self, examples, targets)

    def vectors(self, features: NamedTensors) -> Tensor:
        """(batch, T − 1, F): for each frame but the last, velocities from the vehicle's growth and shift since then."""
        geometry = self._linear_model.normaliser.clean(features[GEOMETRY])
        x, y, log_width = (keras.ops.expand_dims(select_columns(geometry, name), 1) for name in ("x", "y", "log_width"))
        size = x * keras.ops.exp(log_width)  # that of a map in metres, up to a factor
        maps = [self.with_top(features[name], name) for name in self.input_streams]
        parts = []
        for aligned in align_to_last(sorted(maps, key=lambda m: int(m.shape[2]))):
            steps = _steps(aligned.shape[1])
            growth, right, down, error = (aligned[..., i : i + 1] for i in range(4))
            closing = (keras.ops.exp(-growth) - 1) / steps  # 1/size is straight at constant velocity
            parts += [closing * x, closing * y, right / steps * size, down / steps, keras.ops.log(error + 1e-4)]
        if self.settings_.box:
            parts.append(self.track_states(features[GEOMETRY], parts[0].shape[1]))
        return concatenate(parts)

    def window_mean(self, vectors: Tensor) -> Tensor:
        """The slopes of straight lines through the window: the mean, weighted by the squared time to the last frame."""
        weight = np.square(_steps(vectors.shape[1]))
        clipped = keras.ops.minimum(keras.ops.maximum(vectors, -LIMIT), LIMIT)
        return keras.ops.sum(clipped * (weight / weight.sum()), axis=1)

    def _call_in_batches(self, model: keras.Model, batches: Batches) -> Iterator[NDArray[Any]]:
        # compiled, since a model that is called eagerly keeps all intermediate tensors: 13 GB here
        model.compile(jit_compile=False)
        return map(model.predict_on_batch, batches.inputs())

    def _linear_start(self, mean_vectors: Vectors, targets: Floats, scale: Scale) -> tuple[Floats, Floats]:
        fits = [huber_regression(mean_vectors.astype(np.float64), y, SLOPE_PENALTY) for y in targets.T]
        return np.stack([fit[1:] for fit in fits], axis=1), np.array([fit[0] for fit in fits])


def _steps(count: int) -> Vectors:
    """(count, 1) the time of each frame before the last, in frames."""
    return np.arange(-count, 0, dtype=np.float32)[:, None]
