"""Heads that predict for a vehicle whose box is tracked through the window.

    examples ──► boxes (from the store or a tracker) ──► CameraGeometry.vectors ──► `geometry` (n, F) ──► model_

The camera geometry, which is the camera's calibration and where the ground lies, is estimated from the training labels
and saved in the run's folder. Everything after it is in the model's graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from features.errors import ConfigError
from features.head_config import BoxRidgeConfig
from features.streams import GEOMETRY
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.heads.base import Head
from stage2_temporal.heads.closed_form import ClosedFormHead, Vectors, linear_layer, standardise_targets
from stage2_temporal.heads.graph import NamedTensors
from stage2_temporal.training.scaling import target_scale
from stage2_temporal.vehicle import camera_geometry
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, WindowTracks
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES
from stage2_temporal.vehicle.velocity_estimates import RIDGE_PENALTY, RobustLinearModel, fit_robust_linear_model


class VehicleHead(Head):
    """A head with the input `geometry` (batch, F), whose columns are `vehicle.geometry.GEOMETRY_NAMES`.

    As a plain array, X is such vectors; `camera_geometry_` is then None.
    """

    allows_nan = True
    needs_timestamps = True

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        self.camera_geometry_: CameraGeometry | None = None
        if isinstance(examples, StoreExamples):
            self.camera_geometry_ = learn_camera_geometry(examples)
        scale = target_scale(targets) if self.train_.standardise else None
        geometry, alpha = self._geometry(examples).astype(np.float64), RIDGE_PENALTY * self.settings_.alpha
        self._linear_model = fit_robust_linear_model(geometry, standardise_targets(targets, scale), alpha)

    def input_shapes(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        return {GEOMETRY: (len(GEOMETRY_NAMES),)}

    def input_arrays(self, examples: HeadInputs) -> NamedTensors:
        return {GEOMETRY: self._geometry(examples)}

    def _geometry(self, examples: HeadInputs) -> NDArray[np.float32]:
        """The examples' geometry vectors (n, F); a ValueError for a plain array of another shape."""
        if isinstance(examples, StoreExamples):
            assert self.camera_geometry_ is not None
            return self.camera_geometry_.vectors(window_tracks(examples))
        values = examples.stream(GEOMETRY)
        if values.shape[1:] != (1, len(GEOMETRY_NAMES)):
            raise ValueError(
                f"expected StoreExamples, or geometry vectors (n, {len(GEOMETRY_NAMES)}); "
                f"got an array of shape {values.shape}"
            )
        return np.asarray(values[:, 0], np.float32)

    def save_extras(self, folder: Path) -> None:
        if self.camera_geometry_ is not None:
            self.camera_geometry_.write(folder)

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        self.camera_geometry_ = None if folder is None else camera_geometry.read_camera_geometry(folder)
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


def window_tracks(examples: StoreExamples) -> WindowTracks:
    """The stored boxes of the examples' windows."""
    boxes, confidence = examples.tracks()
    step = -examples.times[:, -2] if examples.times.shape[1] > 1 else 1 / examples.fps
    cameras = [examples.source.store.sequences[s].camera for s in examples.groups.tolist()]
    return WindowTracks(boxes, confidence, 1 / step, cameras)


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
    size = examples.source.store.sequences[int(labels.sequence[0])].size
    # a label without a box, whose window ends at its frame, takes the tracked box there
    ends_at_label = labels.rows[:, -1] - examples.source.store.first[labels.sequence] == labels.frame
    boxes = np.where(np.isnan(labels.box) & ends_at_label[:, None], tracks.boxes[:, -1], labels.box)
    return camera_geometry.fit_camera_geometry(tracks, boxes, labels.position, vx, size)
