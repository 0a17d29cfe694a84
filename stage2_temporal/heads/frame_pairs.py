"""What heads share that look at features of single frames and of pairs of frames a lag apart.

The same features are computed in a model's graph, in a store as derived streams, and frame by frame for sliding windows
(`stage2_temporal.sliding.frame_cache`).
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats, Tensor
from features.streams import APPEARANCE
from stage2_temporal.data.derived_streams import DerivedStream, try_derive_streams
from stage2_temporal.data.examples import HeadInputs, StoreExamples
from stage2_temporal.data.pooling import feature_name
from stage2_temporal.heads.base import Head
from stage2_temporal.training.keras_models import NamedTensors


class FramePairsHead(Head):
    """A head whose features are arrays (n, T − lag, F), one for each input and lag, named by `feature_name`.

    Unless layers that train lie before them, they are derived into the store once, see
    `stage2_temporal.data.derived_streams`.
    """

    # one definition of the features: for the graph, and for `sliding.frame_cache`

    @abstractmethod
    def feature_lags(self, length: int) -> tuple[int, ...]:
        """The lags in frames of the features in a window of `length` frames; 0 for features of single frames."""

    def reduce_frames(self, name: str, maps: Tensor) -> Tensor:
        """Prepare an input's maps (batch, T, h, w, c), each frame by itself. By default return them as they are."""
        return maps

    @abstractmethod
    def frame_features(self, frames: Tensor, lag: int) -> Tensor:
        """Compute features (batch, T − lag, F) from the frames that `reduce_frames` returned."""

    @abstractmethod
    def derived_stream(self, stream: str, distance: int) -> DerivedStream:
        """The derived stream with the features of frames that lie `distance` rows of the store apart."""

    # the steps of a head, see `base`

    def derived_streams(self, examples: StoreExamples) -> list[DerivedStream]:
        self._read_settings()
        return self._derived_streams(examples) if self._is_frozen(examples) else []

    def prepare(self, examples: HeadInputs, targets: Floats) -> None:
        if isinstance(examples, StoreExamples) and self._is_frozen(examples):
            try_derive_streams(examples.source.path, self._derived_streams(examples))

    def has_stored_features(self, examples: HeadInputs) -> bool:
        return isinstance(examples, StoreExamples) and self._is_frozen(examples) and self._is_derived(examples)

    def stored_features(self, examples: HeadInputs) -> NamedTensors:
        assert isinstance(examples, StoreExamples)
        rows, store = examples.examples.rows, examples.source.store
        arrays: NamedTensors = {}
        for name, stream in self.input_streams.items():
            for lag in self.feature_lags(rows.shape[1]):
                # a pair is stored with the later of its two frames, which in a reversed window comes first
                later, distances = np.maximum(rows[:, lag:], rows[:, : rows.shape[1] - lag]), _distances(rows, lag)
                shape = store.streams[self.derived_stream(stream, int(distances[0])).name].shape
                values = np.empty((*later.shape, *shape), np.float32)
                for distance in np.unique(distances).tolist():
                    at = distances == distance
                    values[at] = examples.stream(self.derived_stream(stream, distance).name, later[at])
                arrays[feature_name(name, lag)] = values
        return arrays

    def features(self, inputs: NamedTensors) -> NamedTensors:
        arrays: NamedTensors = {}
        for name, values in inputs.items():
            frames = self.reduce_frames(name, self.with_top(values, name))
            for lag in self.feature_lags(frames.shape[1]):
                arrays[feature_name(name, lag)] = self.frame_features(frames, lag)
        return arrays

    # the store

    def _derived_streams(self, examples: StoreExamples) -> list[DerivedStream]:
        """List the derived streams that `stored_features` reads."""
        rows = examples.examples.rows
        distances = {d for lag in self.feature_lags(rows.shape[1]) for d in _distances(rows, lag).tolist()}
        return [self.derived_stream(stream, d) for stream in self.input_streams.values() for d in sorted(distances)]

    def _is_derived(self, examples: StoreExamples) -> bool:
        """Whether the store has the derived streams."""
        source, streams = examples.source, self._derived_streams(examples)
        if all(stream.is_stored(source.store) for stream in streams):
            return True
        # another process, or this one, may have replaced the file
        return source.reopen_if_replaced() and all(stream.is_stored(source.store) for stream in streams)

    def _is_frozen(self, examples: StoreExamples) -> bool:
        """Whether no trainable layer lies before the features, and maps are as in the store."""
        if not all(examples.source.reads_as_stored(stream) for stream in self.input_streams.values()):
            return False
        top = examples.top() if APPEARANCE in self.settings_.streams else None
        return top is None or not top.weights


def fitting_lags(lags: tuple[int, ...], length: int) -> tuple[int, ...]:
    """The lags that fit into a window; if none does, the smallest, whose computation then refuses the window."""
    return tuple(lag for lag in lags if lag < length) or (min(lags),)


def _distances(rows: NDArray[np.int64], lag: int) -> NDArray[np.int64]:
    """(n,) how many rows of the store lie between frames that are `lag` apart in each window."""
    if lag >= rows.shape[1]:
        return np.zeros(0, np.int64)
    distances: NDArray[np.int64] = np.abs(rows[:, lag] - rows[:, 0])
    return distances
