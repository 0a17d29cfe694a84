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
from features.normalised_flow import normalise_flow
from features.sequences import Box
from features.streams import FRAMES, MOTION, scale_flow
from features.tracks import Track, track_key_by_label, tracked_vehicles, tracks_in_windows
from features.windows import Examples
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import resize_frame
from stage1_extract.frame_pairs import PairInputs, pair_entries, pair_inputs
from stage1_extract.ground_flow.speed_curve import FRAMES_PER_HORIZON
from stage1_extract.tracking.online_tracker import OnlineTracker
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE, to_grey, track_clips
from stage2_temporal.sliding.boxes_csv import BOXES_HINT, BoxesByFrame
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, View, WindowTracks, view_of
from stage2_temporal.vehicle.view_grounds import ViewGrounds, find_view_grounds, views_of

NOISE_TRACKS = 500  # of a video, from which the noise of its boxes is estimated
FRAMES_PER_STEP = FRAMES_PER_HORIZON  # frames that go through the network together


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
        self._sequences = [clip.sequence for clip in clips]
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
        self._views = views_of(clip.sequence for clip in clips)
        self._view_grounds: ViewGrounds | None = None
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
        frames = chosen.rows - self._first[chosen.sequence][:, None]
        boxes, confidence = tracks_in_windows(tracks, frames)
        sequences = [self._sequences[s] for s in chosen.sequence.tolist()]
        times = np.stack([s.frame_times[f] - s.frame_times[f[-1]] for s, f in zip(sequences, frames, strict=True)])
        if self._view_grounds is None:  # now that all tracks are known, which tell the boxes' noise
            self._view_grounds = find_view_grounds(self._camera_geometry, self._views, self.tracks.values())
            for text in self._view_grounds.warnings:
                logger.warning(text)
        windows = WindowTracks(boxes, confidence, times, [view_of(s) for s in sequences])
        return self._camera_geometry.vectors(windows, self._view_grounds.grounds, self._view_grounds.noise)


class VideoGrounds:
    """The geometry of one video, which becomes more certain as vehicles are followed through it."""

    def __init__(self, camera_geometry: CameraGeometry, view: View, known: BoxesByFrame) -> None:
        self.view, self._camera_geometry, self._warned = view, camera_geometry, False
        self._tracks: list[Track] = []
        self._boxes = [box for boxes in known.values() for box in boxes.values()]
        self._view_grounds, self._count = self._read(), len(self._boxes)

    def vectors(self, tracks: WindowTracks) -> NDArray[np.float32]:
        """Compute the geometry vectors (n, F) of windows, whose boxes also tell where the road is in later ones."""
        self._boxes += [tuple(box) for box in tracks.boxes[:, -1].tolist()]
        if len(self._tracks) < NOISE_TRACKS:
            self._tracks += map(Track, tracks.boxes, tracks.confidence)
        if len(self._boxes) >= 1.2 * self._count:  # so that a long video is calibrated a few dozen times
            self._view_grounds, self._count = self._read(), len(self._boxes)
        return self._camera_geometry.vectors(tracks, self._view_grounds.grounds, self._view_grounds.noise)

    def _read(self) -> ViewGrounds:
        view_grounds = find_view_grounds(self._camera_geometry, {self.view: np.array(self._boxes)}, self._tracks)
        if view_grounds.warnings and not self._warned:
            logger.warning(view_grounds.warnings[0])
            self._warned = True
        return view_grounds


def predict_vehicles(
    models: RunModels, clip: Clip, boxes: BoxesByFrame, rows: NDArray[np.int64], config: Config
) -> Iterator[tuple[Image, list[VehiclePrediction]]]:
    """Yield each full-size frame of a video with predictions for the vehicles in it, from the first full window on.

    `boxes` say where each vehicle is, in at least one frame; `rows` (n, T) are the frames of all windows. A DataError
    if a frame cannot be decoded.
    """
    camera_geometry, sequence = models.camera_geometry, clip.sequence
    assert camera_geometry is not None
    grounds = VideoGrounds(camera_geometry, view_of(sequence), boxes)
    span = int((rows[:, -1] - rows[:, 0]).max()) + 1
    row_by_end, times = {int(row[-1]): row for row in rows}, sequence.frame_times
    window, tracker = SlidingWindow(models, rows, FRAMES_PER_STEP), OnlineTracker(span)
    intervals = sequence.frame_intervals
    inputs: list[PairInputs] = []  # of streams of pairs: the last frames before a batch and the batch's

    def vectors(names: list[str], row: NDArray[np.int64]) -> NDArray[np.float32]:
        from_end = row - row[-1] - 1
        tracks = np.stack([tracker.boxes[n][from_end] for n in names])
        confidence = np.stack([tracker.confidence[n][from_end] for n in names])
        seconds = np.tile(times[row] - times[row[-1]], (len(names), 1))
        return grounds.vectors(WindowTracks(tracks, confidence, seconds, [grounds.view] * len(names)))

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
            if models.pair_streams:
                inputs = [*inputs[-FRAMES_PER_HORIZON:], *(pair_inputs(models.pair_streams, image) for image in images)]
                first = start + len(images) - len(inputs)
                batch |= pair_entries(models.pair_streams, inputs, first, sequence, start, start + len(images))
            if MOTION in batch:
                batch[MOTION] = scale_flow(batch[MOTION], intervals[start : start + len(images)], models.frame_interval)
                if config.head.normalises_flow:
                    batch[MOTION] = normalise_flow(batch[MOTION], sequence)
            window.push(batch)
            visible: list[tuple[int, str, Box]] = []
            geometry = []
            for frame, image in enumerate(images, start):
                tracker.step(to_grey(image), boxes.get(frame, {}))
                names = [n for n, track in tracker.boxes.items() if np.isfinite(track[-1]).all()]
                if frame in row_by_end and names:
                    geometry.append(vectors(names, row_by_end[frame]))
                    visible += [(frame, n, tuple(tracker.boxes[n][-1].tolist())) for n in names]
            predictions: defaultdict[int, list[VehiclePrediction]] = defaultdict(list)
            if visible:
                windows = np.stack([row_by_end[frame] for frame, _, _ in visible])
                values = window.predict(windows, np.concatenate(geometry)).tolist()
                for (frame, name, box), row in zip(visible, values, strict=True):
                    predictions[frame].append(VehiclePrediction(frame, name, box, tuple(row)))
            for frame, image in enumerate(images, start):
                yield image, predictions[frame]
                progress.update(1)
