"""Frames decoded in threads: in order, each once, with a bounded number in memory."""

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
from stage1_extract.frame_loader import FRAMES_PER_JOB, MAX_JOBS_PER_THREAD, load_frames, resize_frame
from tests.helpers import write_clips

FRAMES = FramesConfig(width=32, height=24)
THREADS, CLIPS = 2, 24


class CountingSource:
    """A source that counts the frames read from all sources."""

    frames_read = 0

    def __init__(self, source: FrameSource, parallel: bool) -> None:
        self._source, self.parallel = source, parallel

    def read(self, start: int, stop: int, min_size: tuple[int, int] | None = None) -> Iterator[Image]:
        for image in self._source.read(start, stop, min_size):
            CountingSource.frames_read += 1
            yield image


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, ...]:
    root = write_clips(tmp_path_factory.mktemp("data"), {"Train": CLIPS}, frames=FRAMES_PER_JOB)
    return scan(DataConfig(layout="competition", path=str(root), fps=10.0)).clips


@pytest.mark.parametrize("parallel", [True, False])
def test_frames_come_in_order_and_few_are_decoded_ahead(clips: tuple[Clip, ...], parallel: bool) -> None:
    CountingSource.frames_read = 0
    counting = [replace(clip, source=CountingSource(clip.source, parallel)) for clip in clips]
    ranges, by_id = [full_range(c.sequence) for c in counting], {c.sequence.id: c for c in counting}
    max_ahead = THREADS * MAX_JOBS_PER_THREAD + 1
    for i, loaded in enumerate(load_frames(ranges, by_id, FRAMES, THREADS)):
        assert (i + 1) * FRAMES_PER_JOB <= CountingSource.frames_read <= (i + max_ahead) * FRAMES_PER_JOB
        assert loaded.range_index == i and loaded.fault is None
        expected = [resize_frame(image, FRAMES) for image in clips[i].source.read(0, FRAMES_PER_JOB)]
        np.testing.assert_array_equal(loaded.frames, expected)
    assert CountingSource.frames_read == CLIPS * FRAMES_PER_JOB
