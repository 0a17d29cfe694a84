"""Tracks: a vehicle's box in every frame of a sequence, and which labels describe which vehicle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features._common.types import Floats
from features.recipe import json_digest
from features.sequences import Box, FrameSequence

TRACKER_VERSION = 2  # increase it whenever the same frames and boxes give a different track


@dataclass(frozen=True)
class Track:
    """A vehicle's box over time."""

    boxes: Floats  # (T, 4) left, top, right, bottom in full-resolution px; NaN where the vehicle was not found
    confidence: Floats  # (T,) correlation with its template, 0 to 1; 1 where annotated, 0 where not found


@dataclass(frozen=True)
class TrackedVehicle:
    """A vehicle of a sequence that has at least one annotated box."""

    known_boxes: tuple[tuple[int, Box], ...]  # frame and box of each annotation, in order of the frames
    labels: tuple[int, ...]  # indices of the sequence's labels that describe the vehicle


def tracks_in_windows(tracks: Iterable[Track | None], frames: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The boxes (n, T, 4) and confidence (n, T) of n tracks in the frames (n, T); lost everywhere without a track."""
    boxes, confidence = np.full((*frames.shape, 4), np.nan), np.zeros(frames.shape)
    for i, track in enumerate(tracks):
        if track is not None:
            boxes[i], confidence[i] = track.boxes[frames[i]], track.confidence[frames[i]]
    return boxes, confidence


def tracked_vehicles(sequence: FrameSequence) -> list[TrackedVehicle]:
    """The vehicles of a sequence that have a label with a finite box on one of its frames.

    If no frame has two different boxes, all boxes belong to one vehicle, which all labels describe, even those without
    a box. Otherwise each box is a separate vehicle.
    """
    annotations = sequence.labels_with_boxes()
    if not annotations:
        return []
    box_by_frame = {frame: box for _, frame, box in annotations}
    if len({(frame, box) for _, frame, box in annotations}) == len(box_by_frame):
        return [TrackedVehicle(tuple(sorted(box_by_frame.items())), tuple(range(len(sequence.labels))))]
    return [TrackedVehicle(((frame, box),), (i,)) for i, frame, box in annotations]


def track_keys(sequence: FrameSequence) -> list[str]:
    """For each vehicle of a sequence, SHA-256 (hex) over everything that determines its track.

    That is the frames, the vehicle's annotated boxes, those of vehicles that may hide it, and the tracker's version.
    """
    known_boxes = [vehicle.known_boxes for vehicle in tracked_vehicles(sequence)]
    if not known_boxes:
        return []
    shared = json_digest([TRACKER_VERSION, sequence.digest, sorted(set(known_boxes))])
    return [json_digest([shared, boxes]) for boxes in known_boxes]


def track_key_by_label(sequence: FrameSequence) -> dict[int, str]:
    """Index of each label that describes a tracked vehicle → key of the vehicle's track."""
    vehicles = zip(track_keys(sequence), tracked_vehicles(sequence), strict=True)
    return {i: key for key, vehicle in vehicles for i in vehicle.labels}
