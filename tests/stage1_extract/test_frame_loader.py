"""Frames decoded in threads: in order, once each, no more of them than may wait, and in turns where that is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from features._common.types import Image
from features.config import DataConfig, FramesConfig
from features.frame_ranges import full_range
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Clip, FrameSource
from stage1_extract.frame_loader import AHEAD, FRAMES_PER_JOB, TURN, TURN_FOLLOWING, DecodeOptions, load_frames
from tests.helpers import write_clips

FRAMES = FramesConfig(width=32, height=24)
THREADS, CLIPS = 2, 40


class Counted:
    """A clip's own source, and how many frames were read of all."""

    read_of_all = 0

    def __init__(self, source: FrameSource, parallel: bool) -> None:
        self._source, self.parallel = source, parallel

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        for image in self._source.read(start, stop, min_size):
            Counted.read_of_all += 1
            yield image


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    root = write_clips(tmp_path_factory.mktemp("decode"), {"Train": CLIPS}, frames=FRAMES_PER_JOB)
    return scan(DataConfig(layout="competition", path=str(root), fps=10.0)).clips


def read_at_each(
    clips: tuple[Clip, ...], *, turns: bool, parallel: bool = True, extras: DecodeOptions | None = None
) -> list[int]:
    """How many frames had been read when each part of `FRAMES_PER_JOB` was given out; all parts are checked."""
    Counted.read_of_all = 0
    own = [replace(clip, source=Counted(clip.source, parallel)) for clip in clips]
    pieces, named = [full_range(c.sequence) for c in own], {c.sequence.id: c for c in own}
    parts = load_frames(pieces, named, FRAMES, THREADS, extras, turns=turns)
    read = []
    for i, part in enumerate(parts):
        read.append(Counted.read_of_all)
        assert part.range_index == i and part.fault is None
        expected = next(iter(load_frames([full_range(clips[i].sequence)], {clips[i].sequence.id: clips[i]}, FRAMES, 1)))
        np.testing.assert_array_equal(part.frames, expected.frames)
    assert len(read) == CLIPS and Counted.read_of_all == CLIPS * FRAMES_PER_JOB
    return read


@pytest.mark.parametrize(("follow", "ranges"), [(False, TURN), (True, TURN_FOLLOWING)])
def test_in_turns_nothing_is_decoded_while_frames_are_given_out(
    clips: tuple[Clip, ...], follow: bool, ranges: int
) -> None:
    turn = THREADS * ranges
    ends = [min((i // turn + 1) * turn, CLIPS) * FRAMES_PER_JOB for i in range(CLIPS)]
    extras = DecodeOptions(followed={c.sequence.id for c in clips} if follow else ())
    assert read_at_each(clips, turns=True, extras=extras) == ends


def test_else_no_more_is_decoded_than_may_wait(clips: tuple[Clip, ...]) -> None:
    most = THREADS * AHEAD + 1  # beside those that wait, the one that is given out
    read = read_at_each(clips, turns=False)
    assert all(FRAMES_PER_JOB * (i + 1) <= n <= FRAMES_PER_JOB * (i + most) for i, n in enumerate(read))


def test_a_video_is_decoded_as_it_comes(clips: tuple[Clip, ...]) -> None:
    read = read_at_each(clips, turns=True, parallel=False)
    assert all(n <= FRAMES_PER_JOB * (i + THREADS * AHEAD + 1) for i, n in enumerate(read))
