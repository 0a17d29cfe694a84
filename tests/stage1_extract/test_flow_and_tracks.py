"""Flow and tracks in the store: from one pass over the frames, added later, repaired, and in difficult cases."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Image
from features.config import DataConfig
from features.errors import BadInputs, DataError
from features.sequences import Box, Camera, FrameSequence, Label
from features.shards import ShardWriter
from features.store import Store
from features.store_tables import StreamInfo
from features.store_writer import StreamContent, extend_store
from features.verification import find_damage
from stage1_extract import optical_flow
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import ExtractionResult, extract
from stage1_extract.ground_flow import speed_curve
from stage1_extract.ground_flow.ground_flow import road_image
from stage1_extract.info import describe_store
from stage1_extract.tracking.sequence_tracks import FRAMES_PER_READ, SHORT_SEQUENCE, LazyGreyFrames, to_grey
from stage1_extract.tracking.tracker import track_known_boxes
from tests.extraction_helpers import extraction_config, store_content
from tests.helpers import flip, picture

SIZE = 96, 64


class MemorySource:
    """Frames in memory; counts how often each is read, and how often a source that is not parallel restarts."""

    def __init__(self, frames: list[Image], *, parallel: bool = True) -> None:
        self.frames, self.parallel = frames, parallel
        self.read_count: Counter[int] = Counter()
        self.restarts = 0
        self._next = 0

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        for i in range(start, stop):
            self.restarts += i < self._next and not self.parallel
            self._next = i + 1
            self.read_count[i] += 1
            yield self.frames[i]


def moving_patch(length: int, seed: int = 0) -> list[Image]:
    """Frames in which a bright textured patch moves 1 px per frame over a smooth background."""
    patch = picture(seed + 1, (24, 20))
    frames = []
    for i in range(length):
        frame = picture(seed, SIZE)
        left = 10 + i % 50
        frame[30:50, left : left + 24] = patch
        frames.append(frame)
    return frames


def patch_box(frame: int) -> Box:
    """The patch's box in a frame."""
    left = 10 + frame % 50
    return left - 0.5, 29.5, left + 23.5, 49.5


def clip(length: int, *labels: Label, name: str = "a", parallel: bool = True) -> Clip:
    sequence = FrameSequence(name, "train", length, 10.0, SIZE, f"digest of {name}", labels)
    return Clip(sequence, MemorySource(moving_patch(length), parallel=parallel))


def run(path: Path, engine: Engine | None, *clips: Clip, **extract_settings: object) -> ExtractionResult:
    config = extraction_config(**extract_settings)
    return extract(config, path, Catalogue(clips), engine=engine)


def test_every_frame_is_read_once_with_flow_and_tracks(tmp_path: Path, engine: Engine) -> None:
    short = [clip(8, Label(7, {"vx": 1.0}, patch_box(7)), name=str(i)) for i in range(5)]
    long = clip(70, Label(69, {"vx": 1.0}), name="long")
    video = clip(50, Label(3, {"vx": 1.0}), name="video", parallel=False)
    result = run(tmp_path / "s.h5", engine, *short, long, video)
    for each in (*short, long, video):
        assert isinstance(each.source, MemorySource)
        assert each.source.read_count == Counter(range(each.sequence.length)), each.sequence.id
        assert each.source.restarts == 0
    assert (result.extracted, result.flows, result.tracks) == (160, 160, 5)


def test_flow_does_not_depend_on_how_sequences_are_split(tmp_path: Path, engine: Engine) -> None:
    clips = [clip(50, name="long"), clip(1, name="one"), clip(2, name="two"), clip(17, name="odd", parallel=False)]
    run(tmp_path / "s.h5", engine, *clips)
    cv2.setNumThreads(1)
    with Store(tmp_path / "s.h5") as store:
        assert store.streams["motion"].fingerprint == optical_flow.FLOW_INFO.fingerprint
        for each, first in zip(clips, store.first.tolist(), strict=True):
            expected = optical_flow.flow_entries(
                [optical_flow.flow_strip(f) for f in moving_patch(each.sequence.length)], starts_sequence=True
            )
            np.testing.assert_array_equal(store.read("motion", range(first, first + each.sequence.length)), expected)


def test_stored_tracks_are_those_of_the_tracker(tmp_path: Path, engine: Engine) -> None:
    labels = Label(7, {"vx": 1.0}, patch_box(7)), Label(7, {"vx": 2.0}, (60.0, 5.0, 90.0, 28.0))
    long = SHORT_SEQUENCE + 6
    run(tmp_path / "s.h5", engine, clip(8, *labels), clip(long, Label(40, {"vx": 0.0}, patch_box(40)), name="long"))
    with Store(tmp_path / "s.h5") as store:
        for s, label, length, at, box in (
            (0, 0, 8, 7, patch_box(7)),
            (0, 1, 8, 7, labels[1].box),
            (1, 0, long, 40, patch_box(40)),
        ):
            track = store.track(s, label)
            assert track is not None and box is not None
            expected = track_known_boxes([to_grey(f) for f in moving_patch(length)], {at: box})
            np.testing.assert_array_equal(track.boxes, expected.boxes)
            np.testing.assert_array_equal(track.confidence, expected.confidence)
        assert (track.confidence[30:50] > 0.8).all()
        shown = describe_store(store)
    assert "3 of 3 vehicles tracked" in shown and "kB per frame, optical flow" in shown


@pytest.mark.parametrize("setting", ["motion", "tracks"])
def test_flow_and_tracks_are_added_to_a_finished_store_without_a_network(
    setting: str, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clips() -> list[Clip]:
        return [clip(8, Label(7, {"vx": 1.0}, patch_box(7)), name=str(i)) for i in range(3)] + [clip(70, name="long")]

    run(tmp_path / "fresh.h5", engine, *clips())
    run(tmp_path / "s.h5", engine, *clips(), **{setting: False})
    before = store_content(tmp_path / "s.h5")
    monkeypatch.setattr("stage1_extract.backbone.trunk.build_trunk", lambda _: pytest.fail("a network was loaded"))
    added = clips()
    result = run(tmp_path / "s.h5", None, *added)
    assert (result.extracted, result.flows, result.tracks) == ((0, 94, 0) if setting == "motion" else (0, 0, 3))
    after = store_content(tmp_path / "s.h5")
    assert after == store_content(tmp_path / "fresh.h5")
    assert {name: data for name, data in after.items() if name in before} == before
    for each in added:
        assert isinstance(each.source, MemorySource)
        assert set(each.source.read_count.values()) == ({1} if each.sequence.labels or setting == "motion" else set())
    assert run(tmp_path / "s.h5", None, *clips()).frames == 94
    assert run(tmp_path / "s.h5", None, *clips(), **{setting: False}).frames == 94  # existing streams stay
    assert store_content(tmp_path / "s.h5") == after


@pytest.mark.parametrize("horizon", [20.0, None])
def test_speed_curve_is_added_to_a_finished_store_and_follows_the_camera(
    horizon: float | None, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = Camera(80.0, 80.0, 48.0, 32.0, 1.2, horizon)

    def clips(camera: Camera) -> list[Clip]:
        each = [clip(50, name="long"), clip(1, name="one"), clip(2, name="two"), clip(17, name="odd", parallel=False)]
        return [Clip(replace(c.sequence, camera=camera), c.source) for c in each]

    path = tmp_path / "s.h5"
    run(path, engine, *clips(camera))
    before = store_content(path)
    monkeypatch.setattr("stage1_extract.backbone.trunk.build_trunk", lambda _: pytest.fail("a network was loaded"))
    result = run(path, None, *clips(camera), ground_flow=True)
    assert (result.extracted, result.flows, result.roads) == (0, 0, 70)
    assert {name: data for name, data in store_content(path).items() if name in before} == before
    with Store(path) as store:
        for sequence, first in zip(store.sequences, store.first.tolist(), strict=True):
            images = [road_image(frame) for frame in moving_patch(sequence.length)]
            curves = store.read("ground_flow", range(first, first + sequence.length))
            expected = speed_curve.curve_entries(images, 0, sequence, 0, sequence.length)
            np.testing.assert_array_equal(curves, expected)
            np.testing.assert_array_equal(curves[0], curves[min(1, len(curves) - 1)])
        assert "road's speed curve" in describe_store(store)
    assert run(path, None, *clips(camera), ground_flow=True).roads == 0
    if horizon is not None:  # finding it takes ten times as long
        assert run(path, None, *clips(replace(camera, fy=90.0)), ground_flow=True).roads == 70


@pytest.mark.parametrize(("stream", "row"), [("motion", 0), ("motion", 30), ("appearance", 0), ("appearance", 57)])
def test_only_the_damaged_frame_of_the_damaged_stream_is_extracted_again(
    stream: str, row: int, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "s.h5", extraction_config()
    run(path, engine, clip(8, Label(7, {"vx": 1.0}, patch_box(7))), clip(50, name="long"))
    before = store_content(path)
    flip(path, stream, row)
    damage = find_damage(path)
    assert damage.rows == {row: [stream]}
    passes, call = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, frames: passes.append(len(frames)) or call(self, frames))
    result = extract(
        config, path, Catalogue((clip(8, Label(7, {"vx": 1.0}, patch_box(7))), clip(50, name="long"))),
        damage=damage, engine=engine,
    )  # fmt: skip
    assert (passes, result.flows, result.tracks) == (([], 1, 0) if stream == "motion" else ([1], 0, 0))
    assert store_content(path) == before


def test_an_interrupted_run_resumes_to_the_same_bytes(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clips() -> list[Clip]:
        boxed = Label(30, {"vx": 1.0}, patch_box(30))
        return [clip(70, boxed, name="long"), clip(45, name="video", parallel=False), clip(8, replace(boxed, frame=3))]

    run(tmp_path / "fresh.h5", engine, *clips())
    writes, write = [], ShardWriter.write

    def interrupted_write(self: ShardWriter, maps: dict[str, NDArray[np.float16]], thumbnails: list[bytes]) -> None:
        writes.append(len(thumbnails))
        if len(writes) % 8 == 0:
            raise KeyboardInterrupt
        write(self, maps, thumbnails)

    monkeypatch.setattr(ShardWriter, "write", interrupted_write)
    runs = 0
    while not (tmp_path / "s.h5").exists():
        runs += 1
        try:
            run(tmp_path / "s.h5", engine, *clips())
        except KeyboardInterrupt:
            assert list((tmp_path / "s.h5.shards").iterdir())
    assert runs > 2
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_derived_streams_are_kept_unless_frames_are_new(tmp_path: Path, engine: Engine) -> None:
    path, info = tmp_path / "s.h5", StreamInfo((3,), "float32", {"kind": "pooled"})
    clips = [clip(8, Label(7, {"vx": 1.0}), name=str(i)) for i in range(3)]
    run(path, engine, *clips)
    values = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    extend_store(path, {"pooled": StreamContent(info, batches=[values])})
    relabelled = [Clip(replace(c.sequence, labels=(Label(7, {"vx": 2.0}),)), c.source) for c in clips]
    assert run(path, engine, *relabelled).notes == []
    assert run(path, engine, *relabelled[1:]).notes == []
    with Store(path) as store:
        np.testing.assert_array_equal(store.read("pooled", range(16)), values[8:])
    (note,) = run(path, engine, *clips, clip(8, name="new")).notes
    assert "stream pooled was dropped" in note
    with Store(path) as store:
        assert set(store.streams) == {"appearance", "motion"}


OUTSIDE, FULL_FRAME, EMPTY = (200.0, 5.0, 230.0, 20.0), (0.0, 0.0, 96.0, 64.0), (20.0, 20.0, 20.0, 30.0)
NO_BOX = (float("nan"), 1.0, 2.0, 3.0)
NOT_FOUND, NO_FRAME = "1 of 2 vehicles", "1 box"  # how the notes begin


@pytest.mark.parametrize(
    ("box", "frame", "tracked_frames", "note"),
    [
        (OUTSIDE, 7, [7], NOT_FOUND),
        (EMPTY, 7, [], NOT_FOUND),
        (FULL_FRAME, 7, list(range(8)), None),
        (patch_box(7), 39, None, NO_FRAME),
        (patch_box(7), -1, None, NO_FRAME),
        (NO_BOX, 7, None, None),
    ],
)
def test_a_box_that_cannot_be_tracked_leaves_the_others_tracked(
    box: Box, frame: int, tracked_frames: list[int] | None, note: str | None, tmp_path: Path, engine: Engine
) -> None:
    odd = clip(8, Label(frame, {"vx": 1.0}, box), name="odd")
    good = clip(8, Label(7, {"vx": 1.0}, patch_box(7)), name="good")
    result = run(tmp_path / "s.h5", engine, odd, good)
    assert [note in line and "odd frame" in line for line in result.notes] == ([True] if note else [])
    with Store(tmp_path / "s.h5") as store:
        assert store.complete
        track, other = store.track(0, 0), store.track(1, 0)
        assert other is not None and np.isfinite(other.boxes).all()
        assert (track is None) == (tracked_frames is None)
        if track is not None:
            assert np.flatnonzero(np.isfinite(track.boxes[:, 0])).tolist() == tracked_frames
        assert note is None or note in describe_store(store)
    assert run(tmp_path / "s.h5", None, odd, good).tracks == 0  # it is not tried again


def test_a_vehicle_is_lost_once_it_leaves_the_image(tmp_path: Path, engine: Engine) -> None:
    patch, frames = picture(1, (24, 20)), [picture(0, SIZE) for _ in range(20)]
    for i, frame in enumerate(frames):
        left = 24 - 2 * i  # half of it is outside from frame 18 on
        frame[30:50, max(left, 0) : left + 24] = patch[:, max(-left, 0) :]
    label = Label(0, {"vx": 1.0}, (23.5, 29.5, 47.5, 49.5))
    sequence = FrameSequence("a", "train", 20, 10.0, SIZE, "d", (label,))
    run(tmp_path / "s.h5", engine, Clip(sequence, MemorySource(frames)))
    with Store(tmp_path / "s.h5") as store:
        track = store.track(0, 0)
        assert track is not None
        lost = np.flatnonzero(np.isnan(track.boxes[:, 0]))
        assert len(lost) and lost.tolist() == list(range(lost[0], 20))
        assert 15 <= lost[0] <= 19


def test_tracks_are_added_later_even_if_some_frames_are_missing_for_a_while(tmp_path: Path, engine: Engine) -> None:
    class MissingFiles(MemorySource):
        def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
            raise DataError(f"a frame of {start} to {stop}: no such file")

    clips = [clip(8, Label(7, {"vx": 1.0}, patch_box(7)), name=name) for name in "ab"]
    run(tmp_path / "s.h5", engine, *clips, tracks=False)
    with pytest.raises(BadInputs, match="no such file"):
        run(tmp_path / "s.h5", None, clips[0], replace(clips[1], source=MissingFiles([])))
    with Store(tmp_path / "s.h5") as store:
        assert (store.complete, len(store.sequences), len(store.track_keys)) == (False, 2, 1)
    assert run(tmp_path / "s.h5", None, *clips).tracks == 1
    run(tmp_path / "fresh.h5", engine, *clips)
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_equal_boxes_are_one_vehicle(tmp_path: Path, engine: Engine) -> None:
    label = Label(7, {"vx": 1.0}, patch_box(7))
    same_box = replace(label, targets={"vx": 2.0})
    run(tmp_path / "s.h5", engine, clip(8, label, same_box, Label(7, {"vx": 3.0}, FULL_FRAME)))
    with Store(tmp_path / "s.h5") as store:
        assert len(store.track_keys) == 2
        first, second = store.track(0, 0), store.track(0, 1)
        assert first is not None and second is not None
        np.testing.assert_array_equal(first.boxes, second.boxes)


def test_annotated_boxes_of_every_frame_are_used_unchanged(tmp_path: Path, engine: Engine) -> None:
    long_clip = clip(SHORT_SEQUENCE + 10, *(Label(i, {"vx": 1.0}, patch_box(i)) for i in range(SHORT_SEQUENCE + 10)))
    run(tmp_path / "s.h5", engine, long_clip)
    assert isinstance(long_clip.source, MemorySource)
    assert long_clip.source.read_count == Counter(range(SHORT_SEQUENCE + 10))
    with Store(tmp_path / "s.h5") as store:
        (track,) = store.tracks().values()
        np.testing.assert_array_equal(track.boxes, [patch_box(i) for i in range(SHORT_SEQUENCE + 10)])
        assert (track.confidence == 1).all()


def test_between_annotated_boxes_tracking_starts_from_the_nearest() -> None:
    frames = [to_grey(f) for f in moving_patch(21)]
    wide = (*patch_box(20)[:2], patch_box(20)[2] + 2, patch_box(20)[3])
    track = track_known_boxes(frames, {0: patch_box(0), 20: wide})
    width = track.boxes[:, 2] - track.boxes[:, 0]
    np.testing.assert_allclose(width[:11], 24, rtol=0.03)
    np.testing.assert_allclose(width[11:], 26, rtol=0.03)
    assert (track.confidence[[0, 20]] == 1).all() and (track.confidence[1:20] < 1).all()


def test_a_long_video_is_read_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "stage1_extract.tracking.sequence_tracks.MAX_GREY_BYTES", 4 * FRAMES_PER_READ * SIZE[0] * SIZE[1]
    )
    video = clip(10 * FRAMES_PER_READ, parallel=False)
    grey_frames = LazyGreyFrames(video)
    block_counts = []
    for i in (*range(300, 100, -1), *range(301, 320)):
        frame = grey_frames[i]
        if i % 40 == 0:
            np.testing.assert_array_equal(frame, to_grey(moving_patch(i + 1)[i]))
        block_counts.append(len(grey_frames._blocks))
    assert max(block_counts) <= 4
    assert isinstance(video.source, MemorySource)
    assert video.source.restarts <= 4
    assert max(video.source.read_count.values()) <= 2
    assert min(video.source.read_count) > 0  # frames that are not needed are not read


def test_tusimple_clip_through_the_store(real: Path, tmp_path: Path, engine: Engine) -> None:
    data = DataConfig(layout="tusimple", path=str(real / "tusimple"))
    config = extraction_config().model_copy(update={"data": data})
    extract(config, tmp_path / "s.h5", scan(config.data), engine=engine)
    note = json.loads((real / "tusimple/clips/1/annotation.json").read_text())[0]
    with Store(tmp_path / "s.h5") as store:
        track = store.track(0, 0)
        assert track is not None
        width = track.boxes[:, 2] - track.boxes[:, 0]
        x = note["position"][0] + note["velocity"][0] * (np.arange(40) - 39) / 20
        np.testing.assert_allclose(width / width[39], note["position"][0] / x, rtol=0.03)
        assert store.sequences[0].camera is not None
        assert store.streams["motion"].shape == optical_flow.FLOW_INFO.shape
