"""Frame ranges, checked frame by frame."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from features.frame_ranges import FrameRange, StoredRange, covering_ranges, missing_ranges


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=6), st.integers(1, 40))
def test_each_frame_is_either_covered_once_or_missing(spans: list[tuple[int, int]], length: int) -> None:
    full = FrameRange("a", "d", 0, length)
    stored = [StoredRange(FrameRange("a", "d", a, a + n), Path("a.h5"), 100 * i) for i, (a, n) in enumerate(spans)]
    stored_frames = {f for a, n in spans for f in range(a, a + n)}
    missing = [f for r in missing_ranges(full, stored) for f in range(r.start, r.stop)]
    covering = covering_ranges(full, stored)
    covered = [f for s in covering for f in range(s.frame_range.start, s.frame_range.stop)]
    assert missing == [f for f in range(length) if f not in stored_frames]
    assert covered == [f for f in range(length) if f in stored_frames]
    for s in covering:  # rows still point at the same frames
        origin = stored[s.row // 100]
        assert s.row - origin.row == s.frame_range.start - origin.frame_range.start
