"""Tracks: a vehicle's box in every frame of a sequence, and which labels are about which vehicle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.recipe import json_digest
from features.sequences import Box, FrameSequence

TRACKER_VERSION = 2  # raise it whenever the same frames and boxes give another track


@dataclass(frozen=True)
class Track:
    """A box's path.

    Attributes:
        boxes: (T, 4) left, top, right, bottom in full-resolution px; NaN where lost.
        confidence: (T,) correlation with the vehicle as known, 0 to 1; 1 where the box was given, 0 where lost.
    """

    boxes: NDArray[np.float64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class TrackedVehicle:
    """What is known of a vehicle in a sequence.

    Attributes:
        known: the frames its box was given for, each with the box, in order.
        labels: indices of the sequence's labels that are about it.
    """

    known: tuple[tuple[int, Box], ...]
    labels: tuple[int, ...]


def tracked_vehicles(sequence: FrameSequence) -> list[TrackedVehicle]:
    """The vehicles of a sequence that a label gives a finite box for, on a frame that is there.

    Where no frame carries two different boxes, all boxes are one vehicle's and every label is about it, those without
    a box of their own as well; else each box is a vehicle of its own.
    """
    boxed = [
        (label.frame, label.box, i)
        for i, label in enumerate(sequence.labels)
        if label.box is not None and all(map(math.isfinite, label.box)) and 0 <= label.frame < sequence.length
    ]
    if not boxed:
        return []
    path = {frame: box for frame, box, _ in boxed}
    if len({(frame, box) for frame, box, _ in boxed}) == len(path):
        return [TrackedVehicle(tuple(sorted(path.items())), tuple(range(len(sequence.labels))))]
    return [TrackedVehicle(((frame, box),), (i,)) for frame, box, i in boxed]


def track_keys(sequence: FrameSequence) -> list[str]:
    """For each of a sequence's vehicles, SHA-256 (hex) over all that decides its track.

    That is the frames, the boxes it is known by, those of the vehicles that may hide it, and the tracker.
    """
    known = [vehicle.known for vehicle in tracked_vehicles(sequence)]
    shared = json_digest([TRACKER_VERSION, sequence.digest, sorted(set(known))])
    return [json_digest([shared, own]) for own in known]


def track_key_by_label(sequence: FrameSequence) -> dict[int, str]:
    """The index of each label that is about a vehicle → the key of its track."""
    return {i: name for name, v in zip(track_keys(sequence), tracked_vehicles(sequence), strict=True) for i in v.labels}
