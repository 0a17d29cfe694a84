"""Prediction by heads that are told which vehicle: its box is followed through the full-size frames.

A data set's boxes are its labels'; a video's are given in a CSV, and each of its frames is decoded and searched once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from features.config import Config
from features.errors import ConfigError, DataError
from features.progress import bar
from features.sequences import Box, Sequence
from features.tracks import Track, key, vehicles
from features.windows import Examples
from stage1_extract.clips import Clip, Image
from stage1_extract.trail import Trails
from stage1_extract.vehicles import grey, tracked
from stage2_temporal.boxes import Given
from stage2_temporal.runs import load
from stage2_temporal.scene import Paths, Scene, read_scene

Floats = NDArray[np.float64]
BOXES = "--boxes FILE.csv with frame,left,top,right,bottom: where the vehicle is in one frame"


@dataclass(frozen=True)
class Sight:
    """One vehicle at the end of one window: its box there and the values."""

    frame: int
    vehicle: str
    box: Box
    values: tuple[float, ...]


@dataclass(frozen=True)
class Predictor:
    """A run's scene and model."""

    scene: Scene
    model: keras.Model

    @classmethod
    def of(cls, run: Path) -> Predictor:
        """From a run's folder.

        Raises:
            DataError: it has no ground or no model.
        """
        return cls(read_scene(run), load(run))

    def __call__(self, paths: Paths) -> NDArray[np.float32]:
        """(n, K) of n windows."""
        values: NDArray[np.float32] = self.model.predict_on_batch(self.scene.vectors(paths))
        return values

    def check(self, sequence: Sequence) -> None:
        """Say so where frames are of another size than the ground was learnt on."""
        if sequence.size != self.scene.size:
            (w, h), (w0, h0) = sequence.size, self.scene.size
            print(
                f"{sequence.id}: {w}x{h} frames, but the run's ground was learnt on {w0}x{h0}: distances are wrong "
                "unless it is the same camera's view",
                file=sys.stderr,
            )


def predict_examples(
    run: Path, clips: Listed[Clip], found: Examples, first: NDArray[np.int64], config: Config, faults: dict[str, str]
) -> Floats:
    """(n, K) of a data set's examples; a vehicle without a box is answered with the usual, and counted.

    Args:
        found: examples whose rows count the frames of all clips end to end.
        first: (S,) each clip's first row.
        faults: a line for each clip that would not decode is put here.

    Raises:
        ConfigError: no example has a box.
    """
    boxed = np.isfinite(found.box).all(axis=1)
    if not boxed.any():
        raise ConfigError(
            f"{config.data.path}: no label has a box, and {config.head.name} answers for the vehicle in one",
            mend="give boxes in the annotation, or for a video " + BOXES,
        )
    if not boxed.all():
        missing = int((~boxed).sum())
        print(f"{missing} of {len(found)} labels have no box: answered with the usual values", file=sys.stderr)
    predictor = Predictor.of(run)
    named = {clips[i].sequence.id: clips[i] for i in np.unique(found.sequence).tolist()}
    at = {name: i for i, name in enumerate(c.sequence.id for c in clips)}
    for clip in named.values():
        predictor.check(clip.sequence)
    boxes, confidence = np.full((*found.rows.shape, 4), np.nan), np.zeros(found.rows.shape)
    lost = {name: vehicles(clip.sequence) for name, clip in named.items()}
    with bar(len(named), "track", "clips") as progress:
        for name, made in tracked(named, lost, config.extract.threads or os.cpu_count() or 1):
            progress.update(1)
            if isinstance(made, str):
                faults[name] = made
                continue
            owner = at[name]
            # tracks come in the order of their boxes, as the vehicles are known
            for i in np.flatnonzero(found.sequence == owner).tolist():
                track = _track_of(clips[owner].sequence, int(found.label[i]), made)
                if track is not None:
                    frames = found.rows[i] - first[owner]
                    boxes[i], confidence[i] = track.boxes[frames], track.confidence[frames]
    sequences = [clips[i].sequence for i in found.sequence.tolist()]
    fps = np.array([s.fps for s in sequences]) / config.window.stride
    return predictor(Paths(boxes, confidence, fps, [s.camera for s in sequences])).astype(np.float64)


def _track_of(sequence: Sequence, label: int, tracks: dict[str, Track]) -> Track | None:
    return next((tracks.get(key(sequence, v)) for v in vehicles(sequence) if label in v.labels), None)


def follow(run: Path, clip: Clip, given: Given, config: Config) -> Iterator[tuple[Image, list[Sight]]]:
    """Each frame of a video, full size, with the vehicles whose window is full there, in the order they came.

    Raises:
        DataError: a frame that cannot be decoded.
    """
    predictor, sequence = Predictor.of(run), clip.sequence
    predictor.check(sequence)
    length, stride = config.window.length, config.window.stride
    trails = Trails((length - 1) * stride + 1)
    fps = sequence.fps / stride
    with bar(sequence.length, "predict", "frames") as progress:
        for i, image in enumerate(clip.source.read(0, sequence.length)):
            trails.step(grey(image), given.get(i, {}))
            names = [n for n, path in trails.boxes.items() if np.isfinite(path[-1]).all()]
            if i + 1 < trails.length:
                names = []
            sights = []
            if names:
                boxes = np.stack([trails.boxes[n][::stride] for n in names])
                confidence = np.stack([trails.confidence[n][::stride] for n in names])
                count = len(names)
                values = predictor(Paths(boxes, confidence, np.full(count, fps), [sequence.camera] * count))
                for name, box, row in zip(names, boxes[:, -1].tolist(), values.tolist(), strict=True):
                    sights.append(Sight(i, name, tuple(box), tuple(row)))
            yield image, sights
            progress.update(1)


def check_seen(count: int, path: Path) -> None:
    """Refuse a prediction that found nothing.

    Raises:
        DataError: no vehicle was seen at the end of a full window.
    """
    if count == 0:
        raise DataError(
            f"{path}: no vehicle could be followed to the end of a window",
            expected="a box of 6 px and more, with contrast, at or before a frame at which a window is full",
            mend=BOXES,
        )
