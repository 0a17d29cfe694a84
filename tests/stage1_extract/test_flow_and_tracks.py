"""Flow and tracks in the store: from one pass over the frames, added later, mended alone, and where nothing fits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from features._common.types import Image
from features.config import Config
from features.errors import BadInputs, DataError
from features.sequences import Box, FrameSequence, Label
from features.store import Store, StreamInfo
from features.store_writer import StreamContent, extend_store
from stage1_extract import extract as module
from stage1_extract import optical_flow
from stage1_extract.backbone.trunk import build_trunk
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue, Clip
from stage1_extract.engines.engine import Engine
from stage1_extract.extract import extract
from stage1_extract.info import describe_store
from stage1_extract.tracking.sequence_tracks import FRAMES_PER_READ, SHORT_SEQUENCE, LazyGreyFrames, to_grey
from stage1_extract.tracking.tracker import track_known_boxes
from tests.extraction_helpers import extraction_config, store_content
from tests.helpers import flip, picture

SIZE = 96, 64


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(build_trunk(extraction_config()), 8)


class Footage:
    """Frames in memory that are counted as they are read; in order only, where `parallel` is false."""

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


def drive(length: int, seed: int = 0) -> list[Image]:
    """A bright textured patch that moves 1 px a frame over a smooth background."""
    patch = picture(seed + 1, (24, 20))
    frames = []
    for i in range(length):
        frame = picture(seed, SIZE)
        left = 10 + i % 50
        frame[30:50, left : left + 24] = patch
        frames.append(frame)
    return frames


def around(frame: int) -> Box:
    left = 10 + frame % 50
    return left - 0.5, 29.5, left + 23.5, 49.5


def clip(length: int, *labels: Label, name: str = "a", parallel: bool = True) -> Clip:
    sequence = FrameSequence(name, "train", length, 10.0, SIZE, f"digest of {name}", labels)
    return Clip(sequence, Footage(drive(length), parallel=parallel))


def bring_up(path: Path, engine: Engine | None, *clips: Clip, **extract_settings: object) -> module.ExtractionResult:
    config = extraction_config(**extract_settings)
    return extract(config, path, Catalogue(clips), engine=engine)


def test_every_frame_is_read_once_with_flow_and_tracks(tmp_path: Path, engine: Engine) -> None:
    short = [clip(8, Label(7, {"vx": 1.0}, around(7)), name=str(i)) for i in range(5)]
    long = clip(70, Label(69, {"vx": 1.0}), name="long")
    video = clip(50, Label(3, {"vx": 1.0}), name="video", parallel=False)
    outcome = bring_up(tmp_path / "s.h5", engine, *short, long, video)
    for each in (*short, long, video):
        assert isinstance(each.source, Footage)
        assert each.source.read_count == Counter(range(each.sequence.length)), each.sequence.id
        assert each.source.restarts == 0
    assert (outcome.extracted, outcome.flows, outcome.tracks) == (160, 160, 5)


def test_flow_is_that_of_the_whole_sequence_wherever_it_was_cut(tmp_path: Path, engine: Engine) -> None:
    many = [clip(50, name="long"), clip(1, name="one"), clip(2, name="two"), clip(17, name="odd", parallel=False)]
    bring_up(tmp_path / "s.h5", engine, *many)
    cv2.setNumThreads(1)
    with Store(tmp_path / "s.h5") as store:
        assert store.streams["motion"].fingerprint == optical_flow.FLOW_INFO.fingerprint
        for each, first in zip(many, store.first.tolist(), strict=True):
            expected = optical_flow.flow_entries(
                [optical_flow.flow_strip(f) for f in drive(each.sequence.length)], starts_sequence=True
            )
            np.testing.assert_array_equal(store.read("motion", range(first, first + each.sequence.length)), expected)


def test_tracks_are_the_trackers(tmp_path: Path, engine: Engine) -> None:
    labels = Label(7, {"vx": 1.0}, around(7)), Label(7, {"vx": 2.0}, (60.0, 5.0, 90.0, 28.0))
    long = SHORT_SEQUENCE + 6
    bring_up(tmp_path / "s.h5", engine, clip(8, *labels), clip(long, Label(40, {"vx": 0.0}, around(40)), name="long"))
    with Store(tmp_path / "s.h5") as store:
        for s, label, length, at, box in (
            (0, 0, 8, 7, around(7)),
            (0, 1, 8, 7, labels[1].box),
            (1, 0, long, 40, around(40)),
        ):
            found = store.track(s, label)
            assert found is not None and box is not None
            expected = track_known_boxes([to_grey(f) for f in drive(length)], {at: box})
            np.testing.assert_array_equal(found.boxes, expected.boxes)
            np.testing.assert_array_equal(found.confidence, expected.confidence)
        assert (found.confidence[30:50] > 0.8).all()
        shown = describe_store(store)
    assert "3 of 3 vehicles tracked" in shown and "texture" in shown


@pytest.mark.parametrize("what", ["motion", "tracks"])
def test_a_finished_store_gets_what_is_turned_on_without_a_network(
    what: str, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clips() -> list[Clip]:
        return [clip(8, Label(7, {"vx": 1.0}, around(7)), name=str(i)) for i in range(3)] + [clip(70, name="long")]

    bring_up(tmp_path / "fresh.h5", engine, *clips())
    bring_up(tmp_path / "s.h5", engine, *clips(), **{what: False})
    before = store_content(tmp_path / "s.h5")
    monkeypatch.setattr(module, "build_trunk", lambda _: pytest.fail("a network was loaded for nothing"))
    added = clips()
    outcome = bring_up(tmp_path / "s.h5", None, *added)
    assert (outcome.extracted, outcome.flows, outcome.tracks) == ((0, 94, 0) if what == "motion" else (0, 0, 3))
    after = store_content(tmp_path / "s.h5")
    assert after == store_content(tmp_path / "fresh.h5")
    assert {name: data for name, data in after.items() if name in before} == before
    for each in added:
        assert isinstance(each.source, Footage)
        assert set(each.source.read_count.values()) == ({1} if each.sequence.labels or what == "motion" else set())
    assert bring_up(tmp_path / "s.h5", None, *clips()).frames == 94
    assert bring_up(tmp_path / "s.h5", None, *clips(), **{what: False}).frames == 94  # what is there stays
    assert store_content(tmp_path / "s.h5") == after


@pytest.mark.parametrize("stream", ["motion", "appearance"])
@pytest.mark.parametrize("row", [0, 7, 30, 57])
def test_only_the_damaged_streams_frame_is_made_anew(
    stream: str, row: int, tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = tmp_path / "s.h5", extraction_config()
    bring_up(path, engine, clip(8, Label(7, {"vx": 1.0}, around(7))), clip(50, name="long"))
    before = store_content(path)
    flip(path, stream, row)
    with Store(path) as store:
        damaged_rows = {r: names for r, names in store.check_frames() if names}
    assert damaged_rows == {row: [stream]}
    passes, call = [], Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda self, frames: passes.append(len(frames)) or call(self, frames))
    outcome = extract(
        config, path, Catalogue((clip(8, Label(7, {"vx": 1.0}, around(7))), clip(50, name="long"))),
        damaged_rows=damaged_rows, engine=engine,
    )  # fmt: skip
    assert (passes, outcome.flows, outcome.tracks) == (([], 1, 0) if stream == "motion" else ([1], 0, 0))
    assert store_content(path) == before


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clips() -> list[Clip]:
        boxed = Label(30, {"vx": 1.0}, around(30))
        return [clip(70, boxed, name="long"), clip(45, name="video", parallel=False), clip(8, replace(boxed, frame=3))]

    bring_up(tmp_path / "fresh.h5", engine, *clips())
    passes, call = [], Engine.submit

    def run(self: Engine, frames: NDArray[np.uint8]) -> Future[NDArray[np.float16]]:
        passes.append(len(frames))
        if len(passes) % 8 == 0:
            raise KeyboardInterrupt
        return call(self, frames)

    monkeypatch.setattr(Engine, "submit", run)
    runs = 0
    while not (tmp_path / "s.h5").exists():
        runs += 1
        try:
            bring_up(tmp_path / "s.h5", engine, *clips())
        except KeyboardInterrupt:
            assert list((tmp_path / "s.h5.parts").iterdir())
    assert runs > 2
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_derived_streams_stay_with_the_sequences_and_go_without(tmp_path: Path, engine: Engine) -> None:
    path, info = tmp_path / "s.h5", StreamInfo((3,), "float32", {"kind": "pooled"})
    some = [clip(8, Label(7, {"vx": 1.0}), name=str(i)) for i in range(3)]
    bring_up(path, engine, *some)
    values = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    extend_store(path, {"pooled": StreamContent(info, batches=[values])})
    relabelled = [Clip(replace(c.sequence, labels=(Label(7, {"vx": 2.0}),)), c.source) for c in some]
    assert bring_up(path, engine, *relabelled).notes == []
    assert bring_up(path, engine, *relabelled[1:]).notes == []
    with Store(path) as store:
        np.testing.assert_array_equal(store.read("pooled", range(16)), values[8:])
    (note,) = bring_up(path, engine, *some, clip(8, name="new")).notes
    assert "stream pooled was dropped" in note
    with Store(path) as store:
        assert set(store.streams) == {"appearance", "motion"}


OUTSIDE, WHOLE, EMPTY = (200.0, 5.0, 230.0, 20.0), (0.0, 0.0, 96.0, 64.0), (20.0, 20.0, 20.0, 30.0)
NO_BOX = (float("nan"), 1.0, 2.0, 3.0)
ALONE, ELSEWHERE = "1 of 2 vehicles could not be followed", "1 boxes hold for frames that aren't there"


@pytest.mark.parametrize(
    ("box", "frame", "found", "note"),
    [
        (OUTSIDE, 7, [7], ALONE),
        (EMPTY, 7, [], ALONE),
        (WHOLE, 7, list(range(8)), None),
        (around(7), 39, None, ELSEWHERE),
        (around(7), -1, None, ELSEWHERE),
        (NO_BOX, 7, None, None),
    ],
)
def test_a_box_that_cant_be_followed_stops_nothing(
    box: Box, frame: int, found: list[int] | None, note: str | None, tmp_path: Path, engine: Engine
) -> None:
    odd = clip(8, Label(frame, {"vx": 1.0}, box), name="odd")
    good = clip(8, Label(7, {"vx": 1.0}, around(7)), name="good")
    outcome = bring_up(tmp_path / "s.h5", engine, odd, good)
    assert [note in line and "odd frame" in line for line in outcome.notes] == ([True] if note else [])
    with Store(tmp_path / "s.h5") as store:
        assert store.complete
        track, other = store.track(0, 0), store.track(1, 0)
        assert other is not None and np.isfinite(other.boxes).all()
        assert (track is None) == (found is None)
        if track is not None:
            assert np.flatnonzero(np.isfinite(track.boxes[:, 0])).tolist() == found
        assert note is None or note in describe_store(store)
    assert bring_up(tmp_path / "s.h5", None, odd, good).tracks == 0  # nor is it tried again


def test_a_vehicle_that_leaves_the_image_is_lost_from_there_on(tmp_path: Path, engine: Engine) -> None:
    patch, frames = picture(1, (24, 20)), [picture(0, SIZE) for _ in range(20)]
    for i, frame in enumerate(frames):
        left = 24 - 2 * i  # half of it is outside from frame 18 on
        frame[30:50, max(left, 0) : left + 24] = patch[:, max(-left, 0) :]
    label = Label(0, {"vx": 1.0}, (23.5, 29.5, 47.5, 49.5))
    bring_up(
        tmp_path / "s.h5", engine, Clip(FrameSequence("a", "train", 20, 10.0, SIZE, "d", (label,)), Footage(frames))
    )
    with Store(tmp_path / "s.h5") as store:
        track = store.track(0, 0)
        assert track is not None
        lost = np.flatnonzero(np.isnan(track.boxes[:, 0]))
        assert len(lost) and lost.tolist() == list(range(lost[0], 20))
        assert 15 <= lost[0] <= 19


def test_frames_that_are_gone_when_tracks_are_asked_for(tmp_path: Path, engine: Engine) -> None:
    class Gone(Footage):
        def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
            raise DataError(f"a frame of {start} to {stop}: no such file")

    some = [clip(8, Label(7, {"vx": 1.0}, around(7)), name=name) for name in "ab"]
    bring_up(tmp_path / "s.h5", engine, *some, tracks=False)
    with pytest.raises(BadInputs, match="no such file"):
        bring_up(tmp_path / "s.h5", None, some[0], replace(some[1], source=Gone([])))
    with Store(tmp_path / "s.h5") as store:
        assert (store.complete, len(store.sequences), len(store.track_keys)) == (False, 2, 1)
    assert bring_up(tmp_path / "s.h5", None, *some).tracks == 1
    bring_up(tmp_path / "fresh.h5", engine, *some)
    assert store_content(tmp_path / "s.h5") == store_content(tmp_path / "fresh.h5")


def test_equal_boxes_are_one_vehicle(tmp_path: Path, engine: Engine) -> None:
    label = Label(7, {"vx": 1.0}, around(7))
    bring_up(
        tmp_path / "s.h5", engine, clip(8, label, replace(label, targets={"vx": 2.0}), Label(7, {"vx": 3.0}, WHOLE))
    )
    with Store(tmp_path / "s.h5") as store:
        assert len(store.track_keys) == 2
        first, second = store.track(0, 0), store.track(0, 1)
        assert first is not None and second is not None
        np.testing.assert_array_equal(first.boxes, second.boxes)


def test_boxes_for_every_frame_are_taken_as_they_are(tmp_path: Path, engine: Engine) -> None:
    every = clip(SHORT_SEQUENCE + 10, *(Label(i, {"vx": 1.0}, around(i)) for i in range(SHORT_SEQUENCE + 10)))
    bring_up(tmp_path / "s.h5", engine, every)
    assert isinstance(every.source, Footage)
    assert every.source.read_count == Counter(range(SHORT_SEQUENCE + 10))
    with Store(tmp_path / "s.h5") as store:
        (track,) = store.tracks().values()
        np.testing.assert_array_equal(track.boxes, [around(i) for i in range(SHORT_SEQUENCE + 10)])
        assert (track.confidence == 1).all()


def test_between_given_boxes_it_is_followed_from_the_nearest() -> None:
    frames = [to_grey(f) for f in drive(21)]
    wide = (*around(20)[:2], around(20)[2] + 2, around(20)[3])
    track = track_known_boxes(frames, {0: around(0), 20: wide})
    width = track.boxes[:, 2] - track.boxes[:, 0]
    np.testing.assert_allclose(width[:11], 24, rtol=0.03)
    np.testing.assert_allclose(width[11:], 26, rtol=0.03)
    assert (track.confidence[[0, 20]] == 1).all() and (track.confidence[1:20] < 1).all()


def test_a_long_video_is_read_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "stage1_extract.tracking.sequence_tracks.MAX_GREY_BYTES", 4 * FRAMES_PER_READ * SIZE[0] * SIZE[1]
    )
    video = clip(10 * FRAMES_PER_READ, parallel=False)
    reel = LazyGreyFrames(video)
    held = []
    for i in (*range(300, 100, -1), *range(301, 320)):
        np.testing.assert_array_equal(reel[i], to_grey(drive(i + 1)[i]) if i % 40 == 0 else reel[i])
        held.append(len(reel._blocks))
    assert max(held) <= 4
    assert isinstance(video.source, Footage)
    assert video.source.restarts <= 4
    assert max(video.source.read_count.values()) <= 2
    assert min(video.source.read_count) > 0  # what nobody asks for is not read


def test_tusimples_clip_through_the_store(real: Path, tmp_path: Path, engine: Engine) -> None:
    config = Config.model_validate(
        extraction_config(real / "tusimple").model_dump() | {"data": {"layout": "tusimple", "path": str(real / "tusimple")}}
    )
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
