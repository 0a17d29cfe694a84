"""Predict for vehicles in boxes: follow each box through the full-size frames and describe its track as a vector.

The boxes of a data set come from its labels, those of a video from a CSV file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from features._common.console import logger, progress_bar
from features._common.types import Image
from features.config import Config
from features.errors import ConfigError
from features.sequences import Box, FrameSequence
from features.streams import FRAMES, MOTION, scale_flow
from features.tracks import Track, track_key_by_label, tracked_vehicles, tracks_in_windows
from features.windows import Examples
from stage1_extract import optical_flow
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import resize_frame
from stage1_extract.tracking.online_tracker import OnlineTracker
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE, to_grey, track_clips
from stage2_temporal.sliding.boxes_csv import BOXES_HINT, BoxesByFrame
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, WindowTracks

FRAMES_PER_STEP = 8  # frames that go through the network together


@dataclass(frozen=True)
class VehiclePrediction:
    """The prediction for one vehicle at the last frame of a window, and its box there."""

    frame: int
    vehicle: str
    box: Box
    values: tuple[float, ...]


class VehicleTracks:
    """Tracks, by vehicle key, of the vehicles that a data set's labels are about.

    If the head also takes streams, vehicles in short clips are followed while frames are decoded for these: the ids of
    such clips are in `pending`. `faults` has one line per sequence that could not be decoded, by id.
    """

    def __init__(
        self, models: RunModels, clips: Sequence[Clip], examples: Examples, first: NDArray[np.int64], config: Config
    ) -> None:
        """Follow the vehicles of `examples`, whose rows count the frames of all clips laid end to end.

        `first` (S,) is the number of each clip's first frame. A ConfigError if no label has a box.
        """
        assert models.camera_geometry is not None
        self._camera_geometry, self._examples, self._first = models.camera_geometry, examples, first
        self._sequences, self._stride = [clip.sequence for clip in clips], config.window.stride
        self._keys = {s: track_key_by_label(self._sequences[s]) for s in np.unique(examples.sequence).tolist()}
        self.pending: set[str] = set()
        self.tracks: dict[str, Track] = {}
        self.faults: dict[str, str] = {}
        has_box = np.isfinite(examples.box).all(axis=1)
        if not has_box.any():
            raise ConfigError(
                f"{config.data.path}: no label has a box, but {config.head.name} predicts for the vehicle in a box",
                hint="add boxes to the annotation; for a video, " + BOXES_HINT,
            )
        if not has_box.all():
            without = f"{(~has_box).sum()} of {len(examples)} labels have no box"
            logger.warning(f"{without}; their prediction is a typical value")
        needed = {clips[i].sequence.id: clips[i] for i in self._keys}
        for clip in needed.values():
            warn_of_other_size(self._camera_geometry, clip.sequence)
        if models.inputs:
            short = {name for name, clip in needed.items() if clip.sequence.length <= SHORT_SEQUENCE}
            self.pending = {name for name in short if tracked_vehicles(needed[name].sequence)}
            needed = {name: clip for name, clip in needed.items() if name not in short}
        with progress_bar(len(needed), "track", "clips") as progress:
            for name, result in track_clips(needed, needed, config.extract.threads or cpu_count()):
                progress.update(1)
                if isinstance(result, str):
                    self.faults[name] = result
                else:
                    self.tracks |= result

    def vectors(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute the geometry vectors (n, F) of examples; a vehicle without a track counts as lost in every frame."""
        chosen = self._examples[indices]
        labels = zip(chosen.sequence.tolist(), chosen.label.tolist(), strict=True)
        tracks = (self.tracks.get(self._keys[s].get(label, "")) for s, label in labels)
        boxes, confidence = tracks_in_windows(tracks, chosen.rows - self._first[chosen.sequence][:, None])
        sequences = [self._sequences[s] for s in chosen.sequence.tolist()]
        fps = np.array([s.fps for s in sequences]) / self._stride
        return self._camera_geometry.vectors(WindowTracks(boxes, confidence, fps, [s.camera for s in sequences]))


def warn_of_other_size(camera_geometry: CameraGeometry, sequence: FrameSequence) -> None:
    """Log a warning if frames have another size than those that the ground was fitted to."""
    if sequence.size != camera_geometry.size:
        (width, height), (trained_width, trained_height) = sequence.size, camera_geometry.size
        logger.warning(
            f"{sequence.id}: {width}x{height} frames, but the run was trained on {trained_width}x{trained_height}; "
            "distances are wrong unless both show the same camera's view"
        )


def predict_vehicles(
    models: RunModels, clip: Clip, boxes: BoxesByFrame, rows: NDArray[np.int64], config: Config
) -> Iterator[tuple[Image, list[VehiclePrediction]]]:
    """Yield each full-size frame of a video with predictions for the vehicles in it, from the first full window on.

    `boxes` say where each vehicle is, in at least one frame; `rows` (n, T) are the frames of all windows. A DataError
    if a frame cannot be decoded.
    """
    camera_geometry, sequence, stride = models.camera_geometry, clip.sequence, config.window.stride
    assert camera_geometry is not None
    warn_of_other_size(camera_geometry, sequence)
    span = int(rows[0, -1] - rows[0, 0]) + 1
    window, tracker = SlidingWindow(models, rows, FRAMES_PER_STEP), OnlineTracker(span)
    intervals = sequence.frame_intervals
    strips: list[Image] = []  # for optical flow: the last frame before a batch and the batch's

    def vectors(names: list[str]) -> NDArray[np.float32]:
        tracks = np.stack([tracker.boxes[n][::stride] for n in names])
        confidence = np.stack([tracker.confidence[n][::stride] for n in names])
        fps, cameras = np.full(len(names), sequence.fps / stride), [sequence.camera] * len(names)
        return camera_geometry.vectors(WindowTracks(tracks, confidence, fps, cameras))

    with progress_bar(sequence.length, "predict", "frames") as progress:
        source = clip.source.read(0, sequence.length)
        for start in range(0, sequence.length, FRAMES_PER_STEP):
            images = list(islice(source, FRAMES_PER_STEP))
            batch: dict[str, NDArray[np.generic]] = {}
            if config.map_streams:
                small = images
                if clip.source.parallel and config.frames.min_size:  # extraction decodes them at a reduced size
                    small = list(clip.source.read(start, start + len(images), config.frames.min_size))
                batch[FRAMES] = np.stack([resize_frame(image, config.frames) for image in small])
            if MOTION in models.inputs:
                strips = [*strips[-1:], *map(optical_flow.flow_strip, images)]
                flow = optical_flow.flow_entries(strips, starts_sequence=start == 0)
                batch[MOTION] = scale_flow(flow, intervals[start : start + len(flow)], models.frame_interval)
            window.push(batch)
            visible: list[tuple[int, str, Box]] = []
            geometry = []
            for frame, image in enumerate(images, start):
                tracker.step(to_grey(image), boxes.get(frame, {}))
                names = [n for n, track in tracker.boxes.items() if np.isfinite(track[-1]).all()]
                if frame + 1 >= span and names:
                    geometry.append(vectors(names))
                    visible += [(frame, n, tuple(tracker.boxes[n][-1].tolist())) for n in names]
            predictions: defaultdict[int, list[VehiclePrediction]] = defaultdict(list)
            if visible:
                windows = rows[[frame + 1 - span for frame, _, _ in visible]]
                values = window.predict(windows, np.concatenate(geometry)).tolist()
                for (frame, name, box), row in zip(visible, values, strict=True):
                    predictions[frame].append(VehiclePrediction(frame, name, box, tuple(row)))
            for frame, image in enumerate(images, start):
                yield image, predictions[frame]
                progress.update(1)
