"""Prediction by heads that are told which vehicle: its box is followed through the full-size frames.

A data set's boxes are its labels'; a video's are given in a CSV, and each of its frames is decoded and searched once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features._common.log import logger
from features._common.progress import progress_bar
from features._common.types import Image
from features.config import Config
from features.errors import ConfigError, DataError
from features.sequences import Box, FrameSequence
from features.streams import APPEARANCE, MOTION
from features.tracks import Track, track_key_by_label, tracked_vehicles
from features.windows import Examples
from stage1_extract import optical_flow
from stage1_extract.datasets.clip import Clip
from stage1_extract.frame_loader import resize_frame
from stage1_extract.tracking.online_tracker import OnlineTracker
from stage1_extract.tracking.sequence_tracks import SHORT_SEQUENCE, to_grey, track_clips
from stage2_temporal.sliding.boxes_csv import BoxesByFrame
from stage2_temporal.sliding.sliding_window import RunModels, SlidingWindow
from stage2_temporal.vehicle.camera_geometry import CameraGeometry, WindowTracks

BOXES_HINT = "--boxes FILE.csv with frame,left,top,right,bottom: where the vehicle is in one frame"
FRAMES_PER_STEP = 8  # frames that go through the network at once


@dataclass(frozen=True)
class VehiclePrediction:
    """One vehicle at the end of one window: its box there and the values."""

    frame: int
    vehicle: str
    box: Box
    values: tuple[float, ...]


class VehicleTracks:
    """The vehicles that a data set's labels are about: followed once, and the geometry vectors of their windows.

    Attributes:
        followed: ids of sequences whose vehicles are still to be followed, by who decodes the frames for other ends.
        tracks: by the vehicles' keys.
        faults: a line for each sequence that would not decode.
    """

    def __init__(
        self, scene: CameraGeometry, clips: Sequence[Clip], found: Examples, first: NDArray[np.int64], config: Config
    ) -> None:
        """For examples whose rows count the frames of all clips end to end; `first` (S,) is each clip's first."""
        self._scene, self._found, self._first, self._stride = scene, found, first, config.window.stride
        self._sequences = [clip.sequence for clip in clips]
        self._keys: dict[int, dict[int, str]] = {}
        self.followed: set[str] = set()
        self.tracks: dict[str, Track] = {}
        self.faults: dict[str, str] = {}

    def follow(self, clips: Mapping[str, Clip], config: Config) -> None:
        """Follow the vehicles of some clips, whose frames are read on demand."""
        with progress_bar(len(clips), "track", "clips") as progress:
            for name, made in track_clips(clips, clips, config.extract.threads or os.cpu_count() or 1):
                progress.update(1)
                if isinstance(made, str):
                    self.faults[name] = made
                else:
                    self.tracks |= made

    def vectors(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, F) of the chosen examples; a vehicle that has no track is lost in all frames."""
        found = self._found[chosen]
        boxes, confidence = np.full((*found.rows.shape, 4), np.nan), np.zeros(found.rows.shape)
        for i, (owner, label) in enumerate(zip(found.sequence.tolist(), found.label.tolist(), strict=True)):
            track = self.tracks.get(self._known(owner).get(label, ""))
            if track is not None:
                frames = found.rows[i] - self._first[owner]
                boxes[i], confidence[i] = track.boxes[frames], track.confidence[frames]
        sequences = [self._sequences[i] for i in found.sequence.tolist()]
        fps = np.array([s.fps for s in sequences]) / self._stride
        return self._scene.vectors(WindowTracks(boxes, confidence, fps, [s.camera for s in sequences]))

    def _known(self, owner: int) -> dict[int, str]:
        """A sequence's labels → the key of the vehicle each is about."""
        if owner not in self._keys:
            self._keys[owner] = track_key_by_label(self._sequences[owner])
        return self._keys[owner]


def track_labelled_vehicles(
    parts: RunModels, clips: Sequence[Clip], found: Examples, first: NDArray[np.int64], config: Config
) -> VehicleTracks | None:
    """What is told of the vehicles in a data set; None where the head isn't. A label without a box is counted.

    Vehicles are followed here, but for those of short clips whose frames are decoded for a stream in any case.

    Raises:
        ConfigError: no example has a box.
    """
    if parts.scene is None:
        return None
    boxed = np.isfinite(found.box).all(axis=1)
    if not boxed.any():
        raise ConfigError(
            f"{config.data.path}: no label has a box, and {config.head.name} answers for the vehicle in one",
            hint="give boxes in the annotation, or for a video " + BOXES_HINT,
        )
    if not boxed.all():
        missing = int((~boxed).sum())
        logger.warning(f"{missing} of {len(found)} labels have no box: answered with the usual values")
    made = VehicleTracks(parts.scene, clips, found, first, config)
    named = {clips[i].sequence.id: clips[i] for i in np.unique(found.sequence).tolist()}
    for clip in named.values():
        warn_of_other_size(parts.scene, clip.sequence)
    if parts.streams:
        short = {name for name, c in named.items() if c.sequence.length <= SHORT_SEQUENCE}
        made.followed = {name for name in short if tracked_vehicles(named[name].sequence)}
        named = {name: clip for name, clip in named.items() if name not in short}
    made.follow(named, config)
    return made


def warn_of_other_size(scene: CameraGeometry, sequence: FrameSequence) -> None:
    """Say so where frames are of another size than the ground was learnt on."""
    if sequence.size != scene.size:
        (w, h), (w0, h0) = sequence.size, scene.size
        logger.warning(
            f"{sequence.id}: {w}x{h} frames, but the run's ground was learnt on {w0}x{h0}: distances are wrong "
            "unless it is the same camera's view"
        )


def predict_vehicles(
    parts: RunModels, clip: Clip, given: BoxesByFrame, rows: NDArray[np.int64], config: Config
) -> Iterator[tuple[Image, list[VehiclePrediction]]]:
    """Each frame of a video, full size, with the vehicles whose window is full there, in the order they came.

    Args:
        given: the boxes.
        rows: (n, T) the frames of all windows.

    Raises:
        DataError: a frame that cannot be decoded.
    """
    scene, sequence, stride = parts.scene, clip.sequence, config.window.stride
    assert scene is not None
    warn_of_other_size(scene, sequence)
    slider, flow = SlidingWindow(parts, rows, FRAMES_PER_STEP), OnlineFlow()
    span = int(rows[0, -1] - rows[0, 0]) + 1
    trails, fps = OnlineTracker(span), sequence.fps / stride
    with progress_bar(sequence.length, "predict", "frames") as progress:
        for start, images in _ranges(clip):
            batch: dict[str, NDArray[Any]] = {}
            if APPEARANCE in parts.streams:
                batch[APPEARANCE] = _pixels(clip, start, images, config)
            if MOTION in parts.streams:
                batch[MOTION] = flow(images)
            slider.take(batch)
            places, vectors = [], []
            for i, image in enumerate(images, start):
                trails.step(to_grey(image), given.get(i, {}))
                names = [n for n, path in trails.boxes.items() if np.isfinite(path[-1]).all()]
                if i + 1 < span or not names:
                    continue
                boxes = np.stack([trails.boxes[n][::stride] for n in names])
                confidence = np.stack([trails.confidence[n][::stride] for n in names])
                count = len(names)
                vectors.append(
                    scene.vectors(WindowTracks(boxes, confidence, np.full(count, fps), [sequence.camera] * count))
                )
                places += [(i, n, tuple(box)) for n, box in zip(names, boxes[:, -1].tolist(), strict=True)]
            sights: dict[int, list[VehiclePrediction]] = {}
            if places:
                windows = rows[[i + 1 - span for i, _, _ in places]]
                values = slider.answer(windows, np.concatenate(vectors)).tolist()
                for (i, name, box), row in zip(places, values, strict=True):
                    sights.setdefault(i, []).append(VehiclePrediction(i, name, box, tuple(row)))
            for i, image in enumerate(images, start):
                yield image, sights.get(i, [])
                progress.update(1)


class OnlineFlow:
    """The motion stream's entries of frames as they come, in ranges of at least two."""

    def __init__(self) -> None:
        self._last: list[Image] = []

    def __call__(self, images: Sequence[Image]) -> NDArray[np.float16]:
        """(n, …) of the next n full-size frames."""
        strips = [*self._last, *map(optical_flow.flow_strip, images)]
        begins, self._last = not self._last, strips[-1:]
        return optical_flow.flow_entries(strips, begins=begins)


def _ranges(clip: Clip) -> Iterator[tuple[int, list[Image]]]:
    """`FRAMES_PER_STEP` full-size frames at a time, and the number of the first."""
    frames = enumerate(clip.source.read(0, clip.sequence.length))
    while some := list(islice(frames, FRAMES_PER_STEP)):
        yield some[0][0], [image for _, image in some]


def _pixels(clip: Clip, start: int, images: Sequence[Image], config: Config) -> Image:
    """Frames as the trunk sees them; where extraction decodes them smaller, they are here as well."""
    min_size = config.frames.min_size if clip.source.parallel else None
    seen = images if min_size is None else clip.source.read(start, start + len(images), min_size)
    return np.stack([resize_frame(image, config.frames) for image in seen])


def check_any_followed(count: int, path: Path) -> None:
    """Refuse a prediction that found nothing.

    Raises:
        DataError: no vehicle was seen at the end of a full window.
    """
    if count == 0:
        raise DataError(
            f"{path}: no vehicle could be followed to the end of a window",
            expected="a box of 6 px and more, with contrast, at or before a frame at which a window is full",
            hint=BOXES_HINT,
        )
