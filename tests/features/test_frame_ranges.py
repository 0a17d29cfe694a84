"""Pieces and the plan: index arithmetic, checked against a plain reading of its meaning."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from features.frame_ranges import FrameRange, StoredRange, covering_ranges, full_range, missing_ranges
from features.sequences import FrameSequence
from stage1_extract.plan import complete_sequences, plan_extraction

FILE = Path("some.h5")
NOTHING: dict[str, list[StoredRange]] = {"a": [], "b": []}
ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=6)


def held(spans: list[tuple[int, int]], sequence: str = "a") -> list[StoredRange]:
    return [StoredRange(FrameRange(sequence, "d", a, a + n), FILE, 100 * i) for i, (a, n) in enumerate(spans)]


def sequence(name: str, length: int) -> FrameSequence:
    return FrameSequence(name, "train", length, 20.0, (4, 3), "d")


@given(ranges, st.integers(1, 40))
def test_uncovered_and_segments_share_the_frames_between_them(spans: list[tuple[int, int]], length: int) -> None:
    piece, there = FrameRange("a", "d", 0, length), held(spans)
    have = {f for a, n in spans for f in range(a, a + n)}
    gaps = [f for p in missing_ranges(piece, there) for f in range(p.start, p.stop)]
    parts = covering_ranges(piece, there)
    assert gaps == [f for f in range(length) if f not in have]
    assert [f for h in parts for f in range(h.frame_range.start, h.frame_range.stop)] == [
        f for f in range(length) if f in have
    ]
    for h in parts:  # a segment's row points at the frame it had in the piece it came from
        origin = there[h.row // 100]
        assert h.row - origin.row == h.frame_range.start - origin.frame_range.start


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 16))
def test_groups_hold_every_frame_once_in_order(lengths: list[int], size: int) -> None:
    wanted = [sequence(str(i), n) for i, n in enumerate(lengths)]
    todo = plan_extraction(wanted, NOTHING, {}, size)
    frames = [(p.sequence, f) for g in todo.groups for p in g.pieces for f in range(p.start, p.stop)]
    assert frames == [(s.id, f) for s in wanted for f in range(s.length)]
    assert all(len(g) <= size and g.streams == ("a", "b") for g in todo.groups)
    for group, following in pairwise(todo.groups):  # full, unless what comes next is short and would have to be cut
        first = following.pieces[0]
        assert len(group) == size or (first.start == 0 and len(first) > size - len(group))
    whole_ones = [full_range(s) for s in wanted if s.length <= size]
    assert [p for g in todo.groups for p in g.pieces if p in whole_ones] == whole_ones
    assert todo.frames == todo.wanted == sum(lengths)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 16), st.data())
def test_a_resumed_run_has_the_groups_of_an_uninterrupted_one(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    wanted = [sequence(str(i), n) for i, n in enumerate(lengths)]
    full = plan_extraction(wanted, NOTHING, {}, size).groups
    done = data.draw(st.sets(st.sampled_from(range(len(full)))))
    shards = [StoredRange(p, FILE, 0) for i in done for p in full[i].pieces]
    resumed = plan_extraction(wanted, NOTHING, {"a": shards, "b": shards}, size)
    assert resumed.groups == tuple(g for i, g in enumerate(full) if i not in done)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 16), ranges, ranges, ranges)
def test_every_stream_gets_just_what_it_lacks(
    lengths: list[int], size: int, of_a: list[tuple[int, int]], of_b: list[tuple[int, int]], done: list[tuple[int, int]]
) -> None:
    wanted = [sequence(str(i), n) for i, n in enumerate(lengths)]
    stored = {"a": held(of_a, "0"), "b": held(of_b, "0")}
    todo = plan_extraction(wanted, stored, {"a": held(done, "0")}, size)
    for name, spans in (("a", [*of_a, *done]), ("b", of_b)):
        have = {("0", f) for start, n in spans for f in range(start, start + n)}
        lacking = [(s.id, f) for s in wanted for f in range(s.length) if (s.id, f) not in have]
        extracted = [
            (p.sequence, f) for g in todo.groups if name in g.streams for p in g.pieces for f in range(p.start, p.stop)
        ]
        assert sorted(extracted) == sorted(lacking)
        assert todo.lacking(name) == len(lacking)


def test_only_new_and_changed_sequences_are_extracted() -> None:
    old, new = sequence("old", 8), sequence("new", 8)
    changed = FrameSequence("changed", "train", 8, 20.0, (4, 3), "other digest")
    stored = [StoredRange(full_range(old), FILE, 0), StoredRange(FrameRange("changed", "d", 0, 8), FILE, 8)]
    todo = plan_extraction([old, changed, new], {"a": stored}, {}, 100)
    assert [p for g in todo.groups for p in g.pieces] == [full_range(changed), full_range(new)]
    ready, parts = complete_sequences([old, changed, new], {"a": stored})
    assert ready == [old]
    assert parts == {"a": [[stored[0]]]}
    ready, _ = complete_sequences([old], {"a": stored, "b": []})
    assert ready == []
