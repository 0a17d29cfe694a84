"""Which labels describe which vehicle; tracks, cameras and further streams in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from features.sequences import Box, Camera, FrameSequence, Label, same_sequences
from features.store import Store
from features.store_tables import StreamInfo
from features.store_writer import StreamContent, extend_store
from features.tracks import Track, TrackedVehicle, track_keys, tracked_vehicles
from tests.helpers import jpeg, write_store

NEAR, FAR = (1.0, 2.0, 30.0, 20.0), (40.0, 5.0, 48.0, 9.0)
CLIP = FrameSequence("Train/1", "train", 8, 10.0, (1280, 720), "d" * 64)


def clip_with_boxes(*boxes: tuple[int, Box | None]) -> FrameSequence:
    return replace(CLIP, labels=tuple(Label(frame, {"vx": 1.0}, box) for frame, box in boxes))


def random_track(length: int, seed: int = 0) -> Track:
    rng = np.random.default_rng(seed)
    boxes = rng.normal(size=(length, 4))
    boxes[0] = np.nan
    return Track(boxes, rng.uniform(size=length))


def maps(frames: int) -> NDArray[np.float16]:
    return np.random.default_rng(1).normal(size=(frames, 3, 5, 2)).astype(np.float16)


def test_boxes_of_one_frame_are_different_vehicles() -> None:
    vehicles = tracked_vehicles(clip_with_boxes((7, NEAR), (7, FAR), (7, None)))
    assert vehicles == [TrackedVehicle(((7, NEAR),), (0,)), TrackedVehicle(((7, FAR),), (1,))]


def test_boxes_of_different_frames_are_one_vehicle() -> None:
    vehicles = tracked_vehicles(clip_with_boxes((3, FAR), (0, NEAR), (5, None)))
    assert vehicles == [TrackedVehicle(((0, NEAR), (3, FAR)), (0, 1, 2))]


def test_equal_boxes_have_one_track() -> None:
    clip = clip_with_boxes((7, NEAR), (7, NEAR), (7, FAR))
    first, second, third = track_keys(clip)
    assert first == second != third


def test_box_on_missing_frame_is_ignored() -> None:
    assert tracked_vehicles(clip_with_boxes((39, NEAR), (-1, FAR))) == []
    assert tracked_vehicles(clip_with_boxes((39, NEAR), (7, FAR))) == [TrackedVehicle(((7, FAR),), (0, 1))]


def test_the_key_depends_on_frames_and_boxes() -> None:
    clip = clip_with_boxes((7, NEAR))
    different = [
        replace(clip, digest="e" * 64),
        clip_with_boxes((7, FAR)),
        clip_with_boxes((7, NEAR), (7, FAR)),  # the second vehicle may hide the first
    ]
    assert track_keys(clip) == track_keys(replace(clip, id="Train/2"))
    assert all(track_keys(other)[0] != track_keys(clip)[0] for other in different)


def test_tracks_and_cameras_are_read_as_written(tmp_path: Path) -> None:
    clip = replace(clip_with_boxes((7, NEAR), (7, FAR), (7, None)), camera=Camera(714.0, 710.0, 675.0, 376.0))
    other = replace(CLIP, id="Train/2", digest="f" * 64, camera=Camera(721.5, 721.5, 609.6, 172.9, 1.65, 170.5))
    bare = replace(CLIP, id="Train/3", digest="a" * 64)
    tracks = {name: random_track(8, seed=i) for i, name in enumerate(track_keys(clip))}
    path = write_store(tmp_path / "s.h5", [clip, other, bare], {"appearance": maps(24)}, tracks=tracks)
    with Store(path) as store:
        assert same_sequences(store.sequences, [clip, other, bare])
        assert store.track_keys == set(tracks)
        for label, name in enumerate(track_keys(clip)):
            track = store.track(0, label)
            assert track is not None
            np.testing.assert_array_equal(track.boxes, tracks[name].boxes)
            np.testing.assert_array_equal(track.confidence, tracks[name].confidence)
        assert store.track(0, 2) is None and store.track(1, 0) is None


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    clips = [clip_with_boxes((7, NEAR)), replace(CLIP, id="Train/2", digest="f" * 64)]
    return write_store(tmp_path / "s.h5", clips, {"appearance": maps(16)})


def chunks(path: Path) -> list[bytes]:
    with h5py.File(path) as f:
        data = f["frames/appearance"]
        return [data.id.read_direct_chunk((i, 0, 0, 0))[1] for i in range(len(data))]


def test_extending_a_store_leaves_existing_streams_unchanged(finished: Path) -> None:
    before = chunks(finished)
    info = StreamInfo((2,), "float32", {"made": "of appearance", "cells": 2})
    values = np.arange(32, dtype=np.float32).reshape(16, 2)
    with Store(finished) as store:
        clip = store.sequences[0]
        track = {track_keys(clip)[0]: random_track(8)}
    extend_store(finished, {"cells": StreamContent(info, batches=iter(np.split(values, 4)))}, track)
    assert chunks(finished) == before
    with Store(finished) as store:
        assert store.streams["cells"] == info and store.streams["appearance"].origin == {}
        np.testing.assert_array_equal(store.read("cells", [15, 0, 3]), values[[15, 0, 3]])
        assert store.thumbnail(9) == jpeg(9)
        assert store.track_keys == set(track)
        assert {r.streams["cells"] for r in store.stored_ranges("cells")} == {info.fingerprint}
    other = replace(info, origin={"made": "otherwise"})
    extend_store(finished, {"cells": StreamContent(other, batches=[values * 2])})
    with Store(finished) as store:
        assert store.streams["cells"] == other and store.track_keys == set(track)
        np.testing.assert_array_equal(store.read("cells", [1]), values[[1]] * 2)


def test_a_stream_with_too_few_frames_leaves_the_store_unchanged(finished: Path) -> None:
    before = finished.read_bytes()
    with pytest.raises(RuntimeError, match="15 of 16 frames"):
        extend_store(
            finished, {"cells": StreamContent(StreamInfo((2,), "float32"), batches=[np.zeros((15, 2), np.float32)])}
        )
    assert finished.read_bytes() == before
