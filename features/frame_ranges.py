"""Ranges of frames within sequences, and where they are stored. Index arithmetic only."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from features.sequences import FrameSequence


@dataclass(frozen=True)
class FrameRange:
    """Frames `start` … `stop` − 1 of a sequence, in the version whose source files have this digest."""

    sequence: str
    digest: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class StoredRange:
    """A range whose frames are stored in a file, from `row` on, with `streams`: name → fingerprint."""

    frame_range: FrameRange
    path: Path
    row: int
    streams: Mapping[str, str] = field(default_factory=dict)


def full_range(sequence: FrameSequence) -> FrameRange:
    """Return the range of all frames of a sequence."""
    return FrameRange(sequence.id, sequence.digest, 0, sequence.length)


def missing_ranges(frame_range: FrameRange, stored: Iterable[StoredRange]) -> list[FrameRange]:
    """Return the parts of `frame_range` that none of `stored` contains, in order.

    >>> clip = FrameRange("clip", "digest", 0, 10)
    >>> stored = [StoredRange(FrameRange("clip", "digest", 2, 6), Path("shard.h5"), row=0)]
    >>> [(gap.start, gap.stop) for gap in missing_ranges(clip, stored)]
    [(0, 2), (6, 10)]
    """
    covered = [s.frame_range for s in covering_ranges(frame_range, stored)]
    starts = [frame_range.start, *(r.stop for r in covered)]
    stops = [*(r.start for r in covered), frame_range.stop]
    return [replace(frame_range, start=a, stop=b) for a, b in zip(starts, stops, strict=True) if a < b]


def covering_ranges(frame_range: FrameRange, stored: Iterable[StoredRange]) -> list[StoredRange]:
    """Cut `stored` to ranges within `frame_range` that are in order and don't overlap; gaps stay gaps."""
    parts, covered_to = [], frame_range.start
    for s in sorted(stored, key=lambda s: (s.frame_range.start, -s.frame_range.stop)):
        start, stop = max(covered_to, s.frame_range.start), min(s.frame_range.stop, frame_range.stop)
        if (start, stop) == (s.frame_range.start, s.frame_range.stop):
            parts.append(s)
            covered_to = stop
        elif start < stop:
            part = replace(frame_range, start=start, stop=stop)
            parts.append(replace(s, frame_range=part, row=s.row + start - s.frame_range.start))
            covered_to = stop
    return parts


def parts_without(stored: StoredRange, damaged: Sequence[int]) -> list[StoredRange]:
    """Cut a whole sequence's range at its damaged frames, which are given in order, and leave these out."""
    if not damaged:
        return [stored]
    length = len(stored.frame_range)
    return [
        replace(
            stored, frame_range=replace(stored.frame_range, start=before + 1, stop=stop), row=stored.row + before + 1
        )
        for before, stop in itertools.pairwise([-1, *damaged, length])
        if stop > before + 1
    ]


def by_sequence(stored: Iterable[StoredRange]) -> dict[tuple[str, str], list[StoredRange]]:
    """Group stored ranges by their sequence's id and digest."""
    table: dict[tuple[str, str], list[StoredRange]] = defaultdict(list)
    for s in stored:
        table[s.frame_range.sequence, s.frame_range.digest].append(s)
    return table


def sequence_ranges(sequences: Sequence[FrameSequence], stored: Iterable[StoredRange]) -> list[list[StoredRange]]:
    """Return the stored ranges that make up each sequence, in order; none for one that lacks frames."""
    table = by_sequence(stored)
    ranges = [covering_ranges(full_range(s), table.get((s.id, s.digest), ())) for s in sequences]
    return [
        parts if sum(len(r.frame_range) for r in parts) == s.length else []
        for s, parts in zip(sequences, ranges, strict=True)
    ]


def split_into_groups(ranges: Iterable[FrameRange], size: int) -> list[list[FrameRange]]:
    """Put ranges, in order, into groups of at most `size` frames; only ranges longer than that are split."""
    groups: list[list[FrameRange]] = []
    space = 0  # in the last group
    for r in ranges:
        for start in range(r.start, r.stop, size):
            part = replace(r, start=start, stop=min(start + size, r.stop))
            if len(part) > space:
                groups.append([])
                space = size
            groups[-1].append(part)
            space -= len(part)
    return groups
