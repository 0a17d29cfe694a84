"""The plan of an extraction, checked frame by frame."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from features.frame_ranges import FrameRange, StoredRange, full_range
from features.sequences import FrameSequence
from stage1_extract.plan import complete_sequences, missing_frames, plan_extraction

FILE = Path("a.h5")
NOTHING_STORED: dict[str, list[StoredRange]] = {"a": [], "b": []}
lengths = st.lists(st.integers(1, 20), min_size=1, max_size=8)
group_sizes = st.integers(1, 16)
spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=6)  # first frame and length


def sequence(name: str, length: int) -> FrameSequence:
    return FrameSequence(name, "train", length, 20.0, (4, 3), "d")


def stored_ranges(spans: list[tuple[int, int]]) -> list[StoredRange]:
    """Ranges of sequence "0"."""
    return [StoredRange(FrameRange("0", "d", a, a + n), FILE, 100 * i) for i, (a, n) in enumerate(spans)]


@given(lengths, group_sizes)
def test_groups_have_every_frame_once_in_order(lengths: list[int], size: int) -> None:
    sequences = [sequence(str(i), n) for i, n in enumerate(lengths)]
    groups = plan_extraction(sequences, NOTHING_STORED, size)
    frames = [(r.sequence, f) for g in groups for r in g.ranges for f in range(r.start, r.stop)]
    assert frames == [(s.id, f) for s in sequences for f in range(s.length)]
    assert all(len(g) <= size and g.streams == ("a", "b") for g in groups)
    assert all(len(group) + len(following.ranges[0]) > size for group, following in pairwise(groups))
    short = [full_range(s) for s in sequences if s.length <= size]
    assert [r for g in groups for r in g.ranges if r in short] == short


@given(lengths, group_sizes, spans, spans, spans)
def test_each_stream_is_extracted_for_exactly_the_frames_that_lack_it(
    lengths: list[int], size: int, in_a: list[tuple[int, int]], in_b: list[tuple[int, int]], done: list[tuple[int, int]]
) -> None:
    sequences = [sequence(str(i), n) for i, n in enumerate(lengths)]
    stored = {"a": [*stored_ranges(in_a), *stored_ranges(done)], "b": stored_ranges(in_b)}
    groups = plan_extraction(sequences, stored, size)
    for name, spans_of_stream in (("a", [*in_a, *done]), ("b", in_b)):
        frames = {("0", f) for start, n in spans_of_stream for f in range(start, start + n)}
        missing = [(s.id, f) for s in sequences for f in range(s.length) if (s.id, f) not in frames]
        ranges = [r for g in groups if name in g.streams for r in g.ranges]
        assert sorted((r.sequence, f) for r in ranges for f in range(r.start, r.stop)) == sorted(missing)
        assert missing_frames(groups, name) == len(missing)


def test_only_new_and_changed_sequences_are_extracted() -> None:
    old, new = sequence("old", 8), sequence("new", 8)
    changed = FrameSequence("changed", "train", 8, 20.0, (4, 3), "other digest")
    stored = [StoredRange(full_range(old), FILE, 0), StoredRange(FrameRange("changed", "d", 0, 8), FILE, 8)]
    groups = plan_extraction([old, changed, new], {"a": stored}, 100)
    assert [r for g in groups for r in g.ranges] == [full_range(changed), full_range(new)]
    assert complete_sequences([old, changed, new], {"a": stored}) == ([old], {"a": [[stored[0]]]})
    assert complete_sequences([old], {"a": stored, "b": []})[0] == []
