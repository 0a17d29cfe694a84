"""Heads that are told which vehicle: its box, tracked through the window, as a geometry vector.

    examples ──► boxes of the window (store or tracker) ──► scene.vectors ──► `geometry` (n, F) ──► model_

The scene, where the ground is and what the camera is, is learnt from the training labels and kept in the run's folder;
everything after it is in the model's graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import keras
import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from features.errors import ConfigError
from features.head_config import BoxRidgeConfig
from features.store import TopRecord
from features.streams import GEOMETRY
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.heads.base import Head, ValidationSet
from stage2_temporal.heads.closed_form import ClosedFormHead, Vectors, linear_layer, standardise_targets
from stage2_temporal.heads.graph import NamedTensors
from stage2_temporal.training.scaling import target_scale
from stage2_temporal.vehicle.camera_geometry import (
    CameraGeometry,
    WindowTracks,
    fit_camera_geometry,
    read_camera_geometry,
)
from stage2_temporal.vehicle.geometry import GEOMETRY_NAMES
from stage2_temporal.vehicle.velocity_estimates import RIDGE_PENALTY, RobustLinearModel, fit_robust_linear_model


@dataclass(frozen=True)
class ExamplesWithGeometry:
    """Examples with their geometry vectors (n, F), computed once."""

    examples: HeadInputs
    geometry: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: Any) -> ExamplesWithGeometry:
        return ExamplesWithGeometry(self.examples[index], self.geometry[index])

    def window(self, stream: str) -> tuple[int, ...]:
        """Shape of one example of a stream."""
        return self.examples.window(stream)

    def stream(self, name: str) -> NDArray[Any]:
        """(n, T, …) in the stored type."""
        return self.examples.stream(name)

    def top(self) -> TopRecord | None:
        """The unfrozen layers above the stream `appearance`."""
        return self.examples.top()

    @property
    def groups(self) -> NDArray[np.int64]:
        """(n,) the sequence of each example."""
        return self.examples.groups


class VehicleHead(Head):
    """A head with the input `geometry` (batch, F), see `vehicle.geometry.NAMES`; plain arrays are such vectors.

    Attributes:
        alone: whether the track is all it sees.
        scene_: what was learnt of ground and camera; None where it was given geometry vectors.
    """

    gaps = True
    needs_timestamps = True
    alone: ClassVar[bool] = True

    def _prepare(self, examples: HeadInputs, targets: Floats) -> None:
        if isinstance(examples, StoreExamples):
            self.scene_: CameraGeometry | None = learn_camera_geometry(examples)
        elif not isinstance(examples, ExamplesWithGeometry):
            self.scene_ = None
        scale = target_scale(targets) if self._train.standardise else None
        geometry = self._geometry(examples)
        alpha = RIDGE_PENALTY * self._head.alpha
        self._line: RobustLinearModel = fit_robust_linear_model(
            geometry.astype(np.float64), standardise_targets(targets, scale), alpha
        )

    def _entries(self, examples: HeadInputs) -> dict[str, tuple[int, ...]]:
        return {GEOMETRY: (len(GEOMETRY_NAMES),)}

    def _base(self, examples: HeadInputs) -> NamedTensors:
        return {GEOMETRY: self._geometry(examples)}

    def _geometry(self, examples: HeadInputs) -> NDArray[np.float32]:
        """(n, F) of examples.

        Raises:
            ValueError: a plain array that is not (n, F).
        """
        if isinstance(examples, ExamplesWithGeometry):
            return examples.geometry
        if isinstance(examples, StoreExamples):
            assert self.scene_ is not None
            return self.scene_.vectors(window_tracks(examples))
        values = examples.stream(GEOMETRY)
        if values.shape[1:] != (1, len(GEOMETRY_NAMES)):
            raise ValueError(f"expected Inputs, or geometry vectors (n, {len(GEOMETRY_NAMES)}), got {values.shape}")
        return np.asarray(values[:, 0], np.float32)

    def _seen(self, examples: HeadInputs) -> ExamplesWithGeometry:
        return (
            examples
            if isinstance(examples, ExamplesWithGeometry)
            else ExamplesWithGeometry(examples, self._geometry(examples))
        )

    def keep(self, folder: Path) -> None:
        if self.scene_ is not None:
            self.scene_.write(folder)

    def restore(self, model: keras.Model, folder: Path | None = None) -> Self:
        self.scene_ = None if folder is None else read_camera_geometry(folder)
        return super().restore(model, folder)


class BoxRidge(VehicleHead, ClosedFormHead):
    """A robust line from what the track says to the target."""

    settings = BoxRidgeConfig
    standardised = False

    def _vectors(self, arrays: NamedTensors) -> Tensor:
        return self._line.reading.estimates(self._line.reading.clean(arrays[GEOMETRY]))

    def _solve(self, vectors: Vectors, targets: Floats) -> RobustLinearModel:
        return self._line

    def _answer(self, vectors: Tensor, targets: int) -> Tensor:
        return linear_layer(vectors, self._line.kernel, self._line.bias)

    def _learn(self, examples: HeadInputs, targets: Floats, held: ValidationSet | None, logs: Path | None) -> None:
        seen = None if held is None else (self._seen(held[0]), held[1])
        super()._learn(self._seen(examples), targets, seen, logs)


def window_tracks(examples: StoreExamples) -> WindowTracks:
    """The boxes of windows, as a store has them."""
    boxes, confidence = examples.tracks()
    step = -examples.times[:, -2] if examples.times.shape[1] > 1 else 1 / examples.fps
    return WindowTracks(boxes, confidence, 1 / step, examples.cameras)


def about_vehicles(examples: StoreExamples) -> bool:
    """Whether examples are about tracked vehicles; a clip's own speed is not, though a vehicle be tracked in it."""
    found = examples.examples
    told = np.isfinite(found.box).any() or np.isfinite(found.position).any() or "vx" in found.columns
    return bool(told and np.isfinite(window_tracks(examples).boxes).any())


def learn_camera_geometry(examples: StoreExamples) -> CameraGeometry:
    """The scene from training examples.

    Raises:
        ConfigError: none of them has a track.
        DataError: their labels are too few for a ground, or don't fit one.
    """
    known = window_tracks(examples)
    if not np.isfinite(known.boxes).any():
        raise ConfigError(
            "no vehicle was tracked: its box in the label's frame says which one is asked about",
            expected="labels with a box, and their tracks in the store",
            got=f"none in {len(examples)} training examples",
            hint="make features, for a store of this version; or --head.name pooled_lstm, which needs no boxes",
        )
    found = examples.examples
    unknown = np.full(len(found), np.nan)
    vx = found.targets[:, found.columns.index("vx")] if "vx" in found.columns else unknown
    size = examples.source.store.sequences[int(found.sequence[0])].size
    # a box known in one frame only is in the others where it was tracked to, if the window ends at the label
    ends = found.rows[:, -1] - examples.source.store.first[found.sequence] == found.frame
    boxes = np.where(np.isnan(found.box) & ends[:, None], known.boxes[:, -1], found.box)
    return fit_camera_geometry(known, boxes, found.position, vx, size)
