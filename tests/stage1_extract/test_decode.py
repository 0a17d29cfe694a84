"""Frames decoded in threads: in order, once each, no more of them than may wait, and in turns where that is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from features.config import Data, Frames
from features.frame_ranges import whole
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip, Image, Source
from stage1_extract.frame_loader import AHEAD, RANGE, TURN, TURN_FOLLOWING, Extras, decode
from tests.helpers import write_clips

FRAMES = Frames(width=32, height=24)
THREADS, CLIPS = 2, 40


class Counted:
    """A clip's own source, and how many frames were read of all."""

    read_of_all = 0

    def __init__(self, source: Source, parallel: bool) -> None:
        self._source, self.parallel = source, parallel

    def read(self, start: int, stop: int, enough: tuple[int, int] | None = None) -> Iterator[Image]:
        for image in self._source.read(start, stop, enough):
            Counted.read_of_all += 1
            yield image


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    root = write_clips(tmp_path_factory.mktemp("decode"), {"Train": CLIPS}, frames=RANGE)
    return scan(Data(layout="competition", path=str(root), fps=10.0)).clips


def read_at_each(
    clips: tuple[Clip, ...], *, turns: bool, parallel: bool = True, extras: Extras | None = None
) -> list[int]:
    """How many frames had been read when each part of `RANGE` was given out; all parts are checked."""
    Counted.read_of_all = 0
    own = [replace(clip, source=Counted(clip.source, parallel)) for clip in clips]
    pieces, named = [whole(c.sequence) for c in own], {c.sequence.id: c for c in own}
    parts = decode(pieces, named, FRAMES, THREADS, extras, turns=turns)
    read = []
    for i, part in enumerate(parts):
        read.append(Counted.read_of_all)
        assert part.piece == i and part.fault is None
        expected = next(iter(decode([whole(clips[i].sequence)], {clips[i].sequence.id: clips[i]}, FRAMES, 1)))
        np.testing.assert_array_equal(part.frames, expected.frames)
    assert len(read) == CLIPS and Counted.read_of_all == CLIPS * RANGE
    return read


@pytest.mark.parametrize(("follow", "ranges"), [(False, TURN), (True, TURN_FOLLOWING)])
def test_in_turns_nothing_is_decoded_while_frames_are_given_out(
    clips: tuple[Clip, ...], follow: bool, ranges: int
) -> None:
    turn = THREADS * ranges
    ends = [min((i // turn + 1) * turn, CLIPS) * RANGE for i in range(CLIPS)]
    extras = Extras(followed={c.sequence.id for c in clips} if follow else ())
    assert read_at_each(clips, turns=True, extras=extras) == ends


def test_else_no_more_is_decoded_than_may_wait(clips: tuple[Clip, ...]) -> None:
    most = THREADS * AHEAD + 1  # beside those that wait, the one that is given out
    read = read_at_each(clips, turns=False)
    assert all(RANGE * (i + 1) <= n <= RANGE * (i + most) for i, n in enumerate(read))


def test_a_video_is_decoded_as_it_comes(clips: tuple[Clip, ...]) -> None:
    read = read_at_each(clips, turns=True, parallel=False)
    assert all(n <= RANGE * (i + THREADS * AHEAD + 1) for i, n in enumerate(read))
