"""Heads that predict for a vehicle whose box is tracked through the window.

    examples ──► boxes (from the store or a tracker) ──► CameraGeometry.vectors ──► `geometry` (n, F) ──► model_

The camera geometry, which is the camera's calibration and where the ground lies, is estimated from the training labels
and saved in the run's folder. Everything after it is in the model's graph.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Self

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.console import logger
from features._common.types import Floats, Tensor
from features.errors import ConfigError
from features.head_config import BoxMLPConfig, BoxRidgeConfig
from features.store import Store
from features.streams import GEOMETRY, STAGE_TWO
from features.tracks import Track
from stage2_temporal.data.batches import Batches
from stage2_temporal.data.examples import ArrayExamples, HeadInputs, StoreExamples
from stage2_temporal.heads.base import Head, ValidationSet
from stage2_temporal.heads.closed_form import ClosedFormHead, Vectors, linear_layer
from stage2_temporal.heads.gradient import GradientHead
from stage2_temporal.training.keras_models import NamedTensors, apply_operations, concatenate, model_inputs
from stage2_temporal.training.loop import Callbacks, fit_model, fix_seeds
from stage2_temporal.training.scaling import Scale, target_scale, vector_scale
from stage2_temporal.vehicle import camera_geometry
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, WindowTracks, box_noise, view_of
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES
from stage2_temporal.vehicle.ground import MAX_DISTANCE
from stage2_temporal.vehicle.velocity_estimates import (
    RIDGE_PENALTY,
    RobustLinearModel,
    fit_robust_linear_model,
    select_columns,
)
from stage2_temporal.vehicle.view_grounds import ViewGrounds, find_view_grounds, views_of

MEMBERS = 5  # networks of `box_mlp` whose outputs are averaged
TRACKS_FOR_NOISE = 500  # of a store, from which the noise of its boxes is estimated
MAX_DEVIATION = 20.0  # m/s: of the velocity of a track of one box, or a larger one
RANGES = 3  # ranges of distance, each with its own networks


class VehicleHead(Head):
    """A head with the input `geometry` (batch, F), whose columns are `vehicle.geometry.GEOMETRY_NAMES`.

    As a plain array, X is such vectors; `camera_geometry_` is then None.
    """

    allows_nan = True
    needs_timestamps = True

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        self.camera_geometry_: CameraGeometry | None = None
        self._view_grounds: dict[Path, ViewGrounds] = {}
        if isinstance(examples, StoreExamples):
            geometry, noise = learn_camera_geometry(examples), self.settings_.box_noise
            self.camera_geometry_ = geometry if noise is None else replace(geometry, noise=noise, noise_given=True)
        vectors, alpha = self._geometry(examples).astype(np.float64), RIDGE_PENALTY * self.settings_.alpha
        model = fit_robust_linear_model(vectors, targets, alpha)
        if self.train_.standardise:  # the rest of the graph predicts standardised targets
            scale = target_scale(targets)
            kernel, bias = model.kernel / scale.deviation, (model.bias - scale.mean) / scale.deviation
            model = replace(model, kernel=kernel, bias=bias)
        self._linear_model = model

    @property
    def input_streams(self) -> dict[str, str]:
        return {stream: stream for stream in self.settings_.input_streams}

    def input_shapes(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        return super().input_shapes(examples) | {GEOMETRY: (len(GEOMETRY_NAMES),)}

    def input_arrays(self, examples: HeadInputs) -> NamedTensors:
        return super().input_arrays(examples) | {GEOMETRY: self._geometry(examples)}

    def _geometry(self, examples: HeadInputs) -> NDArray[np.float32]:
        """The examples' geometry vectors (n, F); a ValueError for a plain array of another shape."""
        if isinstance(examples, StoreExamples):
            assert self.camera_geometry_ is not None
            view_grounds = self._find_grounds(examples)
            return self.camera_geometry_.vectors(window_tracks(examples), view_grounds.grounds, view_grounds.noise)
        values = examples.stream(GEOMETRY)
        if values.shape[1:] != (1, len(GEOMETRY_NAMES)):
            raise ValueError(
                f"expected StoreExamples, or geometry vectors (n, {len(GEOMETRY_NAMES)}); "
                f"got an array of shape {values.shape}"
            )
        return np.asarray(values[:, 0], np.float32)

    def error_scale(self, model: keras.Model) -> Tensor | None:
        """(batch, 3) the distance, to which velocities of tracks are proportional, and the deviations of vx and vy.

        Without a vehicle, as by default.
        """
        geometry = _geometry_input(model)
        if geometry is None:
            return super().error_scale(model)
        return apply_operations("error_scale", _error_scale, geometry)

    def scene(self, model: keras.Model) -> Tensor | None:
        """(batch, 4) without streams: distances and direction, in which a wrong ground or camera shows."""
        geometry = _geometry_input(model)
        if geometry is None or self.input_streams:
            return super().scene(model)
        return apply_operations("scene", _vehicle_scene, geometry)

    def _find_grounds(self, examples: StoreExamples) -> ViewGrounds:
        """The grounds of a store, found once from all of its boxes, whichever examples are read."""
        assert self.camera_geometry_ is not None
        path = examples.source.path
        if path not in self._view_grounds:
            views, tracks = views_of(examples.source.store.sequences), some_tracks(examples.source.store)
            self._view_grounds[path] = find_view_grounds(self.camera_geometry_, views, tracks)
            for text in self._view_grounds[path].warnings:
                logger.warning(f"{path}: {text}")
        return self._view_grounds[path]

    def save_extras(self, folder: Path) -> None:
        if self.camera_geometry_ is not None:
            self.camera_geometry_.write(folder)

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        self.camera_geometry_ = None if folder is None else camera_geometry.read_camera_geometry(folder)
        self._view_grounds = {}
        return super().restore(model, folder)


class BoxRidge(VehicleHead, ClosedFormHead):
    """A robust linear regression from the track's estimates to the target."""

    settings = BoxRidgeConfig
    standardises_vectors = False

    def vectors(self, features: NamedTensors) -> Tensor:
        normaliser = self._linear_model.normaliser
        return normaliser.estimates(normaliser.clean(features[GEOMETRY]))

    def solve(self, vectors: Vectors, targets: Floats) -> RobustLinearModel:
        return self._linear_model

    def output(self, vectors: Tensor, targets: int) -> Tensor:
        return linear_layer(vectors, self._linear_model.kernel, self._linear_model.bias)


class BoxMLP(VehicleHead, GradientHead):
    """MEMBERS networks for each of RANGES ranges of distance, with `layers` hidden layers of `units`.

    After Kampelmühler, Müller and Feichtenhofer, "Camera-based vehicle velocity estimation from monocular video"
    (2018), who fed smoothed box tracks to small networks, one set each for near, medium and far vehicles, and averaged
    each set's outputs. Here the ranges overlap, all networks are trained together, and they learn only the residual of
    `box_ridge`'s robust linear model, so that they are as good as that model before the first step.
    """

    settings = BoxMLPConfig
    standardises_vectors = False
    refit_examples = 20_000

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        super().prepare(examples, targets)
        normaliser = self._linear_model.normaliser
        clean = np.asarray(normaliser.clean(self._geometry(examples)))
        self._state_scale: Scale = vector_scale([np.asarray(normaliser.states(clean))[:, None]])
        shares = (np.arange(RANGES) + 0.5) / RANGES
        self._centres: Floats = np.quantile(np.log(select_columns(clean, "x")), shares)

    def vectors(self, features: NamedTensors) -> Tensor:
        """The track's states, the linear model's prediction, and each range's weight."""
        normaliser = self._linear_model.normaliser
        clean = normaliser.clean(features[GEOMETRY])
        states = self._state_scale.standardising_layer()(normaliser.states(clean))
        return concatenate([states, self._linear_model(clean), self._range_weights(clean)])

    def _range_weights(self, clean: Tensor) -> Tensor:
        """(batch, RANGES) weights that sum to 1 and change linearly with log distance between the ranges' centres."""
        centres = self._centres
        x = keras.ops.log(select_columns(clean, "x"))
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
        self, examples: HeadInputs, targets: Floats, validation: ValidationSet | None, callbacks: Callbacks
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
            callbacks=callbacks,
        )
        self.model_ = keras.Model(model_inputs(graph.inputs), keras.ops.mean(outputs, axis=1), name=STAGE_TWO)


def _geometry_input(model: keras.Model) -> Tensor | None:
    """A model's input of geometry vectors; None if it has none."""
    return next((tensor for tensor in model.inputs if tensor.name == GEOMETRY), None)


def _error_scale(geometry: Tensor) -> Tensor:
    distance = _known(select_columns(geometry, "x_foot"), MAX_DISTANCE)
    if geometry.shape[-1] < len(GEOMETRY_NAMES):  # a run of an older version
        return distance
    deviations = _known(select_columns(geometry, "vx_deviation", "vy_deviation"), MAX_DEVIATION)
    return keras.ops.concatenate([distance, keras.ops.minimum(deviations, MAX_DEVIATION)], axis=-1)


def _vehicle_scene(geometry: Tensor) -> Tensor:
    """Log distance, log ratio of the distances from foot and width, direction, and log ratio of height and width."""
    foot, size, lateral, width, height = (
        _known(select_columns(geometry, name), fill)
        for name, fill in (
            ("x_foot", MAX_DISTANCE), ("x_size", 1.0), ("y_foot", 0.0), ("log_width", 0.0), ("log_height", 0.0),
        )
    )  # fmt: skip
    log_foot = keras.ops.log(keras.ops.maximum(foot, 1e-3))
    ratio = log_foot - keras.ops.log(keras.ops.maximum(size, 1e-3))
    return keras.ops.concatenate([log_foot, ratio, lateral / foot, height - width], axis=-1)


def _known(values: Tensor, fill: float) -> Tensor:
    """Replace NaN, which does not equal itself, by a value."""
    return keras.ops.where(keras.ops.equal(values, values), values, fill)


def window_tracks(examples: StoreExamples) -> WindowTracks:
    """The stored boxes of the examples' windows."""
    boxes, confidence = examples.tracks()
    sequences = (examples.source.store.sequences[s] for s in examples.groups.tolist())
    return WindowTracks(boxes, confidence, examples.times, [view_of(s) for s in sequences])


def some_tracks(store: Store) -> list[Track]:
    """The tracks of a store's first boxes, from which the noise of its boxes is estimated."""
    boxes = ((i, label) for i, s in enumerate(store.sequences) for label, _, _ in s.labels_with_boxes())
    tracks = (store.track(*place) for place in islice(boxes, TRACKS_FOR_NOISE))
    return [track for track in tracks if track is not None]


def about_vehicles(examples: StoreExamples) -> bool:
    """Whether examples describe tracked vehicles. Ego speed does not, even in clips with tracked vehicles."""
    rows = examples.examples
    names_vehicle = np.isfinite(rows.box).any() or np.isfinite(rows.position).any() or "vx" in rows.columns
    return bool(names_vehicle and np.isfinite(window_tracks(examples).boxes).any())


def learn_camera_geometry(examples: StoreExamples) -> CameraGeometry:
    """Estimate the camera geometry from training examples.

    Raises:
        ConfigError: no example has a track.
        DataError: there are too few labels to estimate the ground, or no ground fits them.
    """
    tracks = window_tracks(examples)
    if not np.isfinite(tracks.boxes).any():
        raise ConfigError(
            "this head predicts for a tracked vehicle, but no vehicle was tracked",
            expected="labels with a box, and their tracks in the store",
            got=f"no track in {len(examples)} training examples",
            hint="framebank extract, for a store of an older version; or --head.name pooled_lstm, which needs no boxes",
        )
    labels = examples.examples
    unknown = np.full(len(labels), np.nan)
    vx = labels.targets[:, labels.columns.index("vx")] if "vx" in labels.columns else unknown
    # a label without a box, whose window ends at its frame, takes the tracked box there
    ends_at_label = labels.rows[:, -1] - examples.source.store.first[labels.sequence] == labels.frame
    boxes = np.where(np.isnan(labels.box) & ends_at_label[:, None], tracks.boxes[:, -1], labels.box)
    noise = box_noise((track.boxes, track.confidence) for track in some_tracks(examples.source.store))
    return camera_geometry.fit_camera_geometry(tracks, boxes, labels.position, vx, noise)
